"""Layers apart compute what stacked layers do, with no copy of a weight, and are loaded joined."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from safetensors.numpy import load_file

from lw_jax.errors import UserError
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.apart import apart
from lw_jax.models.cache import as_prefix, new_cache
from lw_jax.models.checkpoint import WEIGHTS, open_checkpoint
from lw_jax.models.config import ModelConfig
from lw_jax.models.decoder import LayerInputs, embed_tokens, run
from lw_jax.models.frozen import FrozenDecoder, FrozenModels
from lw_jax.models.generate import DecodeOptions, generate
from lw_jax.models.load import abstract_params, load_params
from lw_jax.models.params import init
from lw_jax.models.quant import KINDS
from lw_jax.models.save import save_pretrained
from lw_jax.models.spec import FrozenSpec
from lw_jax.receiver import rms
from lw_jax.receiver.rms import measure_rms
from tests.models import parity
from tests.models.test_decoder_run import (
    GIVEN,
    LENGTHS,
    ROWS,
    TOKENS,
    WINDOW,
    normal,
    real,
    whole_positions,
)
from tests.tiny.arch import decoder, weights

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def both():
    """A window, biases: stacked, and apart."""
    made = weights(WINDOW, 0)
    bias = {f"{n}_bias": 0.3 * normal(5, *made["layers"][f"{n}_bias"].shape) for n in "qkv"}
    stacked = jax.device_put({**made, "layers": {**made["layers"], **bias}})
    return stacked, jax.jit(apart)(stacked)


@pytest.fixture(scope="module")
def h(both):
    ids = np.random.default_rng(1).integers(0, 40, (ROWS, TOKENS))
    return np.asarray(jax.jit(embed_tokens)(both[0], ids)) * 3


def loss_of(params, h, k, v, edits, remat="full", given=GIVEN["all"]):
    full = replace(given, kv=replace(given.kv, k=k, v=v), edits=edits)
    out = run(
        WINDOW,
        params,
        h,
        positions=whole_positions(),
        lengths=LENGTHS,
        taps=(0, 2),
        delivery=full,
        remat=remat,
    )
    seen = jnp.arange(TOKENS)[None] < LENGTHS[:, None]
    return sum(jnp.sum(jnp.sin(x) * seen[..., None]) for x in (out.taps[0], out.taps[1], out.h))


@pytest.mark.parametrize(
    "remat",
    [
        "full",
        pytest.param("dots", marks=SLOW),
        pytest.param("none", marks=SLOW),
    ],
)
def test_loss_and_gradients_are_those_of_the_stack(remat, both, h):
    """Of the stream, a prefix, LoRA on all four projections, blocks, key and value deltas."""
    given = GIVEN["all"]
    args = (h, given.kv.k, given.kv.v, given.edits)
    of = jax.jit(jax.value_and_grad(loss_of, argnums=(1, 2, 3, 4)), static_argnums=5)
    (want, wanted), (got, grads) = of(both[0], *args, "full"), of(both[1], *args, remat)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, jax.device_get((grads, wanted))), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) > 0


def test_a_cache_a_layer_writes_what_the_stack_writes(both, h):
    """Greedy tokens with a prefix, LoRA, blocks and gains, of prompts of different lengths."""
    given = replace(GIVEN["all"], gain=None)
    options = DecodeOptions(5, eos_ids=(7,), gain=(1.5, 1.0))

    @jax.jit
    def write(params):
        at = {"positions": whole_positions(), "lengths": LENGTHS}
        return generate(WINDOW, params, h, **at, options=options, delivery=given)

    stacked, own = (write(params) for params in both)
    chex.assert_trees_all_equal((own.ids, own.lengths), (stacked.ids, stacked.lengths))
    np.testing.assert_allclose(own.logprobs, stacked.logprobs, atol=1e-4)


@pytest.mark.slow
def test_cached_pieces_and_layers_left_out(both, h):
    at = whole_positions()
    cache = new_cache(WINDOW, 3, ROWS, TOKENS, h.dtype, apart=True)
    go = jax.jit(run, static_argnums=0, static_argnames=("start", "stop", "taps"))
    four = np.full(ROWS, 4, np.int32)
    first = go(WINDOW, both[1], h[:, :4], positions=at[:, :4], lengths=four, cache=cache)
    rest = go(
        WINDOW, both[1], h[:, 4:], positions=at[:, 4:], lengths=LENGTHS - 4, cache=first.cache
    )
    whole = go(WINDOW, both[0], h, positions=at, lengths=LENGTHS, taps=(1, 2))
    np.testing.assert_allclose(real(whole.h)[4:9], np.asarray(rest.h)[0], atol=1e-4)
    prefix = LayerInputs(kv=as_prefix(WINDOW, first.cache))
    after = go(WINDOW, both[1], h[:, 4:], positions=at[:, 4:], lengths=LENGTHS - 4, delivery=prefix)
    np.testing.assert_allclose(real(whole.h)[4:9], np.asarray(after.h)[0], atol=1e-4)
    middle = go(
        WINDOW, both[1], whole.taps[0], positions=at, lengths=LENGTHS, start=1, stop=2, taps=(2, 1)
    )
    np.testing.assert_allclose(real(middle.taps), real(whole.taps[::-1]), atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [n if n == "qwen3" else pytest.param(n, marks=SLOW) for n in parity.FAMILIES],
)
def test_it_agrees_with_transformers(name):
    found = open_checkpoint(parity.GOLDEN / name)
    params = load_params(found, parity.one_device(), dtype=jnp.float32, apart=True)
    case = parity.Case(found.arch, params, load_file(parity.GOLDEN / name / "golden.safetensors"))
    worst = parity.errors(case)
    assert max(worst.values()) <= parity.TOLERANCE, worst


@pytest.mark.parametrize(
    "quant",
    [
        None,
        pytest.param("int8", marks=SLOW),
        *(pytest.param(k, marks=SLOW) for k in ("nf4", "float8")),
    ],
)
def test_loaded_apart_is_the_stack_taken_apart(quant):
    found = open_checkpoint(parity.GOLDEN / "qwen2")
    how = {"dtype": jnp.float32, "quant": quant}
    stacked = load_params(found, parity.one_device(), **how)
    own = load_params(found, parity.one_device(), **how, apart=True)
    chex.assert_trees_all_equal(own, jax.jit(apart)(stacked))
    promised = abstract_params(found.arch, parity.one_device(), **how, apart=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(own, promised)
    cut = load_params(found, parity.one_device(), **how, apart=True, layers=1, head=False)
    more = load_params(found, parity.one_device(), **how, apart=True, have=cut)
    chex.assert_trees_all_equal(more, own)
    assert more["layers"][0] is cut["layers"][0]


@pytest.mark.slow
@pytest.mark.parametrize("quant", [None, *KINDS])
def test_over_a_mesh(quant):
    """Heads, columns and vocabulary are split as in the stack; q, k and v stay three matrices."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), (AxisType.Auto,) * 2)
    found = open_checkpoint(parity.GOLDEN / "qwen2")
    ids = load_file(parity.GOLDEN / "qwen2" / "golden.safetensors")["ids"]
    how = {"dtype": jnp.float32, "quant": quant}
    one = load_params(found, parity.one_device(), **how)
    spread = load_params(found, mesh, **how, apart=True)
    promised = abstract_params(found.arch, mesh, **how, apart=True)
    for x, shape in zip(*map(jax.tree.leaves, (spread, promised)), strict=True):
        assert x.sharding.is_equivalent_to(shape.sharding, x.ndim)
    w = spread["layers"][0]
    up = w["gate_up"] if quant is None else w["gate_up"].codes
    columns = up.sharding.shard_shape(up.shape)
    assert columns[1:] == (2, 12) or (quant == "float8" and columns[:2] == (2, 12))
    logits = [parity.logits_of(found.arch, p, ids, parity.LENGTHS) for p in (one, spread)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.slow
def test_what_is_saved_and_measured_is_the_same(tmp_path, monkeypatch):
    case = parity.load("qwen2")
    own = apart(case.params)
    for name, params in (("a", case.params), ("b", own)):
        save_pretrained(tmp_path / name, case.arch, params)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    ids = case.golden["ids"]
    sizes = [
        measure_rms(FrozenDecoder(params, case.arch), ids, parity.LENGTHS)
        for params in (case.params, own)
    ]
    np.testing.assert_allclose(sizes[0].key_rms, sizes[1].key_rms, rtol=1e-5)
    np.testing.assert_allclose(sizes[0].value_rms, sizes[1].value_rms, rtol=1e-5)
    monkeypatch.setattr(rms, "TAPS", 1)  # a row at a time
    by_row = measure_rms(FrozenDecoder(own, case.arch), ids, parity.LENGTHS)
    np.testing.assert_allclose(by_row.key_rms, sizes[0].key_rms, rtol=1e-5)
    np.testing.assert_allclose(by_row.embed_rms, sizes[0].embed_rms, rtol=1e-5)


@pytest.mark.slow
def test_no_weight_is_copied_and_products_are_computed_again():
    """Forward, temporaries stay far below the weights; backward, products count in the program."""
    arch = decoder("llama", 32, 128, 16, 4, 2, 32, 512)
    weights = jax.eval_shape(lambda: apart(init(arch, jax.random.key(0))))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(weights["layers"]))

    def loss(h, params, remat="full"):
        out = run(
            arch,
            params,
            h,
            positions=whole_positions(1, 8),
            lengths=np.full((1,), 8),
            remat=remat,
        )
        return jnp.sum(out.h)

    def compiled(f):
        h = jax.ShapeDtypeStruct((1, 8, arch.width), jnp.float32)
        return jax.jit(f).lower(h, weights).compile()

    assert compiled(loss).memory_analysis().temp_size_in_bytes < size / 4
    full, dots, none = (
        compiled(jax.grad(partial(loss, remat=remat))).as_text().count(" dot(")
        for remat in ("full", "dots", "none")
    )
    assert full - dots >= 3 * 15  # qkv, o, gate and up of all layers but the last
    assert dots - none >= 15  # attention


def test_none_needs_layers_apart(both, h):
    frozen = FrozenModels.of(None, {"r": FrozenDecoder(both[0], WINDOW)}, {})
    with pytest.raises(UserError, match="unroll: always"):
        frozen.rematerialised("none")
    with pytest.raises(UserError, match="unroll: always"):
        run(WINDOW, both[0], h, positions=whole_positions(), lengths=LENGTHS, remat="none")
    FrozenModels.of(None, {"r": FrozenDecoder(both[1], WINDOW)}, {}).rematerialised("none")


def test_the_config_says_how_a_model_lies():
    mesh, arch = make_mesh(MeshConfig(data=1)), decoder()
    for unroll, form in (("auto", dict), ("never", dict), ("always", tuple)):
        spec = FrozenSpec("r", ModelConfig("model", unroll=unroll), arch, SimpleNamespace())
        model = spec.abstract(mesh)
        assert isinstance(model.params["layers"], form)
        assert spec.holds(model)
        assert not spec.holds(spec.abstract(mesh, layers=1))
