"""Where compiled programs are kept, and that what the user has decided stays."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lw_jax.utils import program_cache

FOLDER = "JAX_COMPILATION_CACHE_DIR"


def test_the_users_cache_directory_is_the_users_alone(tmp_path: Path) -> None:
    found = program_cache.settings({"XDG_CACHE_HOME": str(tmp_path), "HOME": "/nowhere"})
    folder = Path(found[FOLDER])
    assert folder.parent == tmp_path / "lw_jax" / "xla"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0.1"
    assert program_cache.settings({"HOME": str(tmp_path)})[FOLDER].startswith(
        str(tmp_path / ".cache" / "lw_jax")
    )


@pytest.mark.parametrize(
    "said",
    [
        {FOLDER: "/elsewhere"},
        {FOLDER: ""},
        {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        {"JAX_ENABLE_COMPILATION_CACHE": "False"},
        {"HOME": ""},
        {"HOME": "relative"},
        {"HOME": "/proc/1"},  # cannot be written
    ],
)
def test_what_the_user_has_decided_stays(said: dict[str, str], tmp_path: Path) -> None:
    assert program_cache.settings({"HOME": str(tmp_path)} | said) == {}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    folder = Path(program_cache.settings(environ)[FOLDER])
    folder.chmod(0o770)
    assert program_cache.settings(environ) == {}


def test_a_program_that_was_half_written_goes(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    folder = Path(program_cache.settings(environ)[FOLDER])
    for name in ("whole-cache", "whole-atime", "half-cache"):
        (folder / name).touch()
    program_cache.settings(environ)
    assert sorted(p.name for p in folder.iterdir()) == ["whole-atime", "whole-cache"]


def test_programs_are_kept_where_jax_has_compiled_already(tmp_path: Path) -> None:
    code = (
        "import jax; jax.jit(lambda x: x + 1)(1.0)\n"
        "from lw_jax.utils import program_cache; program_cache.use()\n"
        "jax.jit(lambda x: x * 3)(1.0)"
    )
    environ = {k: v for k, v in os.environ.items() if k not in (FOLDER, "XLA_FLAGS")}
    environ |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
    assert list(tmp_path.glob("lw_jax/xla/*/*-cache"))


@pytest.mark.parametrize("left", [0, 100])
def test_half_a_program_that_another_process_is_writing_is_compiled_anew(
    left: int, tmp_path: Path
) -> None:
    """Tests share a folder that JAX does not lock, and a file is there before it is written. What
    JAX then warns of is no fault of the test that is under way."""

    def called() -> float:
        return float(jax.jit(lambda x: 3 * x + 1)(2.0))

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        assert called() == 7
        programs = list(tmp_path.glob("*-cache"))
        assert programs
        for program in programs:
            os.truncate(program, left)
        assert called() == 7
        assert sorted(tmp_path.glob("*-cache")) == sorted(programs)  # it was looked for there
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_disk_that_is_full_is_not_said_for_every_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = """
import os, resource
from lw_jax.launch import set_environment
set_environment(os.environ)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
import jax, jax.numpy as jnp
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
for i in range(3):
    print(jax.jit(lambda x: jnp.sin(x @ x) + i)(jnp.ones((4, 4))).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (b"(4, 4)\n" * 3, b"", 0)
