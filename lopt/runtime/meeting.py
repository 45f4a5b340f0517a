"""The roll call of the processes of a run, before JAX is told of them.

JAX ends a process with a stack of C++ when another does not come in time, or the address is wrong. So they first meet at the
coordinator's port by themselves, where it can be said who is missing; then JAX has the port.
"""

import contextlib
import os
import socket
import time

from lopt.config.errors import LoptError

_GREETING = "lopt {index} of {count}\n"
_GO = b"go\n"
_RETRY = 0.2  # seconds


class MeetingError(LoptError, RuntimeError):
    """The processes of a run have not found each other; the message says who is missing, or what is wrong with the address."""


def address_of(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`.

    Raises:
      ValueError: if it does not read so.

    Example:
      >>> address_of("10.0.0.1:1234"), address_of("[::1]:80")
      (('10.0.0.1', 1234), ('::1', 80))
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"the coordinator's address must read HOST:PORT, such as 10.0.0.1:1234, got '{text}'")
    return host.removeprefix("[").removesuffix("]"), int(port)


def meet(coordinator: str, count: int, index: int, seconds: float) -> None:
    """Return when all processes have come to the coordinator's port, which is free again then.

    Args:
      coordinator: address and port of process 0.
      count: how many processes there are.
      index: this one's number.
      seconds: after which it is given up.

    Raises:
      ValueError: if the address cannot be read.
      MeetingError: if a process has not come, two have the same number, they do not agree on how many they are, or the port is taken.
    """
    host, port = address_of(coordinator)
    deadline = time.monotonic() + seconds
    if index == 0:
        _receive(port, count, seconds, deadline)
    else:
        _come(coordinator, (host, port), _GREETING.format(index=index, count=count), seconds, deadline)


def _receive(port: int, count: int, seconds: float, deadline: float) -> None:
    dual = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=max(8, count)
        )
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else str(error)
        raise MeetingError(f"process 0 cannot listen on port {port}: {said}. Choose another for all processes") from error
    came: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as opened:
        problem = ""
        while len(came) < count - 1 and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [str(number) for number in range(1, count) if number not in came]
                who = f"process {missing[0]} has" if len(missing) == 1 else f"processes {' and '.join(missing)} have"
                problem = f"{who} not come to port {port} of process 0 within {seconds:g} s (--heartbeat-timeout)"
                break
            opened.enter_context(connection)
            number, problem = _greeted(connection, count, came)
            if number is not None:
                came[number] = connection
        for connection in came.values():
            with contextlib.suppress(OSError):  # it has gone meanwhile, which JAX will notice
                connection.sendall(f"{problem}\n".encode() if problem else _GO)
                connection.settimeout(5.0)
                connection.recv(1)  # it closes first, so that no connection keeps the port
    if problem:
        raise MeetingError(problem)


def _greeted(connection: socket.socket, count: int, came: dict[int, socket.socket]) -> tuple[int | None, str]:
    """The number of who has come, and what is wrong with it; None for a stranger."""
    connection.settimeout(5.0)
    try:
        words = connection.makefile("rb").readline(100).decode(errors="replace").split()
    except OSError:
        return None, ""
    if len(words) != 4 or words[0] != "lopt" or not (words[1].isdecimal() and words[3].isdecimal()):
        return None, ""
    number, said = int(words[1]), int(words[3])
    if said != count:
        problem = f"process {number} was told of {said} processes, process 0 of {count}: give all the same --num-processes"
    elif number in came or not 0 < number < count:
        problem = f"two processes have the number {number}: give each a --process-id of its own"
    else:
        return number, ""
    with contextlib.suppress(OSError):
        connection.sendall(f"{problem}\n".encode())
    return None, problem


def _come(coordinator: str, address: tuple[str, int], greeting: str, seconds: float, deadline: float) -> None:
    while True:
        try:
            with socket.create_connection(address, timeout=max(0.1, deadline - time.monotonic())) as connection:
                connection.sendall(greeting.encode())
                connection.settimeout(max(0.1, deadline - time.monotonic()) + 5.0)  # process 0 gives up first, and says why
                answer = connection.makefile("rb").readline(1000)
            if answer == _GO:
                return
            if answer:
                raise MeetingError(answer.decode(errors="replace").strip())
            reason = "it has gone"
        except socket.gaierror as error:
            reason = f"the name '{address[0]}' is not known: {error.strerror}"
        except OSError as error:
            reason = (error.strerror or str(error) or type(error).__name__).lower()
        if time.monotonic() >= deadline:
            raise MeetingError(
                f"process 0 has not answered at {coordinator} within {seconds:g} s (--heartbeat-timeout): {reason}. Is it started, and is "
                "this its address?"
            )
        time.sleep(min(_RETRY, max(0.0, deadline - time.monotonic())))
