"""The evaluate stage end to end on tiny models: its files, its resumption, its refusals."""

from __future__ import annotations

import io
import json
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from lw_jax import api
from lw_jax.bridge.bridge import Bridge
from lw_jax.config.parse import from_dict
from lw_jax.data import facts, load
from lw_jax.data.config import DataConfig
from lw_jax.data.example import Example
from lw_jax.errors import UserError
from lw_jax.evaluate import compare, examples, mean_latent, report, rescore, slot_maps
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.evaluate.metrics import columns, squad
from lw_jax.evaluate.metrics.base import Prediction
from lw_jax.evaluate.prediction_cache import PredictionCache, key_of
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.spec import open_model
from lw_jax.receiver.answer import answers
from lw_jax.runs import session as stage_setting
from lw_jax.runs.directory import Run
from lw_jax.runs.session import open_pipeline
from lw_jax.runs.streams import parts_of, task_rows
from lw_jax.runs.trained import load_trained
from lw_jax.stages import evaluate
from lw_jax.stages.train import answer_stop, start_params
from lw_jax.text.layout_config import LayoutConfig
from lw_jax.train.diagnostics import Journal
from lw_jax.utils.signals import Stop
from lw_jax.wire import packet
from tests.tiny.compilations import compilations
from tests.tiny.evaluation import RECEIVER
from tests.tiny.run import METHODS, STEP, make_models, make_run, raw_config

MEASURED: list[tuple[Example, ...]] = []
"""What the control `mean` of the fixture `run` was measured on."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def run(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose evaluation was killed after three methods, and then went on."""
    home = tmp_path_factory.mktemp("runs") / "tiny"
    screen = Console(file=io.StringIO(), width=200)
    made = make_run(from_dict(raw_config(models, home)), screen)
    journal = Journal(home / "diagnostics.jsonl", "wire")
    for step in (2, 4, 6):
        journal.write(
            step, "evaluate", {"alarm/pooled": 1} | ({"alarm/loudness": 1} if step < 5 else {})
        )
    cfg = made.config.stages["test"].evaluate
    assert cfg is not None
    right, measure = compare.Comparison.run, mean_latent.measure
    ran: list[str] = []

    def measured_on(ctx: Any, groups: Any, *rest: Any) -> Any:
        MEASURED.extend(groups)
        return measure(ctx, groups, *rest)

    def watched(self: Any, ctx: Any, name: str, *rest: Any) -> Any:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(name)
        return right(self, ctx, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare.Comparison, "run", watched)
        patch.setattr(mean_latent, "measure", measured_on)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(made, "test", cfg)
    assert not (home / "metrics.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        again: list[str] = []
        patch.setattr(
            compare.Comparison,
            "run",
            lambda self, ctx, name, *rest: again.append(name) or right(self, ctx, name, *rest),
        )
        evaluate.run(made, "test", cfg)
    assert ran + again == list(METHODS)
    return made


@pytest.fixture(scope="module")
def metrics(run: Run) -> dict[str, Any]:
    return json.loads((run.run_dir / "metrics.json").read_text())


@pytest.fixture(scope="module")
def lines(run: Run) -> list[dict[str, Any]]:
    text = (run.run_dir / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_metrics_json_has_the_promised_keys(metrics: dict[str, Any]) -> None:
    assert set(metrics) >= {
        "receivers",
        "joint",
        "compression",
        "parameters",
        "config",
        "versions",
        "data",
        "fingerprints",
    }
    methods = metrics["receivers"][RECEIVER]
    assert tuple(methods) == METHODS
    wanted = "em f1 nll first_top1 first_top5 distinct n seconds ci disagreements".split()
    for figures in methods.values():
        assert set(figures) >= set(wanted)
        assert figures["n"] == 22
        assert figures["seconds"] > 0
        for name in ("em", "f1", "nll", "first_top1", "first_top5"):
            low, high = figures["ci"][name]
            assert low <= figures[name] + 1e-9 <= high + 1e-6
        assert figures["compared"] > 0
        assert figures["disagreements"] == 0
        assert sum(figures["ended"].values()) == pytest.approx(1)
    assert metrics["decode"]["stop"] == ["\n"]
    assert metrics["decode"]["max_new_tokens"] == 6
    assert metrics["decode"]["unwritable"] == {RECEIVER: 5}
    assert metrics["stage"] == "test"
    assert set(metrics["fingerprints"]) == {"sender", RECEIVER}
    assert metrics["config"]["data"] == {"facts": metrics["config"]["data"]["facts"]}
    assert metrics["data"]["contexts"] == 22  # one question of every context comes first


def test_the_relay_says_what_writing_and_what_reading_took(
    run: Run, metrics: dict[str, Any], lines: list[dict[str, Any]]
) -> None:
    found = metrics["receivers"][RECEIVER]["relay"]
    assert found["seconds"] == found["seconds_writing"] + found["seconds_reading"]
    assert min(found["seconds_writing"], found["seconds_reading"]) > 0
    spec = open_model("sender", run.config.sender)
    sender = spec.load(run.mesh)
    layout = LayoutConfig(question="", anchor="\nRepeat:")
    examples = [Example("", "", line["context"], line["question"], ("",)) for line in lines]
    assert [line["relayed"] for line in lines] == answers(
        sender, spec.tokenizer, layout, examples, 8, 8
    )
    # What the receiver is given is that, and no more than that.
    bytes_of = [len((" " + line["relayed"]).encode()) for line in lines]
    assert found["wire_bytes"] == pytest.approx(np.mean(bytes_of))
    assert found["columns"] < metrics["receivers"][RECEIVER]["text"]["columns"]


def test_slots_and_alarms_of_training_stand_in_the_metrics(
    run: Run, metrics: dict[str, Any]
) -> None:
    slots = metrics["receivers"][RECEIVER]["latent"]["slots"]
    assert (slots["count"], slots["texts"]) == (6, 8)
    assert slots["rms_ratio"] > 1  # of random parameters
    assert 0 < slots["nearest_cosine"] <= 1
    assert [type(text) for text in slots["spelled"]] == [str] * 4
    assert metrics["alarms"] == [
        {"name": "pooled", "fault": 16, "stage": "wire", "first": 2, "times": 3, "last": 6},
        {"name": "loudness", "fault": 7, "stage": "wire", "first": 2, "times": 2, "last": 4},
    ]
    assert isinstance(run.console.file, io.StringIO)
    assert "ALARM pooled in training: 3 times from step 2 to 6" in run.console.file.getvalue()


def test_compression_and_parameters(metrics: dict[str, Any]) -> None:
    packed = metrics["compression"]
    assert packed["receivers"][RECEIVER]["columns"] == 6
    assert packed["latent"]["bytes"]["float32"] == packet.nbytes(6, 12, "float32")
    methods = metrics["receivers"][RECEIVER]
    assert methods["text"]["wire_bytes"] == pytest.approx(packed["latent"]["bytes"]["utf8"])
    assert methods["latent"]["wire_bytes"] == packet.nbytes(6, 12, "float32")
    assert methods["token_budget_first"]["columns"] == 6
    assert methods["token_budget_surprisal"]["columns"] == 6
    assert 0 < methods["token_budget_sentences"]["columns"] <= 6
    assert methods["text"]["wire_bytes"] < methods["latent"]["wire_bytes"]
    assert methods["token_budget_bytes"]["columns"] == methods["text"]["columns"]  # all of it
    held = metrics["parameters"]
    assert (held["stage"], held["step"]) == ("wire", STEP)
    assert held["total"] == sum(held["components"].values()) > 0


def test_predictions_stand_side_by_side(
    metrics: dict[str, Any], lines: list[dict[str, Any]]
) -> None:
    assert len(lines) == 22
    assert len({line["id"] for line in lines}) == 22
    for name in METHODS:
        said = [line["receivers"][RECEIVER][name]["text"] for line in lines]
        f1 = np.mean([squad.f1(s, x["answers"]) for s, x in zip(said, lines, strict=True)])
        assert metrics["receivers"][RECEIVER][name]["f1"] == pytest.approx(f1)
    texts = [line["receivers"][RECEIVER]["text"]["text"] for line in lines]
    replayed = [line["receivers"][RECEIVER]["embedding_replay_raw"]["text"] for line in lines]
    assert texts == replayed


def test_the_end_is_shown_in_words_and_kept_in_the_history(run: Run) -> None:
    assert isinstance(run.console.file, io.StringIO)
    shown = run.console.file.getvalue()
    for word in (
        *METHODS,
        "The wire",
        "6.0 columns stand for",
        "Bridge:",
        "token budget",
        "before it was stopped",
        f"WARNING {RECEIVER}: 5 of 22 gold answers are longer than decode.max_new_tokens 6",
    ):
        assert word in shown
    history = (run.run_dir.parent / "metrics_history.jsonl").read_text().splitlines()
    assert len(history) == 1
    assert json.loads(history[0])["run"] == "tiny"
    assert not (run.run_dir / "partial").exists()


def test_training_ends_answers_where_the_evaluation_does(run: Run) -> None:
    train = run.config.stages["wire"].train
    assert train is not None
    assert answer_stop(run.config, train) == ("\n",)
    stages = dict(run.config.stages)
    test = stages["test"].evaluate
    assert test is not None
    own = replace(test, decode=replace(test.decode, stop=("END",)))
    asked = replace(run.config, stages=stages | {"test": replace(stages["test"], evaluate=own)})
    assert answer_stop(asked, train) == ("END",)
    # A stage of other rows is another task.
    data = DataConfig(facts=facts.Config(task="readback"))  # type: ignore[call-arg]
    assert answer_stop(replace(asked, data=data), replace(train, data=data)) == ()


def test_the_columns_are_explained(metrics: dict[str, Any]) -> None:
    screen = io.StringIO()
    report.show(Console(file=screen, width=200), metrics)
    (line,) = (x for x in screen.getvalue().splitlines() if x.startswith("em: answers that equal"))
    first = next(iter(metrics["receivers"][RECEIVER].values()))
    shown = [m.heading or m.name for m in columns() if m.name in first]
    for heading in (*shown, "columns", "seconds"):
        assert f"{heading}: " in line
    assert "nll: nats a gold token, the fewer the better" in line


def test_a_narrow_terminal_cuts_no_figure_off(metrics: dict[str, Any]) -> None:
    screen = io.StringIO()
    report.show(Console(file=screen, width=60), metrics)
    assert "token_budget_first" in screen.getvalue()
    assert "…" not in screen.getvalue()


def test_what_was_left_out_and_an_alarm_that_fired_once_are_told(metrics: dict[str, Any]) -> None:
    def shown(dropped: int) -> str:
        screen = io.StringIO()
        once = {**metrics["alarms"][0], "times": 1}
        data = {**metrics["data"], "dropped": dropped}
        report.show(Console(file=screen, width=200), metrics | {"alarms": [once], "data": data})
        return screen.getvalue()

    assert "too long" not in shown(0)
    assert "3 of 25 rows were too long, and are left out." in shown(3)
    assert "ALARM pooled in training: once, after step 2 of stage wire." in shown(3)


def test_bytes_read_like_the_direct_path(
    run: Run, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> Any:
        raise UserError("data: no such file")

    monkeypatch.setattr(stage_setting, "load_rows", absent)  # a finished run needs no rows
    bridge = api.Bridge.load(run.run_dir)
    assert bridge.decode.stop == ("\n",)  # the task's
    assert bridge.pipeline.bridge.dims.receivers[RECEIVER].embed_rms != 1.0
    for line in lines[:6]:
        sent = bridge.encode(line["context"])
        assert len(sent) == packet.nbytes(6, 12, "float32")
        direct = line["receivers"][RECEIVER]["latent"]["text"]
        assert bridge.answer(sent, line["question"]) == direct
        assert bridge.answer(sent, line["question"], RECEIVER) == direct
    assert len({line["receivers"][RECEIVER]["latent"]["text"] for line in lines[:6]}) > 2
    with pytest.raises(UserError, match="answer: receiver 'x'"):
        bridge.answer(sent, "?", "x")
    with pytest.raises(UserError, match="give it to answer"):
        bridge.encode("text", "question?")
    sending = api.Bridge.load(run.run_dir, role="sender")
    assert sending.encode(lines[5]["context"]) == sent
    assert sending.pipeline.frozen.receivers == {}
    other = packet.to_bytes(packet.from_bytes(sent).latent, mark=b"another!")
    with pytest.raises(UserError, match="another bridge"):
        bridge.answer(other, "?")


def test_the_page_and_the_slots_to_look_at(run: Run, lines: list[dict[str, Any]]) -> None:
    maps = json.loads((run.run_dir / "slot_maps.json").read_text())["texts"]
    assert [one["row"] for one in maps] == [line["id"] for line in lines[: len(maps)]]
    assert len(maps) == slot_maps.TEXTS
    for one, line in zip(maps, lines, strict=False):
        reads, cosine = np.asarray(one["reads"]), np.asarray(one["cosine"])
        assert reads.shape == (one["slots"], len(one["tokens"])) and one["slots"] == 6
        chex.assert_trees_all_close(reads.sum(axis=1), np.ones(6), atol=0.0005 * reads.shape[1])
        chex.assert_trees_all_close(np.diag(cosine), np.ones(6), atol=1e-3)
        assert "".join(one["tokens"]).replace(" ", "").endswith(line["context"].replace(" ", ""))
    html = (run.run_dir / "report.html").read_text()
    assert "slot-data" in html and html.count("<article") == len(lines)


def test_on_two_devices_with_other_methods(
    run: Run, tmp_path: Path, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    spread = replace(run, out_dir=tmp_path, mesh=make_mesh(MeshConfig(data=2)))
    right, late = compare.Comparison.run, []

    def watched(*args: Any) -> Any:
        with compilations() as compiled:
            found = right(*args)
        late.extend(compiled)
        return found

    monkeypatch.setattr(compare.Comparison, "run", watched)
    with compilations() as compiled:
        evaluate.run(spread, "test", replace(cfg, methods=("text",), batch_size=7))
    programs = {"place", "score", "write"}
    assert programs <= set(compiled)
    assert not programs & set(late)  # a method finds its programs compiled
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert list(found["receivers"][RECEIVER]) == ["text"]
    assert found["verdict"] == found["parameters"] == found["compression"] == {}
    again = [json.loads(x) for x in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for one, two in zip(lines, again, strict=True):
        assert one["id"] == two["id"]
        assert (
            one["receivers"][RECEIVER]["text"]["text"] == two["receivers"][RECEIVER]["text"]["text"]
        )


def test_controls_of_the_wire_leave_text_and_budgets_as_they_were(
    run: Run, tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    """The wire and what it is held against are decoded alike, and then no row can be compared with
    the scorer, which is said."""
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    screen = io.StringIO()
    other = replace(run, out_dir=tmp_path, console=Console(file=screen, width=400))
    decode = replace(cfg.decode, min_new_tokens=6, eos_ban_steps=6)
    methods = ("text", "latent", "token_budget_first")
    evaluate.run(other, "test", replace(cfg, methods=methods, decode=decode))
    found = json.loads((tmp_path / "metrics.json").read_text())["receivers"][RECEIVER]
    wire = ["latent", "no_message", "zero", "mean", "deranged"]
    again = [json.loads(x) for x in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for name in ("text", "token_budget_first"):
        for one, two in zip(lines, again, strict=True):
            assert one["receivers"][RECEIVER][name] == two["receivers"][RECEIVER][name]
        assert found[name]["compared"] > 0
    for name in wire:
        assert found[name]["ended"] == {"eos": 0, "stop": 0, "limit": 1}
        assert found[name]["compared"] == 0
    assert f"ALARM {RECEIVER}: of {', '.join(wire)} scorer and decoder were compared in no row" in (
        screen.getvalue()
    )
    assert f"NOTE {RECEIVER}, latent: 100% of its answers" in screen.getvalue()


def test_an_answer_ends_where_the_config_says(
    run: Run, tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    """The same stop for every method, in metrics and in the Python API."""
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    texts = [line["receivers"][RECEIVER]["text"]["text"] for line in lines]
    stop = max("aeinorst", key="".join(text[1:] for text in texts).count)
    other = replace(run, out_dir=tmp_path, console=Console(file=io.StringIO(), width=400))
    evaluate.run(
        other,
        "test",
        replace(cfg, methods=("text",), decode=replace(cfg.decode, stop=(stop,))),
    )
    again = [json.loads(x) for x in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    said = [line["receivers"][RECEIVER]["text"] for line in again]
    assert [one["text"] for one in said] == [text.partition(stop)[0].strip() for text in texts]
    assert [one["ended"] == "stop" for one in said] == [stop in text for text in texts]
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["decode"]["stop"] == [stop]
    assert found["receivers"][RECEIVER]["text"]["disagreements"] == 0


def test_rows_that_a_tokenizer_changes_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """Those of an evaluation, and of a task with data of its own: here they alone have capitals."""
    own = shutil.copytree(models["mistral"], tmp_path / "mistral")
    state = json.loads((own / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Lowercase"}
    (own / "tokenizer.json").write_text(json.dumps(state))
    for split, name in (("train", "the goat"), ("eval", "the Goat")):
        rows = [
            {"context": f"{name} has {n} hats", "question": "so?", "answer": str(n)}
            for n in range(9)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    paths = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "eval")}
    raw = raw_config(models | {"mistral": own}, tmp_path / "run", methods=["text"], rows=8)
    raw["data"] = {"jsonl": paths}
    raw["layout"] = {"primer": "in", "anchor": ":", "question": ""}
    raw["stages"]["wire"]["train"] |= {
        "tasks": {"capitals": {"data": {"jsonl": {"train": paths["eval"]}}}},
        "curriculum": [{"share": 1.0, "mix": {"capitals": 1}}],
    }
    config = from_dict(raw)
    screen = Console(file=io.StringIO())
    other = Run(config, tmp_path, make_mesh(config.mesh), screen, tmp_path)
    cfg = config.stages["test"].evaluate
    assert cfg is not None
    changed = r"^receivers.*does not give the text back.*the Goat.*the goat"
    with pytest.raises(UserError, match=changed) as end:
        evaluate.run(other, "test", cfg)
    assert "\n" not in str(end.value)
    stage = config.stages["wire"].train
    assert stage is not None
    read = task_rows(config, stage)
    with pytest.raises(UserError, match=changed):
        parts_of(open_pipeline(config, other.mesh), config, stage, "wire", {}, read)


def test_two_receivers_choose_an_answer_together(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the sender reads each text once, whatever receivers, codecs and controls there are."""
    config = raw_config(models, tmp_path / "two", methods=["latent"], wire=["int8"])
    config["receivers"]["twin"] = config["receivers"][RECEIVER]
    run = make_run(from_dict(config), Console(file=io.StringIO(), width=200))
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    read: list[int] = []
    right = Bridge.extract

    def counted(self: Bridge, sender: Any, batch: Any, *more: Any) -> Any:
        jax.debug.callback(lambda ids: read.append(len(ids)), batch["source/ids"])
        return right(self, sender, batch, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Bridge, "extract", counted)
        evaluate.run(run, "test", cfg)
        jax.effects_barrier()
    # 22 rows in three batches of 8, of the training texts for `mean` two whole batches, and the
    # first batch once more, for the slots to look at.
    assert read == [8] * 6
    found = json.loads((run.run_dir / "metrics.json").read_text())["joint"]
    text = (run.run_dir / "predictions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    answers = {
        r: [line["receivers"][r]["latent"]["text"] for line in lines] for r in (RECEIVER, "twin")
    }
    assert answers[RECEIVER] != answers["twin"]  # readers of their own
    for i, line in enumerate(lines):
        assert line["joint"] in {texts[i] for texts in answers.values()}
    assert 0 <= found["rescored"]["em"] <= found["oracle"]["em"]
    assert isinstance(run.console.file, io.StringIO)
    assert "The receivers together: chosen by all of them: EM " in run.console.file.getvalue()

    # The scores that decide are those of the evaluation: here of the gold answers.
    pipeline = open_pipeline(run.config, run.mesh)
    trained = load_trained(run.config, run.run_dir, pipeline, before="test")
    drawn = examples.choose(load.load_rows(run.config.data, "eval", cfg.seed), 22, cfg.seed)
    collate = pipeline.collate([(e,) for e in drawn])
    silent = Console(file=io.StringIO())
    compared = compare.Comparison(pipeline, cfg, drawn, [], collate, silent, lambda: False)
    ctx = EvalContext(pipeline.frozen, trained.params, None, pipeline.bridge, "twin")
    compared = compared.sent(ctx, trained.mark, [])
    gold = [e.answers[0] for e in drawn]
    with jax.default_matmul_precision("highest"):
        (nats,) = rescore.log_probabilities([compared], ctx, [[*gold[:-1], " "]])
    lengths = [n for _, b in compared.batches for n in b["twin/answer/lengths"].tolist()]
    said = [line["receivers"]["twin"]["latent"]["nll"] for line in lines]
    np.testing.assert_allclose(-nats[:-1], (np.array(said) * lengths[:22])[:-1], rtol=1e-4)
    assert nats[-1] == -np.inf  # an empty answer is no candidate


def test_the_answer_with_the_most_nats_a_byte_is_picked() -> None:
    candidates = [["a", "abcd", "", ""], ["abcd", "a", "bé", ""]]
    scores = np.array([[-2.0, -4.0, -np.inf, -np.inf], [-4.0, -2.0, -9.0, -np.inf]])
    assert rescore.pick(candidates, scores) == ["abcd", "abcd", "bé", ""]


def test_sigterm_stops_between_batches_and_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    stop = Stop()
    stop.note(signal.SIGTERM, None)
    monkeypatch.setattr(evaluate, "termination", lambda: nullcontext(stop))
    screen = Console(file=io.StringIO(), width=200)
    with pytest.raises(SystemExit) as stopped:
        evaluate.run(
            replace(run, out_dir=tmp_path, console=screen), "test", replace(cfg, methods=("text",))
        )
    assert stopped.value.code == 143
    assert isinstance(screen.file, io.StringIO)
    assert "run the same command again" in screen.file.getvalue()
    assert not list(tmp_path.iterdir())


def test_parts_of_another_evaluation_are_not_read(tmp_path: Path) -> None:
    said = [Prediction("text", 1.5, 2, 0, True, None, 3, 4)]
    PredictionCache(tmp_path, key_of("rows", 1), len(said)).save("reader", "latent", said, 0.5)
    assert PredictionCache(tmp_path, key_of("rows", 1), len(said)).load("reader", "latent") == (
        said,
        0.5,
    )
    assert PredictionCache(tmp_path, key_of("rows", 2), len(said)).load("reader", "latent") is None
    assert PredictionCache(tmp_path, key_of("rows", 1), len(said)).load("reader", "text") is None


def test_the_mean_belongs_to_the_parameters_it_was_measured_with(
    run: Run, metrics: dict[str, Any]
) -> None:
    key = mean_latent.key_of(metrics["parameters"]["digest"], None, run.config.layout, 22)
    held = mean_latent.load(run.run_dir, key)
    assert held is not None
    assert held.shape == (6 + 1, 12)
    assert np.abs(held).max() > 0
    assert mean_latent.load(run.run_dir, "another") is None


def test_the_mean_is_one_of_training_texts(run: Run, lines: list[dict[str, Any]]) -> None:
    rows = load.load_rows(run.config.data, "train", run.config.seed)
    training = {rows[i][0].context for i in range(len(rows))}
    measured = {group[0].context for group in MEASURED}
    assert len(measured) == 22
    assert measured <= training
    assert not measured & {line["context"] for line in lines}


def test_another_runs_bridge_under_another_layout_says_so(
    models: dict[str, Path], run: Run, metrics: dict[str, Any], tmp_path: Path
) -> None:
    """Fault 4: a primer of the evaluation that differs from training's."""
    assert metrics["warnings"] == []
    raw = raw_config(models, tmp_path / "other", init_from=str(run.run_dir))
    raw["stages"]["test"]["evaluate"]["methods"] = ["token_budget_first"]  # a bridge, no controls
    del raw["stages"]["wire"]
    raw["stages"]["test"]["evaluate"] |= {"rows": 4, "layout": {"primer": "Text:"}}
    config = from_dict(raw)
    screen = io.StringIO()
    (tmp_path / "other").mkdir()
    console = Console(file=screen, width=200)
    other = Run(config, tmp_path / "other", run.mesh, console, tmp_path / "other")
    cfg = config.stages["test"].evaluate
    assert cfg is not None
    evaluate.run(other, "test", cfg)
    found = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert found["parameters"]["digest"] == metrics["parameters"]["digest"]
    (line,) = found["warnings"]
    assert "primer 'Context:' -> 'Text:'" in line
    assert line in screen.getvalue()


def test_what_is_loaded_must_be_what_was_trained(
    models: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None
    raw = raw_config(models, tmp_path)
    raw["bridge"]["compressor"]["perceiver"]["mlp_ratio"] = 2
    with pytest.raises(UserError, match=r"component bridge/compressor: .* parameters were trained"):
        evaluate.run(replace(run, config=from_dict(raw)), "test", cfg)
    raw = raw_config(models, tmp_path)
    raw["stages"] = {"test": raw["stages"]["test"], "later": raw["stages"]["wire"]}
    with pytest.raises(UserError, match="no train stage before it"):
        evaluate.run(replace(run, config=from_dict(raw)), "test", cfg)


def test_before_the_first_stage_the_bridge_is_the_one_it_starts_from(
    models: dict[str, Path], run: Run, metrics: dict[str, Any], tmp_path: Path
) -> None:
    raw = raw_config(models, tmp_path)
    raw["stages"] = {"test": raw["stages"]["test"], "later": raw["stages"]["wire"]}
    raw["stages"]["later"]["train"]["init_from"] = str(run.run_dir)
    pipeline = open_pipeline(run.config, run.mesh)
    found = load_trained(from_dict(raw), tmp_path, pipeline, before="test")
    assert found.digest == metrics["parameters"]["digest"]
    assert str(run.run_dir) in found.origin
    assert found.counts == metrics["parameters"]["components"]


def test_a_stage_starts_from_components_of_another_bridge(
    models: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    raw = raw_config(models, tmp_path)
    raw["bridge"]["reader"] = {"latent_adapters": {"heads": 2, "head_dim": 4}}
    raw["stages"] = {"later": raw["stages"]["wire"]}
    train = raw["stages"]["later"]["train"]
    train |= {"init_from": str(run.run_dir), "init_only": ["compressor"]}
    other = replace(run, config=from_dict(raw), run_dir=tmp_path)
    cfg = other.config.stages["later"].train
    assert cfg is not None
    pipeline = open_pipeline(other.config, run.mesh)
    found = start_params(other, "later", cfg, pipeline, jax.random.key(3))
    trained = load_trained(run.config, run.run_dir, open_pipeline(run.config, run.mesh)).params
    chex.assert_trees_all_equal(found["compressor"], trained["compressor"])
    assert "latent_adapters" in found["readers"][RECEIVER]
    wrong = replace(cfg, init_only=("encoder",))
    with pytest.raises(UserError, match="init_only: no component 'encoder' here; there are comp"):
        start_params(other, "later", wrong, pipeline, jax.random.key(3))
    with pytest.raises(UserError, match="init_only: it names components of init_from"):
        replace(cfg, init_from=None)


def test_other_frozen_models_are_refused(
    models: dict[str, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = run.config.stages["test"].evaluate
    assert cfg is not None

    def other(*args: Any, **more: Any) -> Any:
        pipeline = open_pipeline(*args, **more)
        return replace(pipeline, fingerprints=pipeline.fingerprints | {RECEIVER: "0000"})

    monkeypatch.setattr(evaluate, "open_pipeline", other)
    with pytest.raises(UserError, match=f"{RECEIVER}: the bridge was trained with frozen weights"):
        evaluate.run(run, "test", cfg)
