"""Exported messages: transformers writes with them what lw_jax writes, and what cannot be exported
is said before."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save

from lw_jax.api import engines
from lw_jax.api.bridge import Bridge
from lw_jax.bridge.engines import FORMS, obstacle
from lw_jax.config import parse
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.runs import doctor
from lw_jax.wire.message import Message
from tests.tiny.run import make_models, make_run, raw_config

torch = pytest.importorskip("torch")
COLUMNS = {"soft_tokens": {}}
READERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "columns": (COLUMNS, FORMS),
    "spread": ({"soft_tokens": {"positions": "spread"}}, ("inputs_embeds", "past_key_values")),
    "coprocessor": ({"soft_tokens": {"positions": "spread"}, "coprocessor": {}}, FORMS[2:]),
    "prefix": ({"deep_prefix": {"length": 5, "heads": 2}}, FORMS[2:]),
    "both": ({"soft_tokens": {}, "deep_prefix": {"length": 9, "heads": 2}}, FORMS[2:]),
    "adapters": ({"soft_tokens": {}, "latent_adapters": {"heads": 2, "head_dim": 4}}, ()),
    "lora": ({"soft_tokens": {}, "lora": {}}, ()),
}


@pytest.fixture(scope="module")
def columns(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bridge:
    return bridge_of(models, tmp_path_factory.mktemp("runs") / "columns", COLUMNS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def raw_of(models: dict[str, Path], home: Path, readers: dict[str, Any]) -> dict[str, Any]:
    raw = raw_config(models, home, decode={"max_new_tokens": 8, "stop": []})
    raw["bridge"]["reader"] = readers
    return raw


def bridge_of(models: dict[str, Path], home: Path, readers: dict[str, Any]) -> Bridge:
    make_run(parse.from_dict(raw_of(models, home, readers)), Console(file=io.StringIO()))
    return Bridge.load(home)


def written(model: Any, bridge: Bridge, prompt: engines.Prompt) -> str:
    """What transformers writes greedily."""
    given = engines.transformers_inputs(prompt)
    before = given["input_ids"].shape[1] if "input_ids" in given else 0
    with torch.no_grad():
        out = model.generate(
            **given,
            max_new_tokens=prompt.max_new,
            do_sample=False,
            eos_token_id=list(prompt.eos),
            pad_token_id=prompt.eos[0],
        )[0, before:].tolist()
    ends = [i for i, token in enumerate(out) if token in prompt.eos]
    ids = out[: ends[0]] if ends else out
    return bridge.pipeline.receivers[prompt.receiver].backend.decode(ids).strip()


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("columns", 2),
        *(
            pytest.param(name, 100, marks=pytest.mark.slow)
            for name, (_, forms) in READERS.items()
            if forms
        ),
    ],
)
def test_transformers_writes_what_lw_jax_writes(
    models: dict[str, Path], columns: Bridge, tmp_path: Path, name: str, rows: int
) -> None:
    from transformers import AutoModelForCausalLM

    readers, forms = READERS[name]
    own = readers is COLUMNS
    bridge = columns if own else bridge_of(models, tmp_path / "run", readers)
    model = AutoModelForCausalLM.from_pretrained(models["mistral"], dtype=torch.float32).eval()
    facts = FactsRows("eval", 0, 2, rows)
    said = set()
    for i in range(rows):
        example = facts[i][0]
        packet = bridge.encode(example.context)
        answer = bridge.answer(packet, example.question)
        said.add(answer)
        for form in forms:
            prompt = engines.export(bridge, packet, example.question, form=form)  # type: ignore[arg-type]
            path = tmp_path / f"{form}.safetensors"
            engines.to_file(prompt, path)
            assert written(model, bridge, engines.from_file(path)) == answer, (form, i)
    assert rows < 10 or len(said) > 5  # it depends on the text


@pytest.mark.parametrize("name", list(READERS))
def test_what_cannot_be_exported_is_said_before(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    readers, forms = READERS[name]
    config = parse.from_dict(raw_of(models, tmp_path / "run", readers))
    assert config.bridge is not None
    can = tuple(f for f in FORMS if obstacle(f, config.bridge, config.layout) is None)
    assert can == forms
    found = {one.text for one in doctor.examine(config, memory=False) if one.key == "bridge.reader"}
    (text,) = found
    for form in FORMS:
        assert form in text or not forms
    assert ("cannot be exported" in text) == (not forms)


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    bridge = bridge_of(models, tmp_path / "run", READERS["adapters"][0])
    packet = bridge.encode("Ada keeps 7 goats.")
    for form in FORMS:
        with pytest.raises(UserError, match=r"bridge\.reader\.latent_adapters changes how"):
            engines.export(bridge, packet, "How many?", form=form)


def test_vllm_s_forms(columns: Bridge) -> None:
    bridge = columns
    packet = bridge.encode("Ada keeps 7 goats.")
    prompt = engines.export(bridge, packet, "How many goats?", form="prompt_embeds")
    assert prompt.embeds is not None

    def loaded(text: str) -> np.ndarray:
        held = io.BytesIO(base64.b64decode(text, validate=True))
        tensor = torch.load(held, weights_only=True)
        assert tensor.layout == torch.strided
        return np.asarray(tensor)

    request = json.loads(json.dumps(engines.vllm_completion(prompt)))
    np.testing.assert_array_equal(loaded(request["prompt_embeds"]), prompt.embeds)
    assert request["temperature"] == 0 and request["max_tokens"] == 8
    assert request["stop_token_ids"] == list(prompt.eos)
    part = json.loads(json.dumps(engines.vllm_chat_part(prompt)))
    assert part["type"] == "prompt_embeds"
    first, last = prompt.message
    assert last - first == 6
    np.testing.assert_array_equal(loaded(part["data"]), prompt.embeds[first:last])
    other = engines.export(bridge, packet, "How many goats?", form="past_key_values")
    with pytest.raises(UserError, match="takes prompt_embeds"):
        engines.vllm_completion(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["columns", "spread", "both"])
def test_a_message_of_several_parts(
    models: dict[str, Path], columns: Bridge, tmp_path: Path, name: str
) -> None:
    from transformers import AutoModelForCausalLM

    readers, forms = READERS[name]
    own = readers is COLUMNS
    bridge = columns if own else bridge_of(models, tmp_path / "run", readers)
    model = AutoModelForCausalLM.from_pretrained(models["mistral"], dtype=torch.float32).eval()
    texts = ["Ada keeps 7 goats.", "Ben works as a baker in Ostrin.", "Cyril is 74 years old."]
    message = Message.of([bridge.encode(text) for text in texts])
    answer = bridge.answer(message, "How many goats?")
    assert answer != bridge.answer(bridge.encode(texts[0]), "How many goats?")
    for form in forms:
        prompt = engines.export(bridge, message.to_bytes(), "How many goats?", form=form)  # type: ignore[arg-type]
        assert written(model, bridge, prompt) == answer


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="no such file"):
        engines.from_file(path)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="no exported message"):
        engines.from_file(path)


def test_a_prompt_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for prompt in (EMBEDDED, CACHED):
        engines.to_file(prompt, path)
        back = engines.from_file(path)
        for name in (f.name for f in fields(prompt)):
            np.testing.assert_array_equal(getattr(back, name), getattr(prompt, name))


EMBEDDED = engines.Prompt(
    "inputs_embeds",
    "r",
    np.arange(5, dtype=np.float32),
    embeds=np.ones((5, 4), np.float32),
    message=(1, 3),
    stop=("\n",),
    eos=(2,),
    max_new=7,
)
CACHED = engines.Prompt(
    "past_key_values",
    "r",
    np.arange(3, dtype=np.float32),
    keys=np.ones((2, 1, 3, 4), np.float32),
    values=np.ones((2, 1, 3, 4), np.float32),
    ask=np.arange(2, dtype=np.int32),
    ask_positions=np.arange(2, dtype=np.float32),
)


@pytest.mark.parametrize(
    ("prompt", "change"),
    [
        (EMBEDDED, {"form": 3}),
        (EMBEDDED, {"form": "another"}),
        (EMBEDDED, {"form": "past_key_values"}),
        (EMBEDDED, {"receiver": ["r"]}),
        (EMBEDDED, {"message": (1,)}),
        (EMBEDDED, {"message": (3, 1)}),
        (EMBEDDED, {"message": (1, 9)}),
        (EMBEDDED, {"message": "ab"}),
        (EMBEDDED, {"stop": (3,)}),
        (EMBEDDED, {"stop": "ab"}),
        (EMBEDDED, {"eos": ("a",)}),
        (EMBEDDED, {"max_new": "7"}),
        (EMBEDDED, {"embeds": None}),
        (EMBEDDED, {"embeds": np.full((5, 4), np.nan, np.float32)}),
        (EMBEDDED, {"embeds": np.ones((4, 4), np.float32)}),
        (EMBEDDED, {"embeds": np.ones(5, np.float32)}),
        (CACHED, {"keys": None}),
        (CACHED, {"values": np.ones((2, 1, 2, 4), np.float32)}),
        (CACHED, {"positions": np.arange(4, dtype=np.float32)}),
        (CACHED, {"ask": np.arange(3, dtype=np.int32)}),
        (CACHED, {"ask": np.arange(2, dtype=np.float32)}),
    ],
)
def test_a_file_of_another_form(
    prompt: engines.Prompt, change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    engines.to_file(replace(prompt, **change), path)
    with pytest.raises(UserError, match=r"x.safetensors: no exported message"):
        engines.from_file(path)


@pytest.mark.parametrize("about", ["[" * 20_000, "3", "{}", "[]", '"x"'])
def test_a_file_that_says_something_else(about: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"positions": np.zeros(1, np.float32)}, {engines.ABOUT: about}))
    with pytest.raises(UserError, match=r"x.safetensors: no exported message"):
        engines.from_file(path)
