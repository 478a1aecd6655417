"""Docs are made of records alone: figures, intervals over seeds, alarms, missing things."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lw_jax.config.parse import from_dict
from lw_jax.errors import UserError
from lw_jax.results.__main__ import main
from lw_jax.results.columns import COLUMNS
from lw_jax.results.page import write_pages
from lw_jax.results.record import put, read_records, record_of, write_record
from lw_jax.results.tensorboard import write_events
from lw_jax.runs.directory import read_config

DOCS = Path(__file__).resolve().parents[2] / "docs"
CELLS = 1171
CONFIG = """
name: wire
run_dir: somewhere
seed: 42
stages:
  read: {train: {steps: 5, batch_size: 32, curriculum: [{share: 1.0, level: 2, ratio: null}]}}
  fit: {train: {steps: 20, optimiser: {lr: 0.5}}}
  report: {evaluate: {}}
receivers: {r: {path: nowhere, dtype: bfloat16}}
data: {facts: {}}
bridge: {latent_dim: 8, source: {bytes: {}}, compressor: {window: {size: 4}},
  reader: {soft_tokens: {}}}
objectives: {answer_ce: {weight: 1.0}}
"""


def metrics(em: float, columns: float = 4.0) -> dict[str, Any]:
    def method(value: float) -> dict[str, Any]:
        ci = {"em": [value - 0.1, value + 0.1]}
        return {"em": value, "n": 100, "compared": round(25 * columns), "ci": ci}

    return {
        "receivers": {
            "r": {
                "text": method(0.9),
                "latent": method(em),
                "token_budget_first": method(0.1),
                "token_budget_last": method(0.2),
                "deranged": method(0.0),
            }
        },
        "compression": {
            "receivers": {"r": {"tokens_per_column": columns, "characters_per_column": 10.0}},
            "latent": {"bytes": {"utf8": 300.0, "float16": 1000.0}},
        },
        "parameters": {"total": 1000},
        "joint": {},
        "verdict": {"r": {"carries": em > 0.6, "share": em if em > 0.6 else None}},
        "stage": "report",
        "versions": {"device": "cpu"},
        "data": {"rows": 100},
        "config": {},
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = []
    for i, em in enumerate((0.5, 0.7)):
        run = tmp_path / f"wire_{i}"
        run.mkdir()
        (run / "config.yaml").write_text(CONFIG)
        (run / "metrics.json").write_text(json.dumps(metrics(em, 2.0 + i)))
        (run / "finished.json").write_text('{"read": 30.0, "fit": 60.0, "report": 5.0}')
        lines = [
            {"stage": "read", "step": 5, "kind": "train", "loss": 3.0, "seconds_per_step": 1.0},
            {"stage": "fit", "step": 10, "kind": "train", "loss": 2.0, "seconds_per_step": 1.0},
            {"stage": "fit", "step": 10, "kind": "watch", "share_of_time": 1.5},
            {"stage": "fit", "step": 10, "kind": "evaluate", "r/alarm/collapse": 1},
            {"stage": "fit", "step": 20, "kind": "train", "loss": 1.5, "seconds_per_step": 3.0},
            {"stage": "fit", "step": 20, "kind": "watch", "share_of_time": 0.03},
            {"stage": "fit", "step": 20, "kind": "evaluate", "r/alarm/collapse": 1},
        ]
        (run / "diagnostics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        made.append(run)
    return made


def page(tmp_path: Path, runs: list[Path], **section: Any) -> Path:
    for run in runs:
        write_record(run, tmp_path / "docs" / "records" / "wires.jsonl")
    spec = {
        "title": "Results",
        "sections": [
            {
                "title": "Wires",
                "columns": list(COLUMNS),
                "rows": [{"label": "both", "records": ["wire_0", "wire_1"]}, "wire_0"],
                "picture": {
                    "file": "quality.png",
                    "alt": "quality",
                    "lines": {"wire": ["wire_0", "wire_1"]},
                },
            }
            | section
        ],
    }
    folder = tmp_path / "docs" / "results"
    folder.mkdir(exist_ok=True)
    (folder / "wires.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return folder


def test_the_page(tmp_path: Path, runs: list[Path]) -> None:
    folder = page(tmp_path, runs)
    written = write_pages(folder)
    assert [p.name for p in written] == ["wires.md", "quality.png"]
    assert all(p.stat().st_size for p in written)
    head, _, both, one = (line for line in written[0].read_text().splitlines() if "|" in line)
    cells = [dict(zip(head.split(" | "), line.split(" | "), strict=True)) for line in (both, one)]
    assert cells[0]["latent EM"].startswith("0.500 [0.400, 0.600], 0.700")
    assert cells[1]["latent EM"] == "0.500 [0.400, 0.600]"
    assert cells[0]["of text"] == "66.7%"
    assert cells[0]["better token budget EM"].startswith("0.200")
    assert cells[0]["alarms (from step)"] == "collapse (10)"
    assert cells[0]["minutes"] == "1.5"
    assert cells[0]["steps"] == "25"
    assert cells[0]["s a step"] == "2.000"
    assert cells[0]["last loss"] == "1.500"
    assert cells[0]["looks, of the time"] == "3.0%"
    assert cells[0]["steps to a loss of 0.2"] == "–"  # it never was there
    assert cells[0]["entities"] == "–"  # not measured: never a zero


def alone_and_together(
    tmp_path: Path, runs: list[Path], lines: list[dict[str, Any]], column: str
) -> list[str]:
    """A column of the first run, with these diagnostics, and of both runs as seeds."""
    (runs[0] / "diagnostics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    rows = ["wire_0", {"label": "both", "records": ["wire_0", "wire_1"]}]
    folder = page(tmp_path, runs, columns=[column], rows=rows)
    return [x for x in write_pages(folder)[0].read_text().splitlines() if "|" in x][-2:]


def test_steps_of_all_stages_until_the_last_has_learned(tmp_path: Path, runs: list[Path]) -> None:
    lines = [
        {"stage": "read", "step": 5, "kind": "train", "loss": 0.1, "seconds_per_step": 1.0},
        {"stage": "fit", "step": 10, "kind": "train", "loss": 0.3, "seconds_per_step": 1.0},
        {"stage": "fit", "step": 20, "kind": "train", "loss": 0.19, "seconds_per_step": 1.0},
    ]
    one, both = alone_and_together(tmp_path, runs, lines, "learned")
    assert one == "| wire_0 | 25 |"
    assert both == "| both | – |"  # the other seed's never was there


def test_what_was_measured_without_an_evaluation(tmp_path: Path, runs: list[Path]) -> None:
    measured = {"v1": {"steps": 9, "seconds_per_step": 0.25}}
    speed = {"name": "speed", "training": measured, "evaluations": {}}
    put(speed, tmp_path / "docs" / "records" / "speed.jsonl")
    row = {"record": "wire_0", "beside": {"cpu": {"record": "speed", "training": "v1"}}}
    folder = page(tmp_path, runs, columns=["cpu/seconds_per_step"], rows=[row])
    assert "| wire_0 | 0.250 |" in write_pages(folder)[0].read_text()
    row["beside"]["cpu"]["training"] = "v2"
    with pytest.raises(UserError, match="no training 'v2'"):
        write_pages(page(tmp_path, runs, columns=["cpu/seconds_per_step"], rows=[row]))


def test_a_run_stopped_in_training_has_figures_of_that_alone(
    tmp_path: Path, runs: list[Path]
) -> None:
    (runs[0] / "metrics.json").unlink()
    (runs[0] / "finished.json").write_text('{"read": 30.0}')
    columns = ["latent", "n", "steps", "loss"]
    folder = page(tmp_path, runs, columns=columns, rows=["wire_0"], picture=None)
    assert "| wire_0 | – | – | 25 | 1.500 |" in write_pages(folder)[0].read_text()
    (runs[0] / "diagnostics.jsonl").unlink()
    with pytest.raises(UserError, match="nor training there"):
        write_record(runs[0], tmp_path / "docs" / "records" / "wires.jsonl")


def test_an_alarm_that_ended_says_when(tmp_path: Path, runs: list[Path]) -> None:
    lines = [
        {"stage": "fit", "step": 10, "kind": "evaluate", "r/alarm/collapse": 1, "r/alarm/loud": 1},
        {"stage": "fit", "step": 20, "kind": "evaluate", "r/alarm/collapse": 0, "r/alarm/loud": 1},
    ]
    one, both = alone_and_together(tmp_path, runs, lines, "alarms")
    assert one == "| wire_0 | collapse (10 to 10), loud (10) |"
    assert both == "| both | collapse (10), loud (10) |"  # the other seed's did not end


def test_the_same_on_other_data_beside_it(tmp_path: Path, runs: list[Path]) -> None:
    row = {"label": "v1", "record": "wire_0", "beside": {"facts": {"record": "wire_1"}}}
    folder = page(tmp_path, runs, columns=["latent", "facts/latent"], rows=[row])
    head, _, line = (x for x in write_pages(folder)[0].read_text().splitlines() if "|" in x)
    assert head == "| run | latent EM | facts: latent EM |"
    assert line == "| v1 | 0.500 [0.400, 0.600] | 0.700 [0.600, 0.800] |"
    row["beside"] = {"facts": None}
    folder = page(tmp_path, runs, columns=["latent", "facts/latent"], rows=[row])
    assert "| v1 | 0.500 [0.400, 0.600] | – |" in write_pages(folder)[0].read_text()


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ({"columns": ["accuracy"]}, "unknown column 'accuracy'"),
        ({"columns": ["facts/latent"]}, "both has nothing beside it called 'facts'"),
        ({"rows": ["nowhere"]}, "no such record"),
        ({"rows": [{"record": "wire_0", "stage": "x"}]}, "no evaluation 'x'"),
        ({"rows": [{"record": "wire_0", "receiver": "x"}]}, "no receiver 'x'"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, runs: list[Path], section: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(UserError, match=wrong):
        write_pages(page(tmp_path, runs, **section))
    assert not (tmp_path / "docs" / "results" / "wires.md").exists()


def test_the_command(tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "records"
    assert main(["record", str(runs[0]), str(folder / "wires.jsonl")]) == 0
    assert read_records(folder).keys() == {"wire_0"}
    assert main(["record", str(tmp_path / "nothing"), str(folder)]) == 2
    assert "no config.yaml there" in capsys.readouterr().err


def test_help_is_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h", "help"):
        assert main([word]) == 0
        said = capsys.readouterr()
        assert "python -m lw_jax.results record RUN_DIR..." in said.out
        assert not said.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "results: expected record, write, tensorboard, normalised, reading; got nothing"),
        (
            ["recrod", "x", "y"],
            "results: expected record, write, tensorboard, normalised, reading; got recrod",
        ),
        (["record", "x"], "record: give a run directory, or several, and then a file"),
        (["write"], "write: give one folder, that of the pages' sources (docs/results)"),
        (["write", "nope.yaml"], "nope.yaml: no such folder; give that of the pages' sources"),
        (["tensorboard", "x", "y"], "tensorboard: give one run directory"),
        (["normalised"], "normalised: give the run directory of every seed"),
        (["normalised", "nope"], "nope: no metrics.json; give the directory of a finished"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words}")


def test_a_record_is_a_line_and_replaces_the_one_of_its_name(
    tmp_path: Path, runs: list[Path]
) -> None:
    folder = tmp_path / "records"
    file = folder / "wires.jsonl"
    for run in reversed(runs):
        assert write_record(run, file) == file
    before = file.read_text().splitlines()
    assert [json.loads(line)["name"] for line in before] == ["wire_0", "wire_1"]
    put({"name": "other", "training": {}, "evaluations": {}}, folder / "others.jsonl")
    (runs[0] / "metrics.json").write_text(json.dumps(metrics(0.25)))
    assert write_record(runs[0], folder) == file  # the folder is enough: it has a line already
    after = file.read_text().splitlines()
    assert after[1] == before[1]
    assert read_records(folder)["wire_0"]["evaluations"]["report"]["receivers"]["r"]["latent"][
        "em"
    ] == pytest.approx(0.25)
    assert [p.name for p in sorted(folder.iterdir())] == ["others.jsonl", "wires.jsonl"]
    with pytest.raises(UserError, match=r"'wire_0' is in .*wires.jsonl; give that file"):
        write_record(runs[0], folder / "others.jsonl")
    with pytest.raises(UserError, match="no record 'new' yet; name its file"):
        put({"name": "new"}, folder)


def test_a_write_that_fails_leaves_the_records_as_they_were(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "wires.jsonl"
    write_record(runs[0], file)
    before = file.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_record(runs[1], file)
    assert file.read_bytes() == before


def test_lines_that_are_no_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"name":"x"}\n{"name":\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 2: no record"):
        read_records(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"name":"x"}\n{"name":"x"}\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 2: 'x' is there twice"):
        read_records(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"name":"x"}\n')
    (tmp_path / "b.jsonl").write_text('{"name":"x"}\n')
    with pytest.raises(UserError, match=r"b.jsonl: 'x' is in another file as well"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    "line",
    [b"\xff", b"[" * 100_000, b'{"name":%s}' % (b"9" * 5000), b'{"name":["x"]}', b'{"name":3}']
    + [b"null", b"3", b'"name"', b'["name"]', b"\0", b"{}"],
)
def test_whatever_a_line_is_that_is_no_record(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"name":"x"}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"a.jsonl, line 2: no record"):
        read_records(tmp_path)
    with pytest.raises(UserError, match=r"a.jsonl, line 2: no record"):
        put({"name": "y"}, path)


def test_a_record_may_hold_any_text(tmp_path: Path) -> None:
    """U+2028 ends a line for some, and stands in JSON as it is."""
    path = tmp_path / "a.jsonl"
    for text in ("a\u2028b", "\x85", "\x1c", "\udcff"):
        record = {"name": "x", "config": {"name": text}}
        put(record, path)
        assert read_records(tmp_path) == {"x": record}


def test_a_record_has_the_configs_own_keys_alone(tmp_path: Path, runs: list[Path]) -> None:
    config = record_of(runs[0])["config"]
    assert config["stages"] == {
        "read": {"train": {"steps": 5, "curriculum": [{"share": 1.0, "level": 2}]}},
        "fit": {"train": {"steps": 20, "optimiser": {"lr": 0.5}}},
        "report": {"evaluate": {}},  # chosen, with nothing of its own
    }
    assert config.keys() == {
        "name", "stages", "receivers", "data", "bridge", "objectives"
    }  # fmt: skip
    written = replace(read_config(runs[0]), run_dir=None)
    assert from_dict(json.loads(json.dumps(config))) == written  # nothing is lost


def test_events_for_tensorboard(runs: list[Path]) -> None:
    for _ in range(2):  # written anew, never twice
        assert main(["tensorboard", str(runs[0])]) == 0
    (events,) = (runs[0] / "tensorboard" / "fit").glob("events.*")
    assert b"train/seconds_per_step" in events.read_bytes()


def test_why_there_are_no_events(runs: list[Path], tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            write_events(folder)
        assert "\n" not in str(caught.value)

    (tmp_path / "bridge.json").write_text("{}")
    refused(tmp_path, "an exported bridge, which has no diagnostics; give the directory of the run")
    (runs[1] / "diagnostics.jsonl").unlink()
    refused(runs[1], "this run has trained nothing, or nothing yet; figures .* in metrics.json")
    refused(tmp_path / "nothing", "no diagnostics.jsonl there, so it is no run directory")
    for line in (b"3", b"{", b"[]", b'{"stage": "fit"}', b"\xff", b"[" * 100_000):
        with (runs[0] / "diagnostics.jsonl").open("wb") as file:
            file.write(b'{"stage": "fit", "step": 1, "kind": "train"}\n' + line + b"\n")
        refused(runs[0], "diagnostics.jsonl:2: no line of diagnostics; take it out")


def test_the_pages_are_what_sources_and_records_say(tmp_path: Path) -> None:
    """So a false figure in a page, or in README, is one that this test finds."""
    home = tmp_path / "docs"
    shutil.copytree(DOCS / "results", home / "results", ignore=shutil.ignore_patterns("*.md"))
    (home / "records").symlink_to(DOCS / "records")
    shutil.copy(DOCS.parent / "README.md", tmp_path)
    shutil.copy(DOCS / "measured.md", home)
    written = [path for path in write_pages(home / "results") if path.suffix == ".md"]
    pages = {
        path: DOCS / "results" / path.name for path in written if path.parent.name == "results"
    }
    assert {p.name for p in pages} == {p.name for p in (DOCS / "results").glob("*.md")}
    others = {p: DOCS.parent / p.resolve().relative_to(tmp_path) for p in set(written) - set(pages)}
    assert {p.name for p in others.values()} == {"README.md", "measured.md"}
    for path, held in (pages | others).items():
        text = path.read_text().replace(str(home), "docs")
        assert text == held.read_text(), held


SAID = {
    "ablations": {"0.2", "0.70", "0.28", "0.001", "0.97"},
    "classification": {"0.25", "0.2", "0.3"},
    "columns": {"1.5", "0.70"},
    "facts": {"0.70", "0.006"},
    "latentwire": {"0.001", "0.03", "0.04", "0.06", "0.80", "0.85", "0.5"},
    "readback": {"0.70"},
    "soft_tokens": {"1.8", "0.1"},
    "telepathy": {"0.8"},
}
"""Numbers in prose that are no results of a run: settings, thresholds, a stop's name, what others
report."""


@pytest.mark.parametrize("source", sorted((DOCS / "results").glob("*.yaml")), ids=lambda p: p.stem)
def test_figures_in_prose_are_a_records_or_say_that_they_are_not(source: Path) -> None:
    """Decimals outside code and braces; a table may have "no record" in the text above it."""
    spec = yaml.safe_load(source.read_text())
    texts = [spec.get("text") or "", *(s.get("text") or "" for s in spec["sections"])]
    found = set()
    for text in texts if not spec.get("no_record") else ():
        plain = re.sub(r"```.*?```|`[^`]*`|\{[^{}]*\}", "", text, flags=re.DOTALL)
        above = ""
        for block in plain.split("\n\n"):
            if not (block.lstrip().startswith("|") and "no record" in above):
                found |= set(re.findall(r"(?<![\w.])\d+\.\d+", block))
            above = block
    assert found <= SAID.get(source.stem, set())


def cells(text: str) -> dict[str, list[list[str]]]:
    """The rows of each section's tables, by the section's title."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("| "):
            found.setdefault(title, []).append(re.split(r" *\| *", line.strip()[1:-1]))
    return found


def test_every_cell_is_as_it_was_on_one_page() -> None:
    """`tables.md`: the tables of docs/results.md before it was split into pages. A row that is
    measured again goes from there; those of several seeds went when their intervals became those of
    shared rows."""
    was = cells((Path(__file__).parent / "tables.md").read_text())
    pages = (path.read_text() for path in (DOCS / "results").glob("*.md"))
    now = {title: rows for page in pages for title, rows in cells(page).items()}
    assert sum(len(row) for rows in was.values() for row in rows) == CELLS
    for title, rows in was.items():
        assert [row for row in now[title] if row in rows] == rows, title


def test_a_verdict_of_several_seeds_and_answers_that_fit(tmp_path: Path, runs: list[Path]) -> None:
    rows: list[Any] = [{"label": "both", "records": ["wire_0", "wire_1"]}, "wire_0"]
    folder = page(tmp_path, runs, columns=["content", "within"], rows=rows, picture=None)
    text = write_pages(folder)[0].read_text()
    # The first seed carries nothing and has no share; 50 and 75 of its 100 answers fit.
    assert "| both | 1 of 2 seeds (0.70 of 1 seed) | 0.62 |" in text
    assert "| wire_0 | no | 0.50 |" in text


def test_a_row_may_be_about_another_method(tmp_path: Path, runs: list[Path]) -> None:
    row = {"label": "text", "record": "wire_0", "method": "text"}
    folder = page(tmp_path, runs, columns=["em", "latent"], rows=[row, "wire_0"], picture=None)
    text = write_pages(folder)[0].read_text()
    assert "| text | 0.900 [0.800, 1.000] | 0.500 [0.400, 0.600] |" in text
    assert "| wire_0 | 0.500 [0.400, 0.600] |" in text
    rows: list[Any] = [row | {"method": "relay"}]
    with pytest.raises(UserError, match="wire_0: no method 'relay' of receiver 'r'"):
        write_pages(page(tmp_path, runs, columns=["em"], rows=rows, picture=None))


def prose(tmp_path: Path, runs: list[Path], text: str, **names: Any) -> str:
    """What a section's text becomes."""
    folder = page(tmp_path, runs, text=text, rows=None, picture=None)
    spec = yaml.safe_load((folder / "wires.yaml").read_text()) | {"names": names}
    (folder / "wires.yaml").write_text(yaml.safe_dump(spec))
    return write_pages(folder)[0].read_text().partition("## Wires\n\n")[2].rstrip("\n")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("{wire_0.latent.em:.3f}", "0.500"),
        ("{wire_1.latent.em.low:.2f} to {wire_1.latent.em.high:.2f}", "0.60 to 0.80"),
        ("{both.latent.em:.3f}", "0.600"),  # the seeds' mean
        ("{told.method.em:.1f}", "0.9"),
        ("{wire_1.latent.em - wire_0.latent.em:+.2f}", "+0.20"),
        ("{wire_0.latent.em / wire_0.text.em:.0%}", "56%"),
        ("{wire_0.training.fit.loss:.1f}, {wire_0.training.fit.loss.10:.1f}", "1.5, 2.0"),
        ("{wire_0.evaluation.compression.latent.bytes.float16:,.0f}", "1,000"),
        ("{wire_0.config.stages.fit.train.optimiser.lr}", "0.5"),
        ("{wire_0.minutes} min, {wire_0.latent}", "1.5 min, 0.500 [0.400, 0.600]"),
        ("read by {no record: 0.9 of\n  all}.", "read by 0.9 of\n  all (no record)."),
        ("`{fit: null}`\n```\n{a.b}\n```", "`{fit: null}`\n```\n{a.b}\n```"),  # code is left alone
    ],
)
def test_figures_in_prose_are_of_records(
    tmp_path: Path, runs: list[Path], text: str, written: str
) -> None:
    both = {"records": ["wire_0", "wire_1"]}
    told = {"record": "wire_0", "method": "text"}
    assert prose(tmp_path, runs, text, both=both, told=told) == written


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{nowhere.latent.em}", "nowhere: no such record"),
        ("{wire_0.relay.em}", "the record has no method 'relay'"),
        ("{wire_0.latent.bleu}", "the record has no bleu"),
        ("{wire_0.latent.nll.low}", "the record has no ci.nll"),
        ("{wire_0.training.fit.loss.11}", "the record has no 11"),
        ("{wire_0.accuracy}", "unknown column 'accuracy'"),
        ("{wire_0.latent.em:.3q}", "code 'q'"),
        ("{wire_0}", "what of 'wire_0'"),
        ("{0.999}", "0: no such record"),
        ("{}", "no figure"),
    ],
)
def test_a_figure_that_no_record_has_is_no_figure(
    tmp_path: Path, runs: list[Path], text: str, wrong: str
) -> None:
    with pytest.raises(UserError, match="Wires: ") as said:
        prose(tmp_path, runs, f"It has {text}.")
    assert wrong in str(said.value)


def test_the_contents_name_each_page_once(tmp_path: Path, runs: list[Path]) -> None:
    folder = page(tmp_path, runs, picture=None)
    contents = {"title": "All", "contents": ["wires"], "sections": []}
    (folder / "README.yaml").write_text(yaml.safe_dump(contents))
    text = write_pages(folder)[0].read_text()
    assert "* [Results](wires.md)" in text
    for wrong in ([], ["wires", "wires"], ["wires", "others"]):
        (folder / "README.yaml").write_text(yaml.safe_dump(contents | {"contents": wrong}))
        with pytest.raises(UserError, match="contents must name each page once: wires"):
            write_pages(folder)


def test_help_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "record RUN_DIR" in capsys.readouterr().out
    assert main(["nothing"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "error: results: expected record, write, tensorboard, normalised, reading; got nothing"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("source", ["README", "readme", "measured", "out_of_template"])
def test_a_headlines_latent_stands_beside_its_controls(source: str) -> None:
    spec = yaml.safe_load((DOCS / "results" / f"{source}.yaml").read_text())
    tables = [s for s in spec["sections"] if s.get("rows")]
    assert tables
    for table in tables:
        # A method is a column, or rows are about one each: a rival tuned to read the text is that.
        rows = {
            "text" if row.get("method") == "prompt_tuning_text" else row.get("method")
            for row in table["rows"]
        }
        columns = set(table["columns"]) | (rows - {None})
        assert {"latent", "deranged", "text", "n"} <= columns
        for beside in {c.rpartition("/")[0] for c in columns}:
            assert f"{beside}/deranged".lstrip("/") in columns


def test_a_source_can_write_a_part_of_another_file(tmp_path: Path, runs: list[Path]) -> None:
    folder = page(tmp_path, runs, picture=None)
    (folder / "part.yaml").write_text(
        yaml.safe_dump(
            {
                "into": "../../READ.md",
                "sections": [
                    {"title": "Measured", "text": "It has {wire_0.latent.em:.3f}."},
                    {
                        "title": "",
                        "columns": ["latent"],
                        "rows": [{"label": "{wire_1.latent.em:.1f}", "record": "wire_1"}],
                    },
                ],
            }
        )
    )
    other = tmp_path / "READ.md"
    with pytest.raises(UserError, match=r"READ.md: no such file"):
        write_pages(folder)
    other.write_text("# A\n\nbefore\n")
    with pytest.raises(UserError, match=r"READ.md: expected a part between '<!-- part: written"):
        write_pages(folder)
    assert not (folder / "wires.md").exists()
    other.write_text("# A\n\nbefore\n\n<!-- part: -->\n\nold\n\n<!-- part: end -->\n\nafter\n")
    for _ in range(2):  # what is written can be written again
        assert other in [path.resolve() for path in write_pages(folder)]
        head, _, rest = other.read_text().partition("<!-- part: written by `python -m")
        assert head == "# A\n\nbefore\n\n"
        assert "\n\n## Measured\n\nIt has 0.500.\n\n| run | latent EM |\n" in rest
        assert "| 0.7 | 0.700 [0.600, 0.800] |\n\n<!-- part: end -->\n\nafter\n" in rest


def seeds(tmp_path: Path, count: int) -> list[Path]:
    """Evaluations of so many seeds on 60 questions of 6 articles; the text is always right."""
    made = []
    for seed in range(count):
        rng, lines = np.random.default_rng(seed), []
        for i in range(60):
            own = {"text": 1.0, "no_message": 0.0, "latent": float(rng.random() < 0.4 + 0.1 * seed)}
            some = {"em": float(i % 3 == 0), "tokens": 2}
            said = {k: {"f1": v, "nll": 3 - 2 * v} | some for k, v in own.items()}
            row = {"id": f"q{i}", "context_id": f"c{i}", "article": f"a{i % 6}"}
            lines.append(row | {"receivers": {"r": said}})
        made.append(tmp_path / f"seed_{seed}")
        made[-1].mkdir()
        ends = {"r": {"of": ["text"], "nothing": "no_message"}}
        metrics = {"normalised": ends, "data": {"seed": 7}}
        (made[-1] / "metrics.json").write_text(json.dumps(metrics))
        turned = lines[seed:] + lines[:seed]  # joined by id, not by place
        text = "".join(json.dumps(line) + "\n" for line in turned)
        (made[-1] / "predictions.jsonl").write_text(text)
    return made


def test_the_normalised_score_of_several_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [str(path) for path in seeds(tmp_path, 3)]

    def said(runs: list[str]) -> tuple[str, str]:
        assert main(["normalised", *runs]) == 0
        first, last = capsys.readouterr().out.splitlines()
        return first, last

    first, last = said(made)
    assert first.startswith("r: latent carries 0.")
    assert "intervals over 6 articles and 3 seeds" in last
    mean = np.mean(
        [
            json.loads(line)["receivers"]["r"]["latent"]["f1"]
            for run in made
            for line in (Path(run) / "predictions.jsonl").read_text().splitlines()
        ]
    )
    assert first.startswith(f"r: latent carries {mean:.2f} [")
    assert f"{mean:.2f} [" in first.rpartition(" in nats")[0].rpartition(", ")[0]
    assert "nothing 0.000; EM 0.333, 0.333, 0.333)" in first
    first, last = said(made[:2])
    assert "[" not in first and "no intervals of two seeds" in last
    assert "intervals over 6 articles." in said(made[:1])[1]
    path = Path(made[1]) / "predictions.jsonl"
    path.write_text(path.read_text().replace('"q3"', '"p3"'))
    assert main(["normalised", *made]) == 2
    assert "other rows than" in capsys.readouterr().err


def test_another_run_s_reader_may_be_the_upper_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, reader, other = seeds(tmp_path, 3)
    path = run / "predictions.jsonl"
    whole = '"text": {"f1": 1.0'
    path.write_text(path.read_text().replace(whole, '"text": {"f1": 0.5'))
    assert main(["normalised", str(run)]) == 0
    alone = capsys.readouterr().out
    path = reader / "predictions.jsonl"
    path.write_text(re.sub(r'"latent": {"f1": [0-9.]+', '"latent": {"f1": 0.9', path.read_text()))
    assert main(["normalised", str(run), f"text={reader}", f"text={other}"]) == 0
    said = capsys.readouterr().out
    assert "text 0.500, no_message 0.000" in alone
    assert f"{reader.name} 0.900, no_message 0.000" in said
    mean = float(re.findall(r"latent 0\.[0-9]+", said)[0].removeprefix("latent "))
    assert f"r: latent carries {mean / 0.9:.2f}"[:-1] in said
    assert main(["normalised", f"text={reader}"]) == 2
    assert "give the run directory of every seed" in capsys.readouterr().err
    again = tmp_path / "again" / reader.name
    shutil.copytree(reader, again)
    assert main(["normalised", str(run), f"text={reader}", f"text={again}"]) == 2
    assert "have the same name; rename one" in capsys.readouterr().err
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, *(line.replace('"latent"', '"bare"') for line in rest)]))
    assert main(["normalised", str(run), f"text={reader}"]) == 2
    assert f"{reader.name}: no line `latent` of the receiver r" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"q3"', '"p3"'))
    assert main(["normalised", str(run), f"text={reader}"]) == 2
    assert "other rows than" in capsys.readouterr().err


def test_a_record_keeps_the_normalised_score(tmp_path: Path, runs: list[Path]) -> None:
    for run, share in zip(runs, (0.5, 0.75), strict=True):
        metrics = json.loads((run / "metrics.json").read_text())
        (receiver,) = metrics["receivers"]
        one = {"share": share, "ci": [share - 0.1, share + 0.1], "own": 0.3}
        whole = {"share": 1.0, "ci": [1.0, 1.0], "own": 0.6}
        metrics["normalised"] = {
            receiver: {
                "lines": {"latent": {"f1": one, "nll": None}, "text": {"f1": whole, "nll": None}}
            }
        }
        for method, f1 in (("latent", 0.3 + share), ("text", 0.8)):
            metrics["receivers"][receiver][method]["f1"] = f1
        (run / "metrics.json").write_text(json.dumps(metrics))
    both = {"records": ["wire_0", "wire_1"]}
    drawn = {"file": "share.png", "alt": "Shares", "lines": {"ours": [both]}}
    drawn |= {"published": {"theirs": [[4, 0.9], [16, 0.6]]}}
    columns = ["normalised", "normalised_nll", "of_text"]
    folder = page(tmp_path, runs, columns=columns, picture=drawn)
    write_pages(folder)
    assert (folder / "share.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "wires.md").read_text()
    assert "| both | 0.500 [0.400, 0.600], 0.750 | – | 1.000, 1.312 |" in text


def test_two_seeds_have_no_interval_in_prose_either(tmp_path: Path, runs: list[Path]) -> None:
    both = {"records": ["wire_0", "wire_1"]}
    with pytest.raises(UserError, match="two seeds have no interval"):
        prose(tmp_path, runs, "{both.latent.em.low:.3f}", both=both)
    three = {"records": ["wire_0", "wire_1", "wire_0"]}
    assert prose(tmp_path, runs, "{three.text.em.low:.3f}", three=three) == "0.757"  # Wilson's


@pytest.mark.parametrize("stage", [[], {}, 3, None])
def test_an_evaluation_without_a_name_is_damaged(stage: Any, runs: list[Path]) -> None:
    path = runs[0] / "metrics.json"
    path.write_text(json.dumps(metrics(0.5) | {"stage": stage}))
    with pytest.raises(UserError, match=r"metrics.json is damaged .TypeError: its stage is no"):
        record_of(runs[0])


def changed_at(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A JSON tree with another value at a path."""
    if not path:
        return value
    key, *below = path
    held = dict(tree) if isinstance(tree, dict) else list(tree)
    held[key] = changed_at(tree[key], tuple(below), value)
    return held


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), {}),
        (("sections",), 3),
        (("sections",), [["a"]]),
        (("sections", 0), {}),
        (("sections", 0, "columns"), 0),
        (("sections", 0, "columns", 3), None),
        (("sections", 0, "rows", 1), 3),
        (("sections", 0, "picture", "lines"), 0),
        (("sections", 0, "picture", "lines", "wire", 0), True),
        (("sections", 0, "picture"), {"file": "a.png"}),
        (("sections", 0, "text"), 3),
        (("sections", 0, "text"), "{wire_0.text.em / wire_0.deranged.em:.2f}"),
        (("sections", 0, "text"), "{wire_0.latent:.2f}"),
    ],
)
def test_a_source_of_another_form_is_one_line(
    path: tuple[Any, ...], value: Any, tmp_path: Path, runs: list[Path]
) -> None:
    folder = page(tmp_path, runs, text="")
    source = folder / "wires.yaml"
    spec = changed_at(yaml.safe_load(source.read_text()), path, value)
    source.write_text(yaml.safe_dump(spec, sort_keys=False))
    with pytest.raises(UserError) as raised:
        write_pages(folder)
    assert "ires" in str(raised.value)  # of wires.yaml, or of its section Wires


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("training",), []),
        (("training", "fit", "alarms"), None),
        (("training", "fit", "course", 0), [None]),
        (("evaluations",), "a"),
        (("evaluations", "report"), []),
        (("evaluations", "report", "verdict"), None),
        (("evaluations", "report", "verdict", "r"), {}),
        (("evaluations", "report", "compression"), {}),
        (("evaluations", "report", "versions", "device"), 1),
        (("evaluations", "report", "receivers", "r", "latent", "em"), None),
        (("evaluations", "report", "receivers", "r", "latent", "ci"), "a"),
        (("evaluations", "report", "receivers"), {}),
    ],
)
def test_a_record_of_another_form_is_one_line(
    path: tuple[Any, ...], value: Any, tmp_path: Path, runs: list[Path]
) -> None:
    folder = page(tmp_path, runs)
    records = tmp_path / "docs" / "records" / "wires.jsonl"
    first, *others = records.read_text().splitlines()
    made = json.dumps(changed_at(json.loads(first), path, value))
    records.write_text("\n".join([made, *others]) + "\n")
    with pytest.raises(UserError, match=r"Wires: row .*has another form than is expected"):
        write_pages(folder)


def test_pages_and_pictures_are_written_all_or_none(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = page(tmp_path, runs)
    write_pages(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    spec = yaml.safe_load((folder / "wires.yaml").read_text())
    spec["sections"] *= 2
    spec["sections"][0] = {**spec["sections"][0], "picture": {**spec["sections"][0]["picture"]}}
    spec["sections"][0]["picture"]["title"] = "another"
    spec["sections"][1]["picture"] = {"file": "b.png", "alt": "b", "lines": {"wire": ["gone"]}}
    (folder / "wires.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    with pytest.raises(UserError, match="gone: no such record"):
        write_pages(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {n: x for n, x in after.items() if n != "wires.yaml"} == {
        n: x for n, x in before.items() if n != "wires.yaml"
    }


@pytest.mark.parametrize("step", ['"a"', "null", "1" + "0" * 400, "1.5"])
def test_a_line_of_diagnostics_of_another_form_is_named(step: str, runs: list[Path]) -> None:
    """Not the figures, which are whole."""
    path = runs[0] / "diagnostics.jsonl"
    wrong = f'{{"stage": "fit", "kind": "train", "step": {step}}}'
    lines = [*path.read_text().splitlines(), wrong]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"diagnostics.jsonl:8: no line of diagnostics"):
        write_events(runs[0])


def test_a_figure_of_diagnostics_of_another_form_is_not_one_of_the_evaluation(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise TypeError("no number")

    monkeypatch.setattr("lw_jax.train.board.Board.figures", fails)
    with pytest.raises(UserError, match=r"diagnostics.jsonl is damaged .TypeError: no number"):
        write_events(runs[0])
