"""Other bridges' lines in an evaluation: each says what it says in its own."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from lw_jax.config.parse import from_dict
from lw_jax.data.facts import FactsRows
from lw_jax.errors import UserError
from lw_jax.runs import doctor
from lw_jax.runs.directory import Run
from lw_jax.runs.session import open_pipeline
from lw_jax.stages import evaluate, train
from tests.tiny.evaluation import RECEIVER
from tests.tiny.run import make_models, make_run, raw_config, save_bridge

FEW = {"methods": ["latent"], "rows": 10, "bootstrap": 40}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def other_raw(models: dict[str, Path], home: Path) -> dict[str, Any]:
    """Raw bytes, read beside the text under another primer, by other slots."""
    raw = raw_config(models, home, **FEW)
    raw["sender"] = None
    raw["layout"] = {"primer": "Text:", "with_text": True}
    raw["bridge"] |= {
        "latent_dim": 8,
        "source": {"bytes": {"width": 16, "heads": 2, "depth": 1}},
        "compressor": {"perceiver": {"slots": 3, "width": 16, "heads": 2, "depth": 1}},
    }
    return raw


def evaluated(run: Run) -> dict[str, Any]:
    """metrics.json of the run's evaluation, and its predictions under `lines`."""
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    evaluate.run(run, "test", cfg)
    found: dict[str, Any] = json.loads((run.run_dir / "metrics.json").read_text())
    text = (run.run_dir / "predictions.jsonl").read_text()
    return found | {"lines": [json.loads(line) for line in text.splitlines()]}


def made(raw: dict[str, Any], screen: io.StringIO | None = None) -> Run:
    return make_run(from_dict(raw), Console(file=screen or io.StringIO(), width=200))


def figures(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """A line of the table, without the time that it took."""
    found = dict(metrics["receivers"][RECEIVER][name])
    return {k: v for k, v in found.items() if k not in ("seconds", "slots")}


def said(metrics: dict[str, Any], name: str) -> list[Any]:
    return [line["receivers"][RECEIVER][name] for line in metrics["lines"]]


def with_articles(folder: Path) -> dict[str, Any]:
    """Rows of three articles with three contexts each, and of one with a single one."""
    paths = {}
    for split in ("train", "eval"):
        paths[split] = folder / f"{split}.jsonl"
        facts = FactsRows(split, 0, 2, 10)
        rows = (
            {
                "context": example.context,
                "question": example.question,
                "answer": list(example.answers),
                "article": f"{split} {i // 3}",
            }
            for i in range(10)
            for example in facts[i]
        )
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(path) for split, path in paths.items()}
    return {"jsonl": files | {"article_field": "article"}}


@pytest.mark.slow
def test_each_line_is_what_its_own_evaluation_says(models: dict[str, Path], tmp_path: Path) -> None:
    """Of rows with articles, whose other contexts' latents are another control."""
    data = with_articles(tmp_path)
    other = evaluated(made(other_raw(models, tmp_path / "other") | {"data": data}))
    twin = made(raw_config(models, tmp_path / "twin", **FEW))  # the host's very parameters
    open_pipeline(twin.config, twin.mesh, twin.run_dir)
    screen = io.StringIO()
    rivals = {"rival": str(tmp_path / "other"), "twin": str(tmp_path / "twin")}
    ends = {"text": ["rival", "twin"], "nothing": "no_message"}
    more = {"rivals": rivals, "normalised": ends, "methods": ["latent", "deranged_near"]}
    raw = raw_config(models, tmp_path / "host", **(FEW | more)) | {"data": data}
    found = evaluated(made(raw, screen))
    near = found["receivers"][RECEIVER]["deranged_near"]
    assert (near["n"], near["left_out"]) == (9, 1)
    for line in found["lines"]:
        own = line["receivers"][RECEIVER]
        assert ("deranged_near" in own) == (line["article"] != "eval 3")
        assert own.get("deranged_near") != own["latent"]
    assert found["normalised"][RECEIVER]["of"] == ["rival", "twin"]
    assert "No share of what the text is worth: text - nothing is " in screen.getvalue()
    for name, own in (("rival", other), ("twin", found)):
        assert figures(found, name) == figures(own, "latent")
        assert said(found, name) == said(own, "latent")
        assert found["rivals"][name]["digest"] == own["parameters"]["digest"]
    assert said(found, "latent") != said(found, "rival")
    assert found["verdict"][RECEIVER]["differences"]["twin"]["mean"] == 0
    shown = screen.getvalue()
    assert "The latent and twin, another bridge cannot be told apart: +0.000" in shown
    assert f"rival: {other['parameters']['total']:,} parameters, stage wire" in shown


def test_what_cannot_stand_beside_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rivals\.text: a line's name"):
        from_dict(raw_config(models, tmp_path / "host", rivals={"text": "runs/x"}))
    gone = from_dict(raw_config(models, tmp_path / "host", rivals={"rival": "runs/gone"}))
    found = [f for f in doctor.examine(gone, memory=False) if f.level == "error"]
    assert [f.key for f in found] == ["stages.test.evaluate.rivals.rival"]
    assert "runs/gone has no checkpoints" in found[0].text

    asks = other_raw(models, tmp_path / "asks")
    asks["layout"] = {"question_in": "latent", "target": "question_answer"}
    made(asks)
    rivals = {"asks": str(tmp_path / "asks")}
    with pytest.raises(UserError, match=r"rivals\.asks: its receiver writes the question_answer"):
        evaluated(made(raw_config(models, tmp_path / "a", **FEW, rivals=rivals)))

    elsewhere = other_raw(models, tmp_path / "elsewhere")
    elsewhere["receivers"][RECEIVER]["path"] = elsewhere["receivers"][RECEIVER]["path"].replace(
        "mistral", "llama"
    )
    run = made(elsewhere)
    open_pipeline(run.config, run.mesh, run.run_dir)
    rivals = {"else": str(tmp_path / "elsewhere")}
    with pytest.raises(UserError, match="elsewhere: its receivers are not"):
        evaluated(made(raw_config(models, tmp_path / "b", **FEW, rivals=rivals)))
    assert not (tmp_path / "b" / "metrics.json").exists()


def test_contexts_of_one_article_are_needed_for_another_ones_latent(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """Said before anything is trained where the data knows none, else before anything is run."""
    few = FEW | {"methods": ["latent", "deranged_near"], "rows": 2}
    raw = raw_config(models, tmp_path / "host", **few)
    with pytest.raises(
        UserError, match=r"deranged_near needs rows of known articles, and data.fac"
    ):
        from_dict(raw)
    data = with_articles(tmp_path)
    bare = {"jsonl": data["jsonl"] | {"article_field": None}}
    with pytest.raises(UserError, match=r"data.jsonl has none; name data.jsonl.article_field, or"):
        from_dict(raw | {"data": bare})
    alone = {"jsonl": data["jsonl"] | {"article_field": "question"}}
    with pytest.raises(UserError, match="no two of these 2 rows have that; evaluate more rows"):
        evaluated(made(raw | {"data": alone}))


def budget_rival(models: dict[str, Path], home: Path, keep: str) -> Run:
    """A rival that changes nothing, and reads a part of the text."""
    raw = raw_config(models, home, **FEW)
    raw["layout"] = {"with_text": True, "text_budget": {"ratio": 2, "keep": keep}}
    raw["bridge"] |= {
        "compressor": {"constant": {"slots": 0}},
        "reader": {"lora": {"r": 2, "alpha": 2.0, "targets": ["q"]}},
    }
    return made(raw)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["first", "last", "sentences", "surprisal"])
def test_a_rival_reads_what_the_budget_method_reads(
    models: dict[str, Path], tmp_path: Path, keep: str
) -> None:
    """Untrained and with nothing delivered it is the method of that name."""
    rival = budget_rival(models, tmp_path / "rival", keep)
    open_pipeline(rival.config, rival.mesh, rival.run_dir)
    checkpoints = tmp_path / "rival" / "checkpoints"
    shutil.rmtree(checkpoints)
    save_bridge(rival, flatten=lambda params: jax.tree.map(jnp.zeros_like, params))
    method = f"token_budget_{keep}"
    more = {"rivals": {"rival": str(tmp_path / "rival")}, "methods": ["latent", method, "text"]}
    raw = raw_config(models, tmp_path / "host", **(FEW | more))
    raw["bridge"]["compressor"]["perceiver"] |= {"slots": 64, "ratios": [2]}
    found = evaluated(made(raw))
    own, other, whole = (figures(found, name) for name in ("rival", method, "text"))
    assert own["nll"] == pytest.approx(other["nll"], rel=1e-5)
    assert own["columns"] == other["columns"] < whole["columns"]
    assert own["nll"] != pytest.approx(whole["nll"], rel=1e-5)
    assert [row["text"] for row in said(found, "rival")] == [
        row["text"] for row in said(found, method)
    ]
    assert own["wire_bytes"] > other["wire_bytes"]  # its latent's packet as well


@pytest.mark.slow
def test_a_rival_is_trained_on_the_part_that_it_reads(
    models: dict[str, Path], tmp_path: Path
) -> None:
    rival = budget_rival(models, tmp_path / "rival", "surprisal")
    shutil.rmtree(tmp_path / "rival" / "checkpoints")
    cfg = rival.config.stages["wire"].train
    assert cfg is not None
    train.run(rival, "wire", cfg)
    assert evaluated(rival)["receivers"][RECEIVER]["latent"]["n"] == 10


@pytest.mark.slow
def test_a_budget_by_entries_counts_what_adapters_read(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """6 columns in 2 layers of 2 heads, and in one of them 6 keys under 4 heads: as 12 tokens."""
    more = {"methods": ["latent", "token_budget_last", "token_budget_kv_last"]}
    raw = raw_config(models, tmp_path / "host", **(FEW | more))
    raw["bridge"]["reader"]["latent_adapters"] = {"layers": [1], "heads": 4, "head_dim": 4}
    found = evaluated(made(raw))
    assert figures(found, "token_budget_last")["columns"] == 6
    assert figures(found, "token_budget_kv_last")["columns"] == 12
    assert found["compression"]["receivers"][RECEIVER]["kv_tokens"] == 12
    (words,) = [w for w in found["verdict"][RECEIVER]["words"] if "K/V entries" in w]
    assert "as many K/V entries of text (token_budget_kv_last)" in words
