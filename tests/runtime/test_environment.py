import json
import subprocess

import jax
import pytest

import lopt
from lopt.config import ConfigError
from lopt.runtime.environment import code_version, environment, read_starts, record_start, stamp


def git(directory, *arguments):
    command = ["git", "-C", directory, "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit of code.py."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "package").mkdir()
    (tmp_path / "code.py").write_text("answer = 41\n")
    (tmp_path / "package" / "more.py").write_text("question = None\n")
    (tmp_path / "figures.jsonl").write_text("{}\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "Code")
    return tmp_path


def test_commit_and_changes_of_the_code(repository):
    clean = {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}
    assert code_version(repository / "code.py") == clean
    (repository / "runs").mkdir()
    (repository / "runs" / "metrics.jsonl").write_text("{}\n")
    (repository / "figures.jsonl").write_text("{}\n{}\n")
    assert code_version(repository / "code.py") == clean  # neither what a run writes nor a figure that is added changes the code
    (repository / "package" / "more.py").write_text("question = 6 * 7\n")
    assert code_version(repository / "code.py") == {**clean, "dirty": True}
    (repository / "package" / "more.py").write_text("question = None\n")
    (repository / "code.py").write_text("answer = 42\n")
    assert code_version(repository / "code.py") == {**clean, "dirty": True}
    git(repository, "add", "code.py")
    assert code_version(repository / "code.py") == {**clean, "dirty": True}


def test_somebody_elses_repository_is_not_the_codes(repository):
    (repository / "installed.py").write_text("answer = 42\n")
    assert code_version(repository / "installed.py") is None


def test_no_repository_no_commit_no_git(repository, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("outside") / "code.py"
    outside.write_text("answer = 42\n")
    assert code_version(outside) is None
    monkeypatch.setenv("PATH", "")
    assert code_version(repository / "code.py") is None


def test_what_results_depend_on():
    found = environment()
    assert set(found) == {
        "git",
        "packages",
        "python",
        "system",
        "processor",
        "backend",
        "device",
        "devices",
        "processes",
        "native",
    }
    assert found["packages"]["jax"] == jax.__version__
    assert found["devices"] == jax.device_count()
    assert found["git"] == code_version(lopt.__file__)
    assert json.loads(json.dumps(found)) == found


def test_a_stamp_says_the_same_on_one_line(monkeypatch):
    found = stamp()
    full = environment()
    assert {name: found[name] for name in ("device", "devices", "python")} == {
        name: full[name] for name in ("device", "devices", "python")
    }
    assert found["jax"] == jax.__version__
    assert all(value is None or isinstance(value, (str, int)) for value in found.values())
    monkeypatch.setattr("lopt.runtime.environment.code_version", lambda: {"commit": "0123456789abcdef", "dirty": True})
    assert stamp()["commit"] == "0123456789ab-dirty"
    monkeypatch.setattr("lopt.runtime.environment.code_version", lambda: None)
    assert stamp()["commit"] is None


def test_every_start_of_a_run_has_its_entry(tmp_path, monkeypatch):
    first = record_start(tmp_path, 0)
    monkeypatch.setattr("lopt.runtime.environment._version", lambda package: "0.0" if package == "jax" else None)
    second = record_start(tmp_path, 25)
    assert read_starts(tmp_path) == [first, second]
    assert [start["outer_step"] for start in (first, second)] == [0, 25]
    assert (first["packages"]["jax"] != "0.0", second["packages"]) == (True, {"jax": "0.0"})
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize(("content", "message"), [("[{", "not JSON"), ("{}", "not a list of objects"), ("[1]", "not a list")])
def test_a_damaged_file_is_named_and_kept(tmp_path, content, message):
    path = tmp_path / "environment.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf"environment\.json is {message}"):
        record_start(tmp_path, 0)
    assert path.read_text() == content
