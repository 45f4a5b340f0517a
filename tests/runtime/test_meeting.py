import socket
import threading
import time

import pytest

from lopt.runtime.meeting import MeetingError, address_of, meet


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def gather(*processes, seconds=10.0, port=None):
    """What each of some processes, `(count, index)`, says in the end; "" where they have met."""
    port, said = port or free_port(), {}

    def come(position, count, index):
        try:
            meet(f"127.0.0.1:{port}", count, index, seconds)
            said[position] = ""
        except MeetingError as error:
            said[position] = str(error)

    threads = [threading.Thread(target=come, args=(n, *process)) for n, process in enumerate(processes)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return [said[n] for n in range(len(processes))]


def test_all_meet_in_any_order_and_leave_the_port_free():
    port = free_port()
    for order in ((0, 1, 2), (2, 1, 0)):
        assert gather(*((3, index) for index in order), port=port) == ["", "", ""]
    assert gather((1, 0)) == [""]


def test_who_is_missing_is_named_to_all():
    said = gather((4, 0), (4, 2), seconds=1.0)
    assert all(text.startswith("processes 1 and 3 have not come to port") for text in said), said
    assert "within 1 s (--heartbeat-timeout)" in said[0]
    assert gather((2, 0), seconds=0.3)[0].startswith("process 1 has not come")
    (said,) = gather((2, 1), seconds=0.5)
    assert said.startswith("process 0 has not answered at 127.0.0.1:")
    assert "refused" in said


def test_what_does_not_fit_together_is_named():
    assert "two processes have the number 1" in gather((3, 0), (3, 1), (3, 1))[0]
    said = gather((2, 0), (3, 1))
    assert said == ["process 1 was told of 3 processes, process 0 of 2: give all the same --num-processes"] * 2


def test_strangers_are_ignored():
    port = free_port()
    found = []
    thread = threading.Thread(target=lambda: found.extend(gather((2, 0), seconds=5, port=port)))
    thread.start()
    time.sleep(0.2)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert gather((2, 1), port=port) == [""]
    thread.join()
    assert found == [""]


def test_a_port_in_use_and_addresses_that_are_none():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(MeetingError, match=r"cannot listen on port \d+: Address already in use. Choose another"):
            meet(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, 5)
    for text in ("127.0.0.1", "host:", ":80", "host:0", "host:99999", "host:port"):
        with pytest.raises(ValueError, match=f"must read HOST:PORT, such as .* got '{text}'"):
            address_of(text)
