"""Programs are compiled once, before they are called, whatever thread compiles them."""

import io
import threading
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from rich.console import Console

from lw_jax.mesh import MeshConfig, batch_sharding, make_mesh
from lw_jax.utils.compile import AheadOfTime, Behind
from tests.tiny.compilations import compilations

SCREEN = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MeshConfig(data=2))


@partial(jax.jit, static_argnums=0)
def powers(exponent: int, tree: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x**exponent, tree)


def test_a_call_afterwards_compiles_nothing(mesh: Mesh) -> None:
    x = {"a": jnp.arange(8.0), "b": jnp.arange(4)}
    put = jax.device_put(x, batch_sharding(mesh))
    programs = AheadOfTime()
    programs.add(powers, 2, x)
    programs.add(powers, 3, x)
    key = programs.add(powers, 2, put)
    with compilations() as compiled:
        made = programs.compile(SCREEN)
    assert compiled == ["powers"] * 3
    assert made[key].output_shardings["a"] == batch_sharding(mesh)
    with compilations() as compiled:
        assert powers(2, x)["b"].tolist() == [0, 1, 4, 9]
        assert powers(3, x)["b"].tolist() == [0, 1, 8, 27]
        assert powers(2, put)["b"].tolist() == [0, 1, 4, 9]
    assert compiled == []


def test_a_line_says_what_takes_so_long() -> None:
    programs, screen = AheadOfTime(), Console(file=io.StringIO())
    programs.compile(screen)
    assert screen.file.getvalue() == ""  # type: ignore[attr-defined]
    for size in (3, 7):
        programs.add(powers, 2, {"a": jnp.ones(size)})
    programs.compile(screen)
    said = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[0].startswith("compiling 2 programs (once; about ")


def test_cores_that_the_process_may_not_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 it has one: programs are compiled one after the other."""
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    programs, screen = AheadOfTime(), Console(file=io.StringIO())
    for size in (13, 17, 19):
        programs.add(powers, 2, {"a": jnp.ones(size)})
    programs.compile(screen)
    assert "about 15 s" in screen.file.getvalue()  # type: ignore[attr-defined]
    behind = Behind(screen)
    behind.add(powers, 2, {"a": jnp.ones(23)})
    behind.start()
    assert behind._pool is not None and behind._pool._max_workers == 1
    behind.close()


def test_shapes_stand_for_arrays(mesh: Mesh) -> None:
    where = batch_sharding(mesh)
    programs = AheadOfTime()
    programs.add(powers, 2, {"a": jax.ShapeDtypeStruct((6,), jnp.float32, sharding=where)})
    programs.compile(SCREEN)
    with compilations() as compiled:
        powers(2, {"a": jax.device_put(jnp.ones(6), where)})
    assert "powers" not in compiled


def test_what_is_wanted_twice_is_compiled_once() -> None:
    programs = AheadOfTime()
    for value in (1.0, 2.0):
        programs.add(powers, 2, {"a": jnp.full(5, value)})
    with compilations() as compiled:
        programs.compile(SCREEN)
    assert compiled == ["powers"]


def test_a_program_that_cannot_be_compiled_says_why() -> None:
    programs = AheadOfTime()
    with pytest.raises(TypeError):
        programs.add(powers, 2, {"a": "text"})


@pytest.fixture
def behind():
    programs = Behind(Console(file=io.StringIO()))
    yield programs
    programs.close()


def test_the_first_program_runs_before_the_others_are_traced(behind: Behind) -> None:
    ran = threading.Event()

    @jax.jit
    def later(x: jax.Array) -> jax.Array:
        assert ran.wait(60), "traced before the first program could run"
        return x + 1

    x = jnp.arange(11.0)
    first, second = behind.add(powers, 5, {"a": x}), behind.add(later, x)
    with compilations() as compiled:
        behind.start()
        behind.wait(first)
        assert powers(5, {"a": x})["a"][2] == 32
        ran.set()
        behind.wait(second)
        assert later(x)[0] == 1
    assert [name for name in compiled if name in ("powers", "later")] == ["powers", "later"]
    assert "compiling 1 program, and 1 more behind" in behind.console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_needed_next_does_not_wait_for_what_is_needed_later(behind: Behind) -> None:
    free = threading.Event()

    @jax.jit
    def stuck(x: jax.Array) -> jax.Array:
        assert free.wait(60)
        return x

    x = jnp.arange(12.0)
    behind.add(powers, 6, {"a": x})
    waiting = [behind.add(stuck, x[:n]) for n in range(1, 8)]  # more than there are threads for
    last = behind.add(powers, 7, {"a": x})
    behind.start()
    with compilations() as compiled:
        behind.wait(last)
        powers(7, {"a": x})
        assert compiled.count("powers") == 1 and "stuck" not in compiled
        free.set()
        behind.wait(*waiting)
        assert compiled.count("stuck") == len(waiting)


def test_donated_arrays_are_not_held(behind: Behind) -> None:
    double = jax.jit(lambda state, x: (state * x, x), donate_argnums=0)
    state, x = jnp.arange(13.0), jnp.float32(2)
    behind.add(powers, 8, {"a": state})
    key = behind.add(double, state, x)
    state.delete()
    behind.start()
    behind.wait(key)
    with compilations() as compiled:
        assert double(jnp.arange(13.0), x)[0][3] == 6
    assert "<lambda>" not in compiled


def test_what_cannot_be_traced_is_said_at_the_next_step(behind: Behind) -> None:
    def wrong(x: jax.Array) -> jax.Array:
        raise ValueError("too large")

    x = jnp.arange(14.0)
    first = behind.add(powers, 9, {"a": x})
    behind.add(jax.jit(wrong), x)
    behind.start()
    assert behind._pool is not None
    behind._pool.shutdown()  # all have ended
    with pytest.raises(ValueError, match="too large"):
        behind.wait(first)
