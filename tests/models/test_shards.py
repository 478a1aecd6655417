"""Tensors read by several threads, beside the library's reading; what is wrong in the middle."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lw_jax.errors import UserError
from lw_jax.models import load as loading
from lw_jax.models import shards
from lw_jax.models.checkpoint import WEIGHTS, open_checkpoint
from lw_jax.models.finite import not_finite
from lw_jax.models.load import check_weights, load_params
from lw_jax.models.shards import Shard
from tests.models import parity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the llama checkpoint, to be damaged."""
    return Path(shutil.copytree(parity.GOLDEN / "llama", tmp_path / "llama"))


def change(folder: Path, **tensors: np.ndarray) -> None:
    save_file(load_file(folder / WEIGHTS) | tensors, folder / WEIGHTS)


@pytest.mark.parametrize("block", [32, shards.BLOCK])
def test_tensors_equal_those_of_the_library_to_the_bit(block, tmp_path, monkeypatch):
    """Every float dtype, sizes that are no multiple of a block's, and from several threads."""
    monkeypatch.setattr(shards, "BLOCK", block)
    draw = np.random.default_rng(0)
    kinds = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
    tensors = {
        f"{np.dtype(kind).name}-{size}": draw.normal(size=(size, 3)).astype(kind)
        for kind in kinds
        for size in (0, 1, 16, 37)
    }
    save_file(tensors, tmp_path / WEIGHTS)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    with (
        safe_open(tmp_path / WEIGHTS, "numpy") as library,
        Shard(tmp_path / WEIGHTS) as shard,
        ThreadPoolExecutor(4) as pool,
    ):
        assert sorted(shard.keys()) == sorted(library.keys()) == sorted(tensors)
        read = list(pool.map(lambda n: shard.get_tensor(n, seen[n].append), list(tensors) * 3))
        for name, found in zip(list(tensors) * 3, read, strict=True):
            wanted = library.get_tensor(name)
            if wanted.dtype == np.float64:
                wanted = wanted.astype(np.float32)
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            assert found.tobytes() == wanted.tobytes()
            assert 3 * wanted.size == sum(x.size for x in seen[name])


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_kind_of_number_is_told_apart(kind, dtype):
    """All 16-bit patterns; of float32 those with each of these as its upper half."""
    if kind is np.float32:
        upper = np.arange(1 << 16, dtype=np.uint32) << 16
        bits = np.concatenate([upper, upper + 1, upper + 0x7FFF, upper + 0x8000, upper + 0xFFFF])
    else:
        bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(kind)
    with np.errstate(invalid="ignore", over="ignore"):
        stored = numbers.astype(dtype) if kind is np.float32 else numbers
        bad = ~np.isfinite(stored.astype(np.float32))
    assert not_finite(numbers, dtype) == bad.sum()
    assert not_finite(numbers[~bad], dtype) == not_finite(numbers[:0], dtype) == 0
    assert all(not_finite(one, dtype) == 1 for one in numbers[bad][::97].reshape(-1, 1))


@pytest.mark.parametrize("apart", [False, True])
def test_of_several_bad_tensors_the_first_in_order_is_named(apart, folder, monkeypatch):
    """Though the others are found sooner, by other threads."""
    monkeypatch.setattr(loading, "own_cores", lambda: 4)
    q, v = (f"model.layers.{i}.self_attn.{x}_proj.weight" for i, x in ((1, "q"), (0, "v")))
    first, late = (v, q) if apart else (q, v)  # layer by layer; or q of all layers, then v
    whole = load_file(folder / WEIGHTS)
    change(folder, **{name: np.full_like(whole[name], np.nan) for name in (q, v)})
    seen, reads = threading.Event(), Shard.get_tensor

    def slowly(file, name, *how):
        if name == first:
            assert seen.wait(30)
        try:
            return reads(file, name, *how)
        finally:
            if name == late:
                seen.set()

    monkeypatch.setattr(Shard, "get_tensor", slowly)
    with pytest.raises(UserError, match=f"{first}: .* are not finite"):
        load_params(open_checkpoint(folder), parity.one_device(), dtype=jnp.float32, apart=apart)


@pytest.mark.parametrize("check", [False, True])
def test_a_file_that_is_cut_while_it_is_read_is_one_line(check, folder, monkeypatch):
    """And no thread goes on."""
    opens = loading.open_files

    def cut(*given):
        opened = opens(*given)
        with (folder / WEIGHTS).open("r+b") as file:
            file.truncate(file.seek(0, 2) // 2)
        return opened

    found = open_checkpoint(folder)
    monkeypatch.setattr(loading, "open_files", cut)
    with pytest.raises(UserError, match="weight cannot be read: the file ends before") as caught:
        check_weights(found) if check else load_params(found, parity.one_device())
    assert str(caught.value).startswith(f"{folder / WEIGHTS}: ")
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


@pytest.mark.parametrize("apart", [False, True])
def test_parameters_are_the_same_however_little_is_held(apart, folder, monkeypatch):
    """A limit below a tensor's size: each is read alone, when the one before has been sent."""
    whole = load_params(open_checkpoint(folder), parity.one_device(), apart=apart)
    monkeypatch.setattr(loading, "HELD", 1000)
    cut = load_params(open_checkpoint(folder), parity.one_device(), apart=apart)
    chex.assert_trees_all_equal(cut, whole)
