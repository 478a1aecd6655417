"""What no restructuring may change: initial parameters to the bit, the losses of a few steps, what
bridges that were exported before send and answer, what can be done with a run of before, and every
figure of the quickstart.

`golden/unchanged.json` was made by `golden/make_unchanged.py` from the code at commit f3f8990; it
names parameters by the paths that they had there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
import yaml

from lw_jax import Bridge
from lw_jax.bridge.paths import flat_name
from lw_jax.data.example import Example
from lw_jax.evaluate import packets
from lw_jax.evaluate.methods.base import EvalContext
from lw_jax.launch import main
from lw_jax.text.collate import Collate, measure

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "unchanged.json"
STEPS = 5
LONG = (
    "facts_two_receivers",
    "latentwire_smoke",
    "quickstart_scratch",
    "telepathy_v12",
    "telepathy_v15a",
)
"""Starts that take 15 seconds and more."""
MADE_WITH = "0.10."
"""Versions of jax whose compiler gives the golden losses; 0.11 differs from the sixth digit on."""
LOSS_TOLERANCE = 1e-6
MEASURED = "statistics"
"""A part of the paths of what is computed from models and texts, not drawn."""


def old_name(path: str) -> str:
    """The path at f3f8990 of the parameter that has this path today."""
    part, _, inside = path.partition("/")
    return f"{part}/{flat_name(inside)}" if part == "bridge" else path


@dataclass(frozen=True)
class Start:
    """How a train stage starts: its parameters by today's path, and the losses of its first
    steps, the first of which are taken twice (see `start_of`)."""

    params: dict[str, np.ndarray]
    losses: list[float]


def start_of(home: Path, config: str, stage: str, flags: Sequence[str]) -> Start:
    """Run the first steps of a stage as a user would, and read what its run directory holds.

    A step more than is asked for: the first one is taken at a learning rate of zero, so that its
    checkpoint has the parameters that the stage started from (only a codebook's `idle` has counted
    this step's codes).
    """
    steps = STEPS + 1
    values: dict[str, Any] = {"steps": steps, "save_every": 1, "keep": steps, "log_every": 1}
    values |= {"eval_every": 0, "workers": 0, "optimiser.schedule.start": 1}
    said = [f"--stages.{stage}.train.{key}={value}" for key, value in values.items()]
    run, path = home / "run", ROOT / "configs" / f"{config}.yaml"
    run_until(stage, path, home, f"--run_dir={run}", "--mesh.data=1", *said, *flags)
    losses = losses_of(run, stage)
    params = saved_params(run.absolute() / "checkpoints" / stage / "1")
    shutil.rmtree(run)  # pytest keeps what lies there, and all checkpoints are half a gigabyte
    return Start(params, losses)


def run_until(stage: str, config: Path, home: Path, *flags: str) -> None:
    """Run a config up to a stage."""
    names = list(yaml.safe_load(config.read_text())["stages"])
    later = names[names.index(stage) + 1 :]
    over = home / "over.yaml"
    over.write_text(json.dumps({"stages": dict.fromkeys(later)}))  # a null leaves a stage out
    assert main(["--config", str(config), "--config", str(over), *flags]) == 0


def losses_of(run: Path, stage: str) -> list[float]:
    """The losses that a run has logged in a stage."""
    lines = map(json.loads, (run / "diagnostics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]


def saved_params(checkpoint: Path) -> dict[str, np.ndarray]:
    """The parameters in a checkpoint by path, float32."""
    shapes = ocp.metadata(checkpoint, checkpointable_name="params").metadata
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
    leaves = jax.tree_util.tree_leaves_with_path(
        ocp.load(checkpoint, like, checkpointable_name="params")
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float32)
        for path, leaf in leaves
    }


@dataclass(frozen=True)
class Case:
    """A config, its first stage that trains, the flags that make it short, and the data that its
    rows are written for."""

    config: str
    stage: str
    flags: tuple[str, ...]
    rows: str | None = None


CALIBRATED = (
    "--stages.calibrate.calibrate.rows=8",
    "--stages.calibrate.calibrate.batch_size=8",
)
CASES = {
    "quickstart_scratch": Case(
        "quickstart_scratch",
        "align",
        ("--stages.align.train.batch_size=8",),
    ),
    "facts_two_receivers": Case(
        "facts_two_receivers",
        "read",
        (
            "--stages.read.train.init_from=null",
            "--stages.read.train.init_only=[]",
            "--stages.read.train.train_only=[]",
            "--stages.read.train.batch_size=4",
            "--stages.read.train.questions=2",
        ),
    ),
    "latentwire_smoke": Case(
        "latentwire/smoke",
        "a",
        (
            "--stages.a.train.batch_size=2",
            "--stages.a.train.watch_every=0",
            "--objectives.warm_up_align=null",  # as it was at f3f8990
            "--objectives.latent_align.schedule.on=all",
        ),
        "squad",
    ),
    # as these two were at f3f8990
    "telepathy_v12": Case(
        "telepathy/v12",
        "fit",
        (*CALIBRATED, "--stages.fit.train.optimiser.schedule.shape=constant"),
        "gsm8k",
    ),
    "telepathy_v15a": Case(
        "telepathy/v15a",
        "fit",
        (*CALIBRATED, "--stages.fit.train.batch_size=4", "--bridge.bottleneck.vq.start=normal"),
        "gsm8k",
    ),
}


def write_rows(data: str, home: Path) -> list[str]:
    """Write some rows in a data set's format; the flags that have them read."""
    shares = [f"--data.{data}.{key}_share=0.25" for key in ("eval", "validation")]
    if data == "squad":
        path = home / "rows.json"
        path.write_text(json.dumps({"data": [_article(i) for i in range(24)]}))
    else:
        path = home / "rows.jsonl"
        path.write_text("\n".join(json.dumps(_problem(i)) for i in range(48)) + "\n")
        shares.append(f"--data.{data}.decontaminate=0")
    return [f"--data.{data}.train={path}", f"--data.{data}.eval=null", *shares]


def _article(i: int) -> dict[str, Any]:
    """An article of SQuAD with one passage and two questions."""
    year, height = 1000 + 37 * i, 10 + 3 * i
    asked = {"When was it built?": f"{year}", "How tall is it?": f"{height} metres"}
    passage = {
        "context": f"The tower of Ur{i} was built in {year}. It is {height} metres tall.",
        "qas": [{"question": q, "answers": [{"text": a}]} for q, a in asked.items()],
    }
    return {"title": f"T{i}", "paragraphs": [passage]}


def _problem(i: int) -> dict[str, str]:
    """A word problem of GSM8K."""
    who, what = ("Ann", "Bob", "Eve")[i % 3], ("pens", "figs", "hats", "nuts")[i % 4]
    a, b = 2 + 7 * i % 97, 3 + 11 * i % 89
    question = f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have?"
    answer = f"{who} has {a}+{b}=<<{a}+{b}={a + b}>>{a + b} {what}.\n#### {a + b}"
    return {"question": question, "answer": answer}


def start(name: str, home: Path) -> Start:
    """How a case starts; run at the root of the repository."""
    case = CASES[name]
    rows = [] if case.rows is None else write_rows(case.rows, home)
    return start_of(home, case.config, case.stage, [*case.flags, *rows])


def digest(leaf: np.ndarray) -> str:
    """A leaf's shape, and the first half of the SHA-256 of its float32 bytes."""
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    return f"{shape} {hashlib.sha256(leaf.astype('<f4').tobytes()).hexdigest()[:32]}"


def sketch(leaf: np.ndarray) -> list[float]:
    """Two figures of a leaf: its RMS, and its product with a fixed direction of unit RMS."""
    x = leaf.astype(np.float64).ravel()
    direction = np.cos(np.arange(x.size)) * np.sqrt(2)
    return [float(np.sqrt(np.mean(np.square(x)))), float(np.mean(x * direction))]


def described(found: Start) -> dict[str, Any]:
    """A start as it stands in the golden file."""
    params = {old_name(path): leaf for path, leaf in sorted(found.params.items())}
    return {
        "drawn": {k: digest(x) for k, x in params.items() if MEASURED not in k.split("/")},
        "measured": {k: sketch(x) for k, x in params.items() if MEASURED in k.split("/")},
        "losses": found.losses,
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of a start, a line each."""
    found = [
        f"{path}: was {old['drawn'].get(path)}, is {new['drawn'].get(path)}"
        for path in sorted(old["drawn"].keys() | new["drawn"].keys())
        if old["drawn"].get(path) != new["drawn"].get(path)
    ]
    for path in sorted(old["measured"].keys() | new["measured"].keys()):
        was, now = old["measured"].get(path), new["measured"].get(path)
        if None in (was, now) or not np.allclose(was, now, rtol=0, atol=1e-6 * was[0]):
            found.append(f"{path}: was {was}, is {now}")
    was, now = old["losses"], new["losses"]
    if now != pytest.approx(was, rel=LOSS_TOLERANCE, abs=0):
        found.append(f"losses: were {was}, are {now}")
    return found


def known_starts(held: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The descriptions of a start that the golden file holds: the whole one, and others that differ
    from it in the digests and losses that `elsewhere` gives."""
    first = {key: value for key, value in held.items() if key != "elsewhere"}
    others = [
        first | {"drawn": first["drawn"] | one["drawn"], "losses": one["losses"]}
        for one in held.get("elsewhere", [])
    ]
    return [first, *others]


ASKED = (
    ("Ada Lumen keeps 7 goats in the barn.", "How many goats does Ada Lumen keep?"),
    (
        "Ben Korim works as a baker in Ostrin. Ben Korim keeps 31 cats in the attic.",
        "What does Ben Korim work as?",
    ),
    (
        "Cyril Supuz keeps 70 foxes in the valley. Milo Pedig moved to Dabavu to work as a "
        "teacher. Celia Tisib bought a silver kettle for 709 dollars.",
        "What did Celia Tisib buy?",
    ),
    (
        "Nadia Josef bought a brown vase for 12 dollars. Olga Zezem, who is 74 years old, was "
        "born in Vesojo. Ada Lumen works as a diver in Zelmora. Ben Korim keeps 5 hens in the "
        "yard. Milo Pedig feeds 28 donkeys in the meadow every day. Cyril Supuz is 19 years old.",
        "Where does Ada Lumen work?",
    ),
)
"""Texts, and what is asked about each."""
BRIDGES = {"facts": (None,), "facts_any_ratio": (None, 6.0)}
"""Bridges in the zoo, and the ratios at which they are asked."""


def as_version_1(data: bytes, digest: str) -> bytes:
    """A packet as version 1 of the wire wrote it: its mark was the CRC-32 of the parameters in
    hexadecimal digits, and its checksum was of all but the header."""
    _, _, codec, flags, _, m, d, _ = struct.unpack_from("<4sBBBBHHI", data)
    body = digest.encode()[:8] + data[24:]
    return struct.pack("<4sBBBxHHI", b"LWJX", 1, codec, flags, m, d, zlib.crc32(body)) + body


def sent_before(wire: Bridge, text: str, ratio: float | None) -> bytes:
    """What the bridge sends of a text that is padded to a multiple of 8 tokens, as version 1."""
    layout, sources = wire.pipeline.layout, wire.pipeline.sources
    bridge = wire.pipeline.bridge if ratio is None else wire.pipeline.bridge.at_ratio(ratio)
    rows = [(Example("", "", text, "", ("",)),)]
    batch = Collate(layout, sources, {}, measure(layout, sources, {}, rows))(rows)
    ctx = EvalContext(wire.pipeline.frozen, wire.trained.params, None, bridge, "")
    sent = jax.device_get(packets.encode(ctx, batch))
    (data,) = packets.to_packets(bridge, sent, None, wire.trained.mark)
    return as_version_1(data, wire.trained.digest)


def sent_and_answered(name: str, count: int | None = None) -> dict[str, list[str]]:
    """By ratio: of each text the first half of the SHA-256 of the bytes that the bridge sends, and
    the answer made of them. `count`: of the first texts; None: of all."""
    wire, found = Bridge.load(f"zoo/bridges/{name}"), {}
    for ratio in BRIDGES[name]:
        lines = []
        for text, question in ASKED[:count]:
            sent = sent_before(wire, text, ratio)
            answer = wire.answer(wire.encode(text, ratio=ratio), question)
            lines.append(f"{len(sent)} {hashlib.sha256(sent).hexdigest()[:32]} {answer}")
        found[str(ratio)] = lines
    return found


OLD_CONFIG = GOLDEN.parent / "old_run" / "old_run.yaml"
OLD_RUN = OLD_CONFIG.with_name("run.tar.xz")


def unpack_old_run(home: Path) -> Path:
    """The directory of a run that was trained and evaluated at f3f8990."""
    with tarfile.open(OLD_RUN) as packed:
        packed.extractall(home, filter="data")
    return home / "old_run"


def start_from_old_run(home: Path) -> list[float]:
    """The losses of a run that starts from the bridge of the old one."""
    old, new = unpack_old_run(home), home / "new"
    run_until("fit", OLD_CONFIG, home, f"--run_dir={new}", f"--stages.fit.train.init_from={old}")
    return losses_of(new, "fit")


def without_times(tree: Any) -> Any:
    """A JSON tree without how long things took."""
    if isinstance(tree, Mapping):
        return {k: without_times(v) for k, v in tree.items() if not k.startswith("seconds")}
    return [without_times(v) for v in tree] if isinstance(tree, list) else tree


QUICKSTART_STAGES = {"before": "before/", "report": ""}
"""The stages of the quickstart that evaluate, and where in the run directory their files are."""


def run_quickstart(home: Path) -> Path:
    """Run the quickstart as a user does, in a process of its own; its run directory.

    Answers ended only at EOS then.
    """
    command = [sys.executable, "-m", "lw_jax.launch", "--config", "configs/quickstart.yaml"]
    command += [f"--stages.{stage}.evaluate.decode.stop=[]" for stage in QUICKSTART_STAGES]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # the tests' own
    run = home / "quickstart"
    subprocess.run([*command, f"--run_dir={run}"], check=True, cwd=ROOT, env=environment)
    return run


def quickstart_figures(run: Path) -> dict[str, Any]:
    """All that the quickstart's run directory says, times left out; predictions as a digest."""
    found: dict[str, Any] = {"losses": losses_of(run, "fit")}
    for stage, place in QUICKSTART_STAGES.items():
        metrics = json.loads((run / f"{place}metrics.json").read_text(encoding="utf-8"))
        told = {key: metrics[key] for key in ("receivers", "verdict", "compression")}
        said = hashlib.sha256()
        for line in (run / f"{place}predictions.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts = {
                name: {method: own["text"] for method, own in methods.items()}
                for name, methods in row["receivers"].items()
            }
            said.update(json.dumps([row["id"], texts], sort_keys=True).encode())
        parameters = {key: metrics["parameters"][key] for key in ("digest", "total")}
        found[stage] = without_times(told) | parameters | {"predictions": said.hexdigest()}
    return found


def said_then(now: Any, then: Any) -> Any:
    """What is said now, without the keys and the last entries of lists that were not there then."""
    if isinstance(then, Mapping):
        return {key: said_then(now[key], value) for key, value in then.items()}
    if isinstance(then, list):
        return [said_then(one, other) for one, other in zip(now, then, strict=False)]
    return now


def golden(part: str) -> Any:
    """A part of the golden values."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))[part]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the configs name the models from there


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in CASES]
)
@pytest.mark.skipif(
    not jax.__version__.startswith(MADE_WITH),
    reason=f"its losses are those of programs of jax {MADE_WITH}; other compilers round otherwise",
)
def test_a_stage_starts_as_before(name: str, tmp_path: Path) -> None:
    # What that commit computed; and on another processor what 3adf45d did, see golden/README.md.
    now = described(start(name, tmp_path))
    found = [differences(one, now) for one in known_starts(golden("starts")[name])]
    assert not all(found), "\n\nor, on another processor,\n".join(map("\n".join, found))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("facts", 2, id="facts"),
        pytest.param("facts", None, id="facts, all texts", marks=pytest.mark.slow),
        pytest.param("facts_any_ratio", None, id="facts_any_ratio", marks=pytest.mark.slow),
    ],
)
def test_a_bridge_that_ships_sends_and_answers_as_before(name: str, count: int | None) -> None:
    # What that commit computed on each of two kinds of processors, which round otherwise; and on a
    # third what 29f93f4 did, whose values on the other two are those of that commit.
    known = [one[name] for one in golden("bridges")]
    known = [{ratio: lines[:count] for ratio, lines in one.items()} for one in known]
    assert sent_and_answered(name, count) in known


def test_an_old_run_is_evaluated(tmp_path: Path) -> None:
    run = unpack_old_run(tmp_path)
    assert main(["--evaluate", str(run)]) == 0
    old, new = (
        json.loads((home / "metrics.json").read_text()) for home in (run, run / "evaluations" / "1")
    )
    assert new["parameters"]["digest"] == old["parameters"]["digest"]
    ((name, was),), ((same, now),) = (m["receivers"].items() for m in (old, new))
    assert name == same
    assert was.keys() == now.keys()
    for method, figures in was.items():
        for key in ("em", "f1", "nll", "first_top1", "first_top5", "n", "columns"):
            assert now[method][key] == pytest.approx(figures[key], rel=LOSS_TOLERANCE), (
                method,
                key,
            )


@pytest.mark.slow  # what it reads of the old run, its evaluation reads
def test_an_old_run_is_started_from(tmp_path: Path) -> None:
    found = start_from_old_run(tmp_path)
    # What that commit computed on each of two kinds of processors, which round otherwise; and on a
    # third what 29f93f4 did, whose values on the other two are those of that commit.
    known = golden("started_from_old_run")
    assert any(found == pytest.approx(one, rel=LOSS_TOLERANCE, abs=0) for one in known), found


@pytest.mark.slow  # a checkpoint alone is refused in test_old_names.py
def test_an_unfinished_old_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unpack_old_run(tmp_path)
    shutil.rmtree(run / "checkpoints" / "fit" / "4")
    for name in ("finished.json", "metrics.json", "predictions.jsonl", "mean_latent.npz"):
        (run / name).unlink()
    kept = [p for p in run.rglob("*") if p.is_file() and p.name != "config.yaml"]
    before = {path: path.read_bytes() for path in kept}
    assert main(["--config", str(OLD_CONFIG), f"--run_dir={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "an earlier version began this run" in line
    assert "init_from" in line
    assert before == {path: path.read_bytes() for path in kept}  # and nothing of it is lost


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five minutes on two cores
def test_the_quickstart_has_the_same_figures_to_the_last_digit(tmp_path: Path) -> None:
    then = golden("quickstart")
    for stage in QUICKSTART_STAGES:  # what adapters read was not counted
        for counted in then[stage]["compression"]["receivers"].values():
            del counted["kv_entries"]
    assert said_then(quickstart_figures(run_quickstart(tmp_path)), then) == then
