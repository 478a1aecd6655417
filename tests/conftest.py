"""Every test sees 8 CPU devices, and an array of another rank never broadcasts by accident."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import jax
import pytest

from tests.longest import LONG

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far more than they compute: without LLVM's optimiser they take half the time, and
# a train step compiles in a third of it where fusions are not emitted through MLIR. Two processes
# keep two cores busy, so that none compiles in threads.
JAXLIB = tuple(int(part) for part in version("jaxlib").split(".")[:2])
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    # Later versions have no other way, and end the process at a flag that they do not know.
    + ("--xla_cpu_use_fusion_emitters=false " if JAXLIB < (0, 11) else "")
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)
# Programs need not say which line each operation comes from: that is a fifth of their lowering.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Both processes of a run, and those that tests start, find what one of them has compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lw_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# However small it is: a program that is found takes half the time of one that is compiled.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# JAX writes them without a lock, and tests kill processes that do: whoever comes upon half a
# program compiles it. (For processes that tests start; pyproject.toml says it for the tests.)
HALF_WRITTEN = "ignore:Error reading persistent compilation cache entry:UserWarning"
os.environ.setdefault("PYTHONWARNINGS", HALF_WRITTEN)

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiled programs are mapped into memory, and a process may have 65,530 mappings on most systems:
# the compiler crashes beyond.
MAPPINGS = 25_000


def pytest_collection_finish() -> None:
    """What has been imported stays, and tracing makes many objects: looking for unused ones among
    all of them as often as by default takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests: files of LONG first, in this order."""
    if not hasattr(config, "workerinput"):
        return
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def few_mappings() -> Iterator[None]:
    """Forget compiled programs between modules once there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def gpu_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment says that there is a GPU, and jax, which nobody has told to use the CPU, has
    none."""
    if jax.default_backend() != "cpu":
        pytest.skip("jax has a GPU here")
    before = jax.config.jax_platforms
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before)
