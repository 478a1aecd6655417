"""A stage whose objectives reach no parameter that it trains is refused; every other one is not."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest

from lw_jax.config.parse import read
from lw_jax.errors import UserError
from lw_jax.launch import main
from lw_jax.mesh import make_mesh
from lw_jax.models.spec import SENDER, open_model
from lw_jax.runs.ready import traced

LENGTHS = {"source": 16, "reader/context": 16, "reader/ask": 8, "reader/answer": 4}
LORA, BOTH = {"lora": {"r": 2}}, {"lora": {"r": 2}, "soft_tokens": {}}
TEXT, LATER = {"text_ce": {}}, {"text_ce": {}, "kd": {"schedule": {"start": 2}}}
NOTHING = "no gradient of text_ce reaches what is trained (compressor), so nothing would be trained"
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("objectives", "reader", "only", "said"),
    [
        (TEXT, LORA, ["compressor"], NOTHING),
        (TEXT, {"soft_tokens": {}}, ["compressor"], "set bridge.reader.lora, or another objective"),
        (TEXT, LORA, ["bottleneck"], None),  # a codebook moves itself
        slow(TEXT, BOTH, ["readers/.*/soft_tokens"], "trained (readers/reader/soft_tokens)"),
        slow(LATER, LORA, ["compressor"], "no gradient of text_ce, kd reaches"),  # of no latent
        slow({"reconstruction": {}}, BOTH, ["heads"], None),
        slow(LATER, BOTH, ["compressor"], None),
        slow(TEXT, LORA, ["readers"], None),
    ],
)
def test_what_no_gradient_reaches_is_not_trained(write, objectives, reader, only, said):
    stage = {"stages.fit.train.train_only": only, "stages.fit.train.accumulate": 2}
    if only == ["bottleneck"]:
        stage |= {"bridge.bottleneck": {"vq": {"codes": 4}}}
    config = read(write(**{"objectives": objectives, "bridge.reader": reader}, **stage))
    models = {SENDER: config.sender, **config.receivers}
    specs = {name: open_model(name, model) for name, model in models.items()}
    expected = nullcontext() if said is None else pytest.raises(UserError)
    with expected as caught:
        train = config.stages["fit"].train
        traced(config, train, specs, LENGTHS, make_mesh(config.mesh), step=True)
    assert said is None or said in str(caught.value)


@pytest.mark.slow
def test_it_is_said_by_the_doctor_and_by_the_run(write, capsys):
    changes = {"stages.fit.train.train_only": ["compressor"], "stages.report": None}
    path = write(**{"objectives": TEXT, "bridge.reader": LORA}, **changes)
    assert main(["--doctor", "--config", str(path)]) == 2
    assert "no gradient of text_ce reaches" in capsys.readouterr().out
    assert main(["--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: stages.fit.train: {NOTHING}")
