"""The decoder equals transformers' PyTorch, on fixtures that would notice any fault.

See docs/design.md section 2.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lw_jax.models.arch import Arch
from lw_jax.models.save import save_pretrained
from tests.models import parity

# The same families in other clothes: their golden values are compared always, the rest if asked.
REPEATED = {"llama2", "qwen2_tied"}
each_family = pytest.mark.parametrize(
    "case",
    [pytest.param(x, marks=[pytest.mark.slow] * (x in REPEATED)) for x in parity.FAMILIES],
    indirect=True,
)


@pytest.fixture(scope="module", params=parity.FAMILIES)
def case(request: pytest.FixtureRequest) -> tuple[str, parity.Case]:
    return request.param, parity.load(request.param)


def test_equals_golden(case):
    for name, error in parity.errors(case[1]).items():
        assert error <= parity.TOLERANCE, (case[0], name, error)


@each_family
@pytest.mark.parametrize("own", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_mutation_moves_the_logits(case, own):
    """By default a family's own ones; those that all have, of one family."""
    for fault, arch, params in parity.mutations(case[1]):
        if own == (case[0] == "llama" or fault not in parity.OF_ALL):
            assert parity.moved(case[1], arch, params) > parity.MUST_MOVE, (case[0], fault)


def test_both_spellings_of_the_config_are_one_arch(case):
    folder = parity.GOLDEN / case[0]
    hub = json.loads((folder / "hub_config.json").read_text())
    assert "rope_parameters" not in hub
    v5 = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in v5
    assert Arch.from_hf(hub) == Arch.from_hf(v5) == case[1].arch


@each_family
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_equals_live_transformers(case, tmp_path: Path):
    """Other tokens than the golden ones; and transformers loads what we save."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = np.random.default_rng(7).integers(0, case[1].arch.vocab_size, (2, 24)).astype(np.int32)
    save_pretrained(tmp_path, case[1].arch, case[1].params)
    saved = parity.load_params(
        parity.open_checkpoint(tmp_path), parity.one_device(), dtype=jnp.float32
    )
    for folder, params in ((parity.GOLDEN / case[0], case[1].params), (tmp_path, saved)):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            theirs = model(torch.tensor(ids)).logits.numpy()
        full = np.full(2, 24, np.int32)
        ours = np.asarray(parity.logits_of(case[1].arch, params, ids, full))
        assert np.abs(ours - theirs).max() <= parity.TOLERANCE
