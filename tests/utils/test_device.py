"""A GPU that is there and that jax cannot use ends a run before it begins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lw_jax.__main__ import main
from lw_jax.config.parse import read, to_yaml
from lw_jax.errors import UserError
from lw_jax.utils import device
from lw_jax.utils.device import gpu_expected, peak_memory, use_device
from lw_jax.utils.failures import DETERMINISTIC, in_one_line


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    return tmp_path


def test_what_says_that_there_is_a_gpu(root: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert gpu_expected({}, none) is None
    assert gpu_expected({}, root) == "/dev/nvidiactl is there"
    assert gpu_expected({"CUDA_VISIBLE_DEVICES": "0,1"}, none) == "CUDA_VISIBLE_DEVICES is 0,1"
    for hidden in ("", "-1"):
        assert gpu_expected({"CUDA_VISIBLE_DEVICES": hidden}, root) is None


def test_a_gpu_without_jax_for_it_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has a CPU alone; whatever platform the tests were started on is left aside."""
    import jax

    if jax.default_backend() != "cpu":
        pytest.skip("jax has a GPU here")
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", None)
        with pytest.raises(UserError, match=r"device: /dev/nvidiactl is there, and jax .* no GPU"):
            use_device("auto", {}, root)
        use_device("auto", {"JAX_PLATFORMS": "cpu"}, root)
        use_device("auto", {}, root / "none")
        use_device("cpu", {}, root)
        assert jax.config.jax_platforms == "cpu"
    finally:
        jax.config.update("jax_platforms", before)
    assert peak_memory() == []  # a CPU does not say


@pytest.mark.slow
def test_a_run_says_so_in_one_line(tmp_path: Path) -> None:
    code = (
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = '0'; os.environ.pop('JAX_PLATFORMS', 0)\n"
        "import sys; from lw_jax.launch import main\n"
        "sys.exit(main(['--config', 'configs/facts.yaml', '--run_dir', sys.argv[1]]))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: device: CUDA_VISIBLE_DEVICES is 0, and jax")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("gpu_out_of_reach")
@pytest.mark.parametrize("words", ["probe leak RUN", "questions RUN RUN TEXTS --out=OUT"])
def test_so_do_probes_and_the_writing_of_questions(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They take as long as a run; what the run's config allows, they may."""
    asked = [("layout.target", "question_answer"), ("layout.question_in", "latent")]
    text = to_yaml(read(Path("configs/quickstart.yaml"), asked))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"context": "one more word " * 20}) + "\n")
    for name in ("RUN", "TEXTS", "OUT"):
        place = {"RUN": tmp_path, "TEXTS": tmp_path / "texts.jsonl", "OUT": tmp_path / "o.jsonl"}
        words = words.replace(name, str(place[name]))
    for asked_for in ("auto", "cpu"):
        (tmp_path / "config.yaml").write_text(text.replace("device: auto", f"device: {asked_for}"))
        assert main(words.split()) == 2  # nothing was trained there, either
        said = capsys.readouterr().err
        assert said.startswith("error: device: CUDA_VISIBLE_DEVICES is 0") == (asked_for == "auto")


def test_deterministic_programs_are_asked_for_before_jax_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environ = {"XLA_FLAGS": "--a=1"}
    monkeypatch.setattr(device, "jax_uses_devices", lambda: False)
    device.be_deterministic(environ)
    assert environ["XLA_FLAGS"] == f"--a=1 {DETERMINISTIC}"
    monkeypatch.setattr(device, "jax_uses_devices", lambda: True)
    device.be_deterministic(environ)  # it is so already
    with pytest.raises(UserError, match="deterministic: jax runs already; set XLA_FLAGS="):
        device.be_deterministic({})


def test_a_program_that_cannot_be_deterministic_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = "INVALID_ARGUMENT: Reshape input and output shapes must be the same, got 8 -> 4x2"
    error = jax.errors.JaxRuntimeError(refused)
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    assert in_one_line(error) is None  # a fault of the program, not of the flag
    monkeypatch.setenv("XLA_FLAGS", f"--a=1 {DETERMINISTIC}")
    said = in_one_line(error)
    assert said is not None
    assert "set deterministic to false" in said
    assert "got 8 -> 4x2" in said
    assert in_one_line(ValueError(refused)) is None
