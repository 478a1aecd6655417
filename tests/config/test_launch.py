"""The launcher: exit codes, one line for what is wrong, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lw_jax import launch
from lw_jax.config.parse import read
from tests.config.conftest import Write

Stages = list[tuple[str, str, Any]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Stages that were run, instead of running them."""
    calls: Stages = []

    def stage(kind: str) -> SimpleNamespace:
        def run(this: Any, name: str, config: Any) -> None:
            assert (this.run_dir / "config.yaml").is_file()
            calls.append((kind, name, SimpleNamespace(run=this, config=config)))

        return SimpleNamespace(run=run)

    monkeypatch.setattr(launch, "stage_module", stage)
    return calls


def wrong(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a bad command line gets; nothing may be left behind."""
    assert launch.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []
    return err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give either --config FILE or --evaluate RUN_DIR"),
        (["--config"], "--config: needs a value"),
        (["--config", "nowhere.yaml"], "--config: no such file: nowhere.yaml"),
        (["run"], "unexpected 'run'"),
        (
            ["-config", "a.yaml"],
            "unexpected '-config': flags look like --key=value (see --help); did",
        ),
        (["--config", "a.yaml", "--evaluate", "b"], "give either --config FILE or --evaluate"),
        (["--evaluate", "nowhere"], "nowhere: no config.yaml there"),
        (["--doctor", "--print_config", "--config", "a.yaml"], "give one of --doctor"),
        (["--help", "colour"], "--help colour: no such key"),
    ],
)
def test_bad_command_lines(
    argv: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in wrong(argv, capsys)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--bridge.latent_dmi=3", "did you mean bridge.latent_dim?"),
        ("--bridge.latent_dim", "--bridge.latent_dim: needs a value"),
        ("--bridge.latent_dim=x", "bridge.latent_dim: expected a whole number"),
        ("--sender.path=no/where", "sender.path: model 'no/where': no such directory here"),
        ("--receivers.reader.attention=cudnn", "receivers.reader.attention: cudnn needs an NVIDIA"),
        ("--bridge.source.hidden_states.layers=[3]", "hidden_states.layers: 3 is beyond"),
        ("--data={squad: {train: no.json, eval: no.json}}", "data: no.json: no such file"),
        ("--data={gsm8k: {train: nobody/nothing}}", "data: "),
        ("--stages.fit.train.init_from=nowhere", "stages.fit.train.init_from: nowhere has no"),
        ("--mesh.data=9", "mesh.data: 9 asks for 9 devices"),
        ("--mesh.data=3", "stages.fit.train.batch_size: 8 rows at once do not divide over 3"),
        ("--objectives.answer_ce=null", "objectives: none is set"),
    ],
)
def test_bad_configs_leave_nothing_behind(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str], flag: str, said: str
) -> None:
    assert said in wrong(["--config", str(write()), flag], capsys)
    assert ran == []


def test_readers_that_exclude_each_other(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--bridge.reader.coprocessor={}", "--bridge.reader.deep_prefix={}"]
    said = "bridge.reader: coprocessor and deep_prefix exclude each other; set one"
    assert said in wrong(["--config", str(write()), *flags], capsys)


def test_stages_run_in_order_and_once(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(write()), "--stages.fit.train.steps=2"]
    assert launch.main(argv) == 0
    assert [(kind, name) for kind, name, _ in ran] == [("train", "fit"), ("evaluate", "report")]
    given = ran[0][2]
    assert given.config.steps == 2
    assert given.run.run_dir == Path("runs/small")
    assert given.run.out_dir == given.run.run_dir
    assert given.run.command.endswith("--stages.fit.train.steps=2")
    assert dict(given.run.mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    capsys.readouterr()
    assert launch.main(argv) == 0
    assert len(ran) == 2
    assert "fit: done already" in capsys.readouterr().out


def test_a_stage_that_failed_is_run_again(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[Callable[[], None]] = [
        partial(os.kill, os.getpid(), signal.SIGINT),
        partial(os.kill, os.getpid(), signal.SIGTERM),
        lambda: None,
        lambda: None,
    ]
    names = []

    def run(this: Any, name: str, config: Any) -> None:
        names.append(name)
        ends.pop(0)()

    monkeypatch.setattr(launch, "stage_module", lambda kind: SimpleNamespace(run=run))
    argv = ["--config", str(write())]
    assert [launch.main(argv) for _ in range(3)] == [130, 143, 0]
    assert names == ["fit", "fit", "fit", "report"]
    out, err = capsys.readouterr()
    assert "run the same command again" in out
    assert "run the same command again" in err


def test_a_run_directory_belongs_to_one_config(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(write())]
    assert launch.main(argv) == 0
    assert launch.main([*argv, "--stages.fit.train.log_every=1"]) == 0  # may change
    assert launch.main([*argv, "--receivers.reader.attention=xla"]) == 0  # and so this: it is auto
    capsys.readouterr()
    assert launch.main([*argv, "--seed=1", "--stages.fit.train.steps=3"]) == 2
    err = capsys.readouterr().err
    assert "runs/small holds a run of another config" in err
    assert "seed was 42, is 1" in err
    assert "stages.fit.train.steps was 4, is 3" in err
    assert "give another --run_dir" in err
    assert err.count("\n") == 1
    assert read(Path("runs/small/config.yaml")).seed == 42
    assert launch.main([*argv, "--seed=1", "--run_dir=other"]) == 0
    assert read(Path("other/config.yaml")).seed == 1


def test_a_directory_of_something_else_is_left_alone(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/small").mkdir(parents=True)
    Path("runs/small/thesis.tex").write_text("x")
    assert launch.main(["--config", str(write())]) == 2
    assert "is no run directory" in capsys.readouterr().err
    assert [p.name for p in Path("runs/small").iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_made(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write()
    assert launch.main(["--config", str(path), f"--run_dir={path}/run"]) == 2
    assert "run_dir: cannot make" in capsys.readouterr().err


def test_two_processes_do_not_share_a_run_directory(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/small").mkdir(parents=True)
    holder = "import fcntl, sys; f = open('runs/small/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    wait = f"{holder}; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert launch.main(["--config", str(write())]) == 2
        other.communicate()
    assert "another process is running in runs/small" in capsys.readouterr().err
    assert launch.main(["--config", str(write())]) == 0


def test_print_config_reads_back(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write()
    argv = ["--config", str(path), "--print_config", "--bridge.latent_dim=16"]
    assert launch.main(argv) == 0
    printed = Path("printed.yaml")
    printed.write_text(capsys.readouterr().out)
    assert read(printed) == read(path, [("bridge.latent_dim", "16")])


def again(write: Write, ran: Stages, flags: list[str], **changes: Any) -> Any:
    assert launch.main(["--config", str(write(**changes))]) == 0
    ran.clear()
    assert launch.main(["--evaluate", "runs/small", *flags]) == 0
    ((kind, _, given),) = ran
    assert kind == "evaluate"
    return given


def test_a_finished_run_is_evaluated_again(write: Write, ran: Stages) -> None:
    flags = ["--methods=[text]", "--data.facts.levels=[2]", "--rows", "4", "--sender.quant=int8"]
    data = {"facts": {"levels": [1], "questions": 1}}
    given = again(write, ran, flags, data=data)
    assert given.config.methods == ("text",)
    assert given.config.rows == 4
    assert given.config.data.facts.levels == (2,)
    assert given.config.data.facts.questions == 1  # what no flag changed is the run's own
    assert given.run.config.sender.quant == "int8"
    assert given.run.run_dir == Path("runs/small")
    assert given.run.out_dir == Path("runs/small/evaluations/1")
    assert read(given.run.out_dir / "config.yaml") == given.run.config
    assert read(Path("runs/small/config.yaml")).stages["report"].evaluate.rows == 8  # type: ignore[union-attr]
    launch.main(["--evaluate", "runs/small"])
    assert Path("runs/small/evaluations/2/config.yaml").is_file()


def test_a_run_without_an_evaluation_can_be_evaluated(write: Write, ran: Stages) -> None:
    given = again(write, ran, [], **{"stages.report": None})
    assert given.config.rows == 1000
    assert list(given.run.config.stages) == ["fit", "evaluate"]


def test_bad_flags_of_an_evaluation(
    write: Write, ran: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["--config", str(write())]) == 0
    capsys.readouterr()
    assert launch.main(["--evaluate", "runs/small", "--methods=[txt]"]) == 2
    assert "unknown 'txt'" in capsys.readouterr().err
    for flag, why in (
        ("--run_dir=elsewhere", "--run_dir: an evaluation goes into its run's directory"),
        ("--stages.fit.train.steps=9", "--stages.fit.train.steps: an evaluation trains nothing"),
        ("--objectives.kd.weight=1", "--objectives.kd.weight: an evaluation trains nothing"),
    ):
        assert launch.main(["--evaluate", "runs/small", flag]) == 2
        assert why in capsys.readouterr().err
    assert not Path("runs/small/evaluations").exists()
    assert launch.main(["--evaluate", "runs/small", "--stages.report.evaluate.rows=4"]) == 0


def test_as_a_process(write: Write, models: dict[str, str]) -> None:
    def call(*argv: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "lw_jax.launch", *argv],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(Path(launch.__file__).parents[1]), "JAX_PLATFORMS": "cpu"},
        )

    bad = call("--config", str(write()), "--bridge.latent_dim=x")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == 'error: bridge.latent_dim: expected a whole number; got "x"\n'
    good = call("--help", "bridge.latent_dim")
    assert (good.returncode, good.stderr) == (0, "")
    assert "width d_z of a slot" in good.stdout


def test_what_the_user_has_set_stays() -> None:
    environ = {
        "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=true --xla_dump_to=here",
        "TOKENIZERS_PARALLELISM": "false",
    }
    before = dict(environ)
    launch.set_environment(environ)
    assert {name: environ[name] for name in before} == before


@pytest.mark.parametrize("module", ["lw_jax.launch", "lw_jax.__main__"])
def test_a_command_seldom_looks_for_unreachable_objects(module: str) -> None:
    code = (
        f"import gc, {module} as m\n"
        "m.sys.argv[1:] = ['--version']\n"
        "try: m.cli()\n"
        "except SystemExit: print(gc.get_threshold()[0])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(said.stdout.split()[-1]) == launch.OBJECTS > 10_000


def test_other_flags_are_kept_beside_its_own() -> None:
    environ = {"XLA_FLAGS": "--xla_dump_to=here"}
    launch.set_environment(environ)
    assert environ["XLA_FLAGS"].split() == [
        "--xla_dump_to=here",
        "--xla_gpu_enable_triton_gemm=false",
    ]
    launch.set_environment(once := {})
    assert once["XLA_FLAGS"] == "--xla_gpu_enable_triton_gemm=false"
    assert "TOKENIZERS_PARALLELISM" not in once  # as many threads as cores
