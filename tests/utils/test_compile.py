"""Programs are compiled once, before they are called, whatever thread compiles them."""

import io
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from rich.console import Console

from lw_jax.mesh import MeshConfig, batch_sharding, make_mesh
from lw_jax.utils.compile import AheadOfTime
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
