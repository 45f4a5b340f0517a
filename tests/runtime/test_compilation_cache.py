import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lopt.config.caches import compilation_cache_dir
from lopt.runtime.compilation_cache import use_compilation_cache
from lopt.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(monkeypatch):
    """No setting of the environment; JAX's as without the tests' own cache, and restored afterwards."""
    for name in ("LOPT_COMPILATION_CACHE", "LOPT_CACHE_DIR", "XDG_CACHE_HOME", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_where_programs_are_kept(settings, tmp_path):
    settings.setenv("HOME", str(tmp_path))
    default = compilation_cache_dir()
    assert default is not None
    assert default.parent == tmp_path / ".cache" / "lopt" / "compiled"
    for name, value, parent in (
        ("XDG_CACHE_HOME", tmp_path / "xdg", tmp_path / "xdg" / "lopt" / "compiled"),
        ("LOPT_CACHE_DIR", tmp_path / "data", tmp_path / "data" / "compiled"),
        ("LOPT_COMPILATION_CACHE", "~/own", tmp_path / "own"),
    ):
        settings.setenv(name, str(value))
        assert compilation_cache_dir() == parent / default.name
    settings.setenv("LOPT_COMPILATION_CACHE", "off")
    assert compilation_cache_dir() is None
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_what_jax_was_told_holds(settings, tmp_path):
    settings.setenv("LOPT_COMPILATION_CACHE", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_warned_of(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings.setenv("LOPT_COMPILATION_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"compiled programs are not kept, as .*file.* set LOPT_COMPILATION_CACHE to another"):
        assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_a_place_where_others_may_put_programs_is_not_used(settings, tmp_path, monkeypatch):
    settings.setenv("LOPT_COMPILATION_CACHE", str(tmp_path))
    directory = compilation_cache_dir()
    assert directory is not None
    directory.mkdir()
    for mode in (0o777, 0o770):
        directory.chmod(mode)
        with pytest.warns(UserWarning, match=rf"compiled programs are not kept: .*the mode {mode:o}: others can put"):
            assert use_compilation_cache() is None
    directory.chmod(0o755)
    owner = directory.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(UserWarning, match=rf"belongs to user {owner} .*chmod go-w.*LOPT_CACHE_DIR"):
        assert use_compilation_cache() is None
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert use_compilation_cache() == directory


def test_old_programs_are_taken_away(settings, tmp_path):
    settings.setenv("LOPT_COMPILATION_CACHE", str(tmp_path))
    directory = compilation_cache_dir()
    assert directory is not None
    directory.mkdir()
    for name, days in (("old", 31), ("new", 29)):
        (directory / name).write_bytes(b"")
        os.utime(directory / name, (time.time() - days * 86_400,) * 2)
    assert use_compilation_cache() == directory
    assert [path.name for path in directory.iterdir()] == ["new"]
    assert jax.config.jax_compilation_cache_dir == str(directory)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.1


def meta_train(run_dir, cache, *overrides):
    """What a run of the smoke config says on stderr, where warnings would be; started as a user does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION", "XLA_FLAGS"))}
    command = [sys.executable, "scripts/meta_train.py", "--config", "configs/smoke.py", "--run-dir", run_dir, *overrides]
    environment |= {"LOPT_COMPILATION_CACHE": str(cache)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=300).stderr


@pytest.mark.slow
def test_a_run_from_the_cache_is_the_same_bit_for_bit(tmp_path):
    """Half a run fills the cache, the other half reads it, from an entry cut short too; the whole of it compiled afresh is the same."""
    cache = tmp_path / "cache"
    said = meta_train(tmp_path / "afresh", "off")
    said += meta_train(tmp_path / "kept", cache, "--outer-steps", "5")
    (entries,) = cache.iterdir()
    (program,) = entries.glob("jit_outer_step-*")
    cut = next(entries.glob("jit_make-*"))
    cut.write_bytes(cut.read_bytes()[:1000])
    said += meta_train(tmp_path / "kept", cache)
    assert list(entries.glob("jit_outer_step-*")) == [program], "it was read, not compiled under another name"
    assert "Warning" not in said
    assert "machine features" not in said
    afresh, kept = (checkpoint.load_theta(tmp_path / name) for name in ("afresh", "kept"))
    assert checkpoint.steps(tmp_path / "afresh")[-1] == checkpoint.steps(tmp_path / "kept")[-1] == 10
    jax.tree.map(np.testing.assert_array_equal, afresh, kept)
