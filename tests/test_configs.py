"""Every config in the tree is read, and every part of it fits, from shapes alone: no network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

from benchmarks import real_cells
from lw_jax.bridge.config import to_be_trained
from lw_jax.config.parse import read
from lw_jax.config.schema import Config
from lw_jax.mesh import MeshConfig, make_mesh
from lw_jax.models.checkpoint import read_arch
from lw_jax.models.encoder_arch import AnyArch, EncoderArch, arch_from_hf
from lw_jax.models.spec import FrozenSpec
from lw_jax.runs.abstract import AbstractStep, abstract_step, size_in_bytes
from lw_jax.runs.grid import grid
from lw_jax.text.tokenizer import Tokenizer
from lw_jax.train.optimiser import groups, trained_leaves
from lw_jax.utils.registry import chosen
from lw_jax.utils.schedule import BatchKind

ROOT = Path(__file__).parents[1]
OVERLAYS = sorted((ROOT / "configs" / "overlays").glob("*.yaml"))
RIVALS = sorted((ROOT / "configs" / "classification" / "rivals").glob("*.yaml"))
REAL = ROOT / "configs" / "real"
REAL_RIVALS = sorted((REAL / "rivals").glob("*.yaml"))
REAL_OVERLAYS = sorted([*(REAL / "overlays").glob("*.yaml"), *(REAL / "whose").glob("*.yaml")])
REAL_CELLS = sorted((REAL / "cells").glob("*.yaml"))
LATENTWIRE = ROOT / "configs" / "latentwire"
SWEEP = LATENTWIRE / "sweep.yaml"
SWEEPS = sorted((LATENTWIRE / "sweeps").glob("*.yaml"))
PARTS = {*OVERLAYS, *RIVALS, *REAL_RIVALS, *REAL_OVERLAYS, *REAL_CELLS, SWEEP, *SWEEPS}
FILES = sorted(set((ROOT / "configs").rglob("*.yaml")) - PARTS)
CLASSIFICATION = [path for path in FILES if path.parent.name == "classification"]
TELEPATHY = [path for path in FILES if path.parent.name == "telepathy"]
QUICK = ("v15a",)
"""A version that is traced by default; it has a codebook."""
SHAPES = ROOT / "configs" / "shapes"
NAMES = [str(path.relative_to(ROOT / "configs")) for path in FILES]
GIB = 2**30
NOT_ASKED = Tokenizer("", Backend(WordLevel({})), None, 0)
"""Shapes need no tokenizer."""
MUON = """
    kernel key_kernel query_kernel value_kernel out_kernel k v
    q_down q_up k_down k_up v_down v_up o_down o_up up_kernel down_kernel
    window_1_kernel window_2_kernel window_4_kernel
"""
ADAM = """
    bias codebook colour_bias colour_gain deviations directions embedding gain gate gates idle
    log_k log_scale log_v mean mix pool_queries prompt_tokens queries scale source_mean source_std
    target_mean target_std tokens window_positions
"""
GROUP_OF = dict.fromkeys(MUON.split(), "muon") | dict.fromkeys(ADAM.split(), "adam")
"""What the optimiser takes each leaf for, by its name: trained bridges depend on it."""


def arch_of(path: str) -> AnyArch:
    """The arch of a model that ships, or of a hub model whose facts are in the tree."""
    if (ROOT / path).is_dir():
        return read_arch(ROOT / path)
    facts = SHAPES / f"{Path(path).name.lower()}.json"
    assert facts.is_file(), f"{path} neither ships nor has its facts in {facts}"
    return arch_from_hf(json.loads(facts.read_text()))


def steps(config: Config, mesh: MeshConfig, kind: BatchKind = "latent") -> list[AbstractStep]:
    """The first step of that kind of each train stage."""
    models = ({} if config.sender is None else {"sender": config.sender}) | config.receivers
    specs = {n: FrozenSpec(n, m, arch_of(m.path), NOT_ASKED) for n, m in models.items()}
    lengths = {}
    if config.bridge is not None:
        lengths = {config.bridge.batch_key(view): 64 for view in config.bridge.views}
    for name in config.receivers:
        lengths |= {f"{name}/context": 64, f"{name}/ask": 16, f"{name}/answer": 8}
    return [
        abstract_step(config, stage.train, specs, lengths, make_mesh(mesh), kind)
        for stage in config.stages.values()
        if stage.train is not None
    ]


def undivided(config: Config) -> Config:
    """With whole batches, which are traced once: microbatches have tests of their own."""
    whole = {
        name: stage
        if stage.train is None
        else replace(stage, train=replace(stage.train, accumulate=1))
        for name, stage in config.stages.items()
    }
    return replace(config, stages=whole)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_is_read(path: Path) -> None:
    config = read(path)
    assert config.stages
    assert path.stem.replace("_", "-") in config.name.replace("_", "-")


@pytest.mark.parametrize("path", sorted(REAL.rglob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_between_real_models_says_minutes_and_what_it_reached(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    words = " ".join(line.removeprefix("#") for line in takewhile(lambda x: x[:1] == "#", lines))
    words = " ".join(words.split())
    minutes = r"\b([\d.]+|four|five) (s|minutes|hours)\b[^;:]{0,70}\bH200\b"
    assert re.search(minutes, words), "it says no minutes of one H200"
    assert re.search(r"[Rr]eached|[Nn]ot( yet)? run|\bRun (\d|with)|Of 2,500 sentences", words)


ALIKE = (
    *(f"ablations/{n}_first.yaml" for n in ("alignment", "continuation", "readback")),
    "ablations/questions_alone.yaml",
    *(f"classification/{n}.yaml" for n in ("sst2", "topics", "trec")),
    *(f"{n}.yaml" for n in ("facts_any_ratio", "facts_qwen", "facts_two_receivers", "gsm8k")),
    *(f"{n}.yaml" for n in ("quickstart", "quickstart_scratch", "squad")),
    *("latentwire/pca_tokens.yaml", "telepathy/default.yaml"),
)
"""Configs whose steps have the parts of another one's, which is traced by default."""
REPEATED = ("latentwire/smoke.yaml", "real/questions.yaml")
"""Configs whose later train stages have the parts of the first, which is traced by default."""
LARGEST = ("hero", "final_plan", "interlingua", "phase_1b_annealed")


def _traced() -> list[Any]:
    """All configs; of those that are alike only the parameters are made by default, and none of the
    versions (but QUICK, from which the others differ in a few keys), of LatentWire's smokes and
    suite, and of the largest."""
    found = []
    for path, name in zip(FILES, NAMES, strict=True):
        version = path.parent.name == "telepathy" and path.stem not in ("default", *QUICK)
        late = version or path.parent.name in ("smokes", "suite") or path.stem in LARGEST
        late |= path.parent.name == "real" and path.stem not in ("questions", "closed_form")
        marks = pytest.mark.slow if late or name in (*ALIKE, *REPEATED) else ()
        found.append(pytest.param(path, None, id=name, marks=marks))
        if name in ALIKE:
            found.append(pytest.param(path, 0, id=f"{name} parameters"))
        if name in REPEATED:
            found.append(pytest.param(path, 1, id=f"{name} first stage"))
    return found


@pytest.mark.parametrize(("path", "traced"), _traced())
def test_its_parts_fit(path: Path, traced: int | None) -> None:
    """The parameters of all train stages, and the steps of so many; None: of all."""
    for i, step in enumerate(steps(undivided(read(path)), MeshConfig(data=1))):
        found = groups(step.state.params)
        assert found == {path: GROUP_OF[path.rpartition("/")[2]] for path in found}
        if traced is not None and i >= traced:
            continue
        state, metrics = jax.eval_shape(step.step, *step.arguments)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), step.state
        )
        assert metrics["loss"].shape == ()


def test_a_step_has_the_stages_latent_dropout() -> None:
    """What is compiled to say what memory it takes is the step that will be taken."""
    config = read(LATENTWIRE / "smoke.yaml", [("bridge.refiner.depth", "1")])
    (step, _) = steps(config, MeshConfig(data=1), "text")
    _, metrics = jax.eval_shape(step.step, *step.arguments)
    assert "latent_keep" in metrics
    assert "share/text_ce" in metrics and "share/answer_ce" not in metrics


def test_the_facts_of_the_real_models() -> None:
    archs = {path.stem: arch_of(path.stem) for path in SHAPES.glob("*.json")}
    llama, qwen = archs["llama-3.1-8b-instruct"], archs["qwen2.5-7b-instruct"]
    mistral = archs["mistral-7b-instruct-v0.3"]
    assert llama.eos_ids == (128001, 128008, 128009)
    assert llama.rope.scaling is not None
    assert (qwen.qkv_bias, qwen.heads, qwen.kv_heads, qwen.window) == (True, 28, 4, None)
    assert (mistral.vocab_size, mistral.rope.theta, mistral.window) == (32768, 1e6, None)
    minilm = archs["all-minilm-l6-v2"]
    assert isinstance(minilm, EncoderArch)
    assert (minilm.layers, minilm.width, minilm.head_dim, minilm.max_positions) == (6, 384, 32, 512)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Llama-3.1-8B, its layer 16 tapped, to Mistral-7B."""
    path = tmp_path_factory.mktemp("configs") / "real.yaml"
    path.write_text(
        """
        name: real
        sender: {path: meta-llama/Llama-3.1-8B-Instruct, dtype: float32}
        receivers: {mistral: {path: mistralai/Mistral-7B-Instruct-v0.3, dtype: float32}}
        data: {facts: {}}
        bridge:
          latent_dim: 256
          source: {hidden_states: {layers: [16]}}
          compressor: {perceiver: {slots: 32}}
          reader: {soft_tokens: {}, deep_prefix: {}}
        objectives: {answer_ce: {}, kd: {}}
        stages: {fit: {train: {steps: 10, batch_size: 8}}}
        """
    )
    return read(path)


def test_an_8b_wire_compiles_on_four_devices(real: Config) -> None:
    (step,) = steps(real, MeshConfig(data=2, tensor=2))
    # 16 of the sender's layers without its head (15 GiB in float32), and the receiver (27 GiB):
    # halves of most, as the key/value heads, too, are split
    assert 19 * GIB < size_in_bytes(step.frozen) < 23 * GIB
    compiled = step.step.lower(*step.arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 2 * GIB  # a copied stack of weights alone is more
    given = jax.tree.leaves(compiled.input_shardings[0][0])
    taken = jax.tree.leaves(compiled.output_shardings[0])
    for before, after, leaf in zip(given, taken, jax.tree.leaves(step.state), strict=True):
        assert after.is_equivalent_to(before, leaf.ndim)  # or the next step compiles again


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_names_models_whose_facts_are_known(overlay: Path) -> None:
    both_answer = overlay.stem in ("llama_qwen", "smollm_and_qwen")
    under = LATENTWIRE / "hero.yaml" if both_answer else TELEPATHY[0]
    config = read(under, over=[overlay])
    assert config.bridge is not None
    if config.sender is not None:
        arch_of(config.sender.path)
    for model in config.receivers.values():
        width = arch_of(model.path).width
        assert width == config.bridge.latent_dim or under.parent == LATENTWIRE


@pytest.mark.slow
def test_latentwire_compiles_at_the_seeds_size_on_four_devices() -> None:
    """Llama-3.1-8B and Qwen2.5-7B: the plans of both stages, and the one for text."""
    overlay = ROOT / "configs" / "overlays" / "llama_qwen.yaml"
    config = read(LATENTWIRE / "hero.yaml", over=[overlay])
    assert set(config.receivers) == {"llama", "qwen"}
    of_text, _ = steps(config, MeshConfig(data=2, tensor=2), "text")
    for step in (*steps(config, MeshConfig(data=2, tensor=2)), of_text):
        # both receivers in bfloat16 (29 GiB), in halves; a bridge with its optimiser is small
        assert 13 * GIB < size_in_bytes(step.frozen) < 16 * GIB
        assert size_in_bytes(step.state) < GIB
        memory = step.step.lower(*step.arguments).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 60 * GIB


def test_latentwires_sweep_is_a_grid() -> None:
    _, points = grid(LATENTWIRE / "smoke.yaml", [], [SWEEP], [])
    assert len(points) == 12
    for point in points:
        bridge = point.config.bridge
        assert bridge is not None and bridge.refiner is not None
        chosen_by = (
            bridge.compressor.pooled_queries.slots,
            bridge.latent_dim,
            bridge.refiner.depth,
        )
        assert [str(value) for value in chosen_by] == list(point.values.values())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_of_latentwire_is_a_grid_over_the_config_that_it_names(path: Path) -> None:
    text = " ".join(line.removeprefix("#").strip() for line in path.read_text().splitlines())
    (under,) = re.findall(r"--config (configs/\S+) \\ --config configs/latentwire/sweeps/", text)
    _, points = grid(ROOT / under, [], [path], [])
    assert len(points) >= 2
    assert len({point.config.run_dir for point in points}) == len(points)


def _versions() -> list[Any]:
    trained = [p for p in TELEPATHY if not p.is_symlink() and p.stem != "v04"]
    return [pytest.param(p, id=p.stem) for p in trained]


@pytest.mark.slow
@pytest.mark.parametrize("path", _versions())
def test_a_version_compiles_at_the_seeds_size_on_four_devices(path: Path) -> None:
    """Llama-3.1-8B to Mistral-7B, the tap at its true layer."""
    (overlay,) = (o for o in OVERLAYS if o.stem == "llama_mistral")
    config = read(path, over=[overlay])
    assert config.bridge is not None
    source = config.bridge.source.hidden_states
    (step,) = steps(config, MeshConfig(data=2, tensor=2))
    assert source.taps(arch_of("llama-3.1-8b-instruct")) == source.layers  # 16 or 20, not scaled
    memory = step.step.lower(*step.arguments).compile().memory_analysis()
    assert memory is not None
    # 16 or 20 layers of the sender (4 of today's default) and the whole receiver in bfloat16, in
    # halves
    least, most = (9, 13) if max(source.layers) >= 16 else (7, 9)
    assert least * GIB < size_in_bytes(step.frozen) < most * GIB
    assert memory.temp_size_in_bytes < 40 * GIB


@pytest.mark.parametrize(("quant", "most"), [("int8", 0.27), ("nf4", 0.17)])
def test_fewer_bits_take_less_room(real: Config, quant: str, most: float) -> None:
    model = real.receivers["mistral"]
    small = replace(real, sender=real.sender, receivers={"mistral": replace(model, quant=quant)})

    def receiver(config: Config) -> int:
        (step,) = steps(config, MeshConfig(data=1))
        return size_in_bytes(step.frozen.receivers)

    assert receiver(small) < most * receiver(real)


def test_pretraining_configs_stay_small() -> None:
    for path in FILES:
        for stage in read(path).stages.values():
            if pretrain := chosen(stage).get("pretrain"):
                arch, tokens = pretrain.arch, pretrain.tokenizer.vocab_size
                layer = arch.width * (
                    2 * arch.heads * arch.head_dim
                    + 2 * arch.kv_heads * arch.head_dim
                    + 3 * arch.mlp_width
                )
                tables = tokens * arch.width * (1 if arch.tied else 2)
                assert 2 * (arch.layers * layer + tables) < 16 * 2**20  # bytes, bfloat16


@pytest.mark.parametrize("path", TELEPATHY, ids=lambda path: path.stem)
def test_a_version_is_put_on_generated_facts(path: Path) -> None:
    config = read(path, over=[ROOT / "configs" / "overlays" / "facts.yaml"])
    assert list(chosen(config.data)) == ["facts"]
    assert "{question}" in config.layout.question


HUB_RANK = 15
"""Of LoRA between the hub's models; its file names the flag."""


@pytest.mark.parametrize("path", CLASSIFICATION, ids=lambda path: path.stem)
def test_a_classification_has_its_rivals(path: Path) -> None:
    """Relay and probe in its own evaluation; prompt tuning and LoRA, which read the text, over it;
    LoRA with as many parameters as the wire, within 5 %."""
    wire = read(path)
    evaluation = wire.stages["report"].evaluate
    assert evaluation is not None
    assert "relay" in evaluation.methods
    assert evaluation.probe is not None
    assert wire.bridge is not None
    for rival in RIVALS:
        flags = []
        if rival.stem == "lora" and path.stem != "topics":
            flags = [("bridge.reader.lora.r", f"{HUB_RANK}")]
            assert f"--bridge.reader.lora.r={HUB_RANK}" in rival.read_text()
        config = read(path, flags, over=[rival])
        assert config.bridge is not None
        assert config.layout == replace(wire.layout, with_text=True)
        assert (config.data, config.receivers) == (wire.data, wire.receivers)
        assert list(chosen(config.bridge.compressor)) == ["constant"]  # sees no text
        assert not chosen(config.bridge.bottleneck)
        assert list(chosen(config.objectives)) == ["answer_ce"]
        fit, own = config.stages["fit"].train, wire.stages["fit"].train
        assert fit is not None
        assert own is not None
        assert (fit.steps, fit.batch_size) == (own.steps, own.batch_size)
        (step,), (of_wire,) = steps(config, MeshConfig(data=1)), steps(wire, MeshConfig(data=1))
        count, wanted = (_parameters(one) for one in (step, of_wire))
        if rival.stem == "lora":
            assert abs(count - wanted) < 0.05 * wanted
        else:
            assert count < wanted


DEVICES = [p for p in REAL_RIVALS if p.stem.startswith(("prompt_tuning", "lora", "reader"))]
BUDGETS = [p for p in REAL_RIVALS if p.stem.startswith("budget")]
RATES = [p for p in REAL_RIVALS if p.stem.startswith("rates")]
FITTED = [p for p in REAL_RIVALS if p.stem.startswith("closed_form")]
TABLE = REAL / "rivals" / "table.yaml"
FOR_STEPS = REAL / "rivals" / "for_steps.yaml"
QUESTIONS = REAL / "questions.yaml"


def test_every_rival_is_one_of_these() -> None:
    assert sorted([*DEVICES, *BUDGETS, *RATES, *FITTED, TABLE, FOR_STEPS]) == REAL_RIVALS


@pytest.mark.parametrize("path", FITTED, ids=lambda path: path.stem)
def test_a_wire_in_closed_form_stands_beside_the_trained_one(path: Path) -> None:
    """On the same rows, from the same taps, where the report looks for it; nothing in it is
    trained."""
    wire, config = read(QUESTIONS), read(QUESTIONS, over=[path])
    table = read(QUESTIONS, over=[TABLE]).stages["report"].evaluate
    assert table is not None and table.rivals[path.stem] == f"runs/{config.name}"
    assert (config.data, config.receivers, config.layout) == (
        wire.data, wire.receivers, wire.layout,
    )  # fmt: skip
    assert config.bridge is not None and wire.bridge is not None
    assert config.bridge.source == wire.bridge.source
    assert to_be_trained(config.bridge) is None
    assert [list(chosen(stage)) for stage in config.stages.values()] == [
        ["calibrate"],
        ["evaluate"],
    ]
    alone = read(REAL / f"{path.stem}.yaml").bridge
    assert alone is not None
    assert (config.bridge.compressor, config.bridge.reader) == (alone.compressor, alone.reader)


@pytest.mark.parametrize("path", DEVICES, ids=lambda path: path.stem)
def test_a_wire_between_real_models_has_its_rivals(path: Path) -> None:
    """On the same question rows, where the report looks for them; LoRA with as many parameters as
    the wire, soft tokens in units of the embeddings' RMS, whose rate is a rate of theirs."""
    wire = read(QUESTIONS)
    evaluation = read(QUESTIONS, over=[TABLE]).stages["report"].evaluate
    assert evaluation is not None and evaluation.normalised is not None
    config = read(QUESTIONS, over=[path])
    assert evaluation.rivals[path.stem] == f"runs/{config.name}"
    ends = (*evaluation.normalised.text, evaluation.normalised.nothing)
    assert path.stem in ends or path.stem == "lora_nothing"
    reads = path.stem in ("prompt_tuning_text", "lora_text")
    assert config.layout == replace(wire.layout, with_text=reads)
    assert (config.data, config.receivers) == (wire.data, wire.receivers)
    fit, settle = (config.stages[name].train for name in ("questions", "settle"))
    assert fit is not None and fit.stop_when is not None and settle is not None
    assert (fit.stop_when.metric, fit.stop_when.rise, fit.stop_when.share) == ("f1", 0.005, 0.25)
    assert fit.optimiser.schedule.shape == "constant" and settle.optimiser.lr == fit.optimiser.lr
    assert config.bridge is not None and wire.bridge is not None
    if path.stem == "reader_text":  # the receiver's own tokens, one slot each, through that reader
        assert config.bridge.reader == wire.bridge.reader
        assert list(chosen(config.bridge.source)) == ["embeddings"]
        assert list(chosen(config.bridge.compressor)) == ["tokens"]
        assert config.sender is not None
        assert config.sender.path == config.receivers["qwen"].path
        return
    assert list(chosen(config.bridge.compressor)) == ["constant"]  # sees no text
    (step, _) = steps(config, MeshConfig(data=1))
    if path.stem.startswith("lora"):
        of_wire = _parameters(steps(wire, MeshConfig(data=1))[0])
        assert abs(_parameters(step) - of_wire) < 0.05 * of_wire
        return
    trained = trained_leaves(step.state.params, fit.train_only, config.receivers)["bridge"]
    scale = {"qwen": {"soft_tokens": {"log_scale": False}}}
    assert trained == {"compressor": {"tokens": True}, "readers": scale}


@pytest.mark.parametrize("path", BUDGETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("device", ["prompt_tuning", "lora"])
def test_a_device_is_tuned_on_a_part_of_the_text(path: Path, device: str) -> None:
    """It differs from the one that reads the whole in that alone; sentences are chosen by one
    question, so that each comes with its own copy of the text."""
    whole = REAL / "rivals" / f"{device}_text.yaml"
    name = f"{device}_{path.stem.removeprefix('budget_')}"
    config = read(QUESTIONS, [("name", f"real_{name}")], over=[whole, path])
    table = read(QUESTIONS, over=[TABLE]).stages["report"].evaluate
    assert table is not None and table.rivals[name] == f"runs/{config.name}"
    bare, budget = read(QUESTIONS, over=[whole]), config.layout.text_budget
    assert budget is not None and name.endswith(budget.keep) and budget.ratio == 4
    assert replace(config.layout, text_budget=None) == bare.layout
    assert (config.bridge, config.data, config.seed) == (bare.bridge, bare.data, bare.seed)
    for stage in ("questions", "settle"):
        fit, other = config.stages[stage].train, bare.stages[stage].train
        assert fit is not None and other is not None
        assert fit.batch_size * fit.questions == other.batch_size * other.questions
        same = {"batch_size": other.batch_size, "questions": other.questions}
        assert replace(fit, **same) == other  # type: ignore[arg-type]


CLASSES = ("trec", "ag_news", "banking77")
MIXED = ("grown", "longer", "written", "lora_taught", "small")
"""Overlays of mixed.yaml: the first three are parts of one curriculum, after one another."""


def over_real(path: Path) -> Config:
    """An overlay of the folder, on the config that its header names."""
    bases = dict.fromkeys(CLASSES, "classification") | dict.fromkeys(MIXED, "mixed")
    base = bases.get(path.stem, "questions")
    assert f"--config configs/real/{base}.yaml" in path.read_text().replace("\\\n#", "")
    return read(REAL / f"{base}.yaml", over=[path])


@pytest.mark.parametrize("path", sorted((REAL / "overlays").glob("*.yaml")), ids=lambda p: p.stem)
def test_an_overlay_of_the_real_wire_is_read(path: Path) -> None:
    """It says what it has reached; its name is its own, steps, data and rates are as they were."""
    config, base = over_real(path), read(QUESTIONS)
    text = path.read_text()
    assert re.search(r"[Nn]ot (yet )?run|^# (Reached|Run) ", text, re.MULTILINE)
    assert config.name != base.name or path.stem == "adapters"
    assert config.bridge is not None and base.bridge is not None
    if path.stem in MIXED:
        mixed = read(REAL / "mixed.yaml")
        assert (config.bridge == mixed.bridge) == (path.stem != "small")
        assert config.layout == mixed.layout
        assert config.seed == mixed.seed
    if path.stem in (*CLASSES, *MIXED, "writer"):
        return
    assert (config.data, config.seed, config.layout) == (base.data, base.seed, base.layout)
    for name in ("read_back", "questions"):
        own, other = config.stages[name].train, base.stages[name].train
        assert own is not None and other is not None
        assert own.optimiser == other.optimiser and own.steps == other.steps
    assert config.bridge.bottleneck == base.bridge.bottleneck


@pytest.mark.parametrize(
    ("stem", "taps"),
    [
        ("self", (0, 3, 6, 13, 19)),
        ("other_direction", (0, 3, 6, 13, 19)),
        ("llama_8b_to_mistral_7b", (0, 4, 9, 17, 26)),
        ("llama_8b_to_qwen_7b", (0, 4, 9, 17, 26)),
        ("qwen_7b_to_llama_8b", (0, 4, 7, 15, 22)),
    ],
)
def test_taps_and_widths_are_rescaled_by_rule(stem: str, taps: tuple[int, ...]) -> None:
    """At the relative depths of the 30 layers that questions.yaml taps; as its header says."""
    path = REAL / "overlays" / f"{stem}.yaml"
    config = over_real(path)
    assert config.sender is not None and config.bridge is not None
    arch = arch_of(config.sender.path)
    source = config.bridge.source.hidden_states  # type: ignore[attr-defined]
    assert source.taps(arch) == taps
    assert f"{', '.join(map(str, taps[:-1]))} and {taps[-1]} of {arch.layers}" in path.read_text()
    if "_to_" in stem:
        (receiver,) = config.receivers.values()
        width = min(1024, 64 * round(arch_of(receiver.path).width * 640 / 896 / 64))
        perceiver = config.bridge.compressor.perceiver  # type: ignore[attr-defined]
        assert config.bridge.latent_dim == perceiver.width == 64 * perceiver.heads == width


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((REAL / "overlays").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_parts_of_an_overlay_of_the_real_wire_fit(path: Path) -> None:
    for step in steps(over_real(path), MeshConfig(data=1)):
        _, metrics = jax.eval_shape(step.step, *step.arguments)
        assert metrics["loss"].shape == ()
        if path.stem == "small":
            (state, *_) = step.arguments
            assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) <= 8_000_000


CELLS = {path.stem: path for path in REAL_CELLS if path.stem not in ("short", "tuned")}


def short(*over: Path) -> Config:
    """The shortened wire of two real models, and a cell of it."""
    return read(REAL / "mixed.yaml", over=[REAL / "cells" / "short.yaml", *over])


@pytest.mark.parametrize("stem", CELLS)
def test_the_cells_of_two_real_models_are_trained_alike(stem: str) -> None:
    """At equal steps, rates, rows and shares; only what reads or how it is given is another."""
    base, config = short(), short(CELLS[stem])
    own, other = config.stages["fit"].train, base.stages["fit"].train
    assert own is not None and other is not None
    shares = [(part.share, part.mix) for part in other.curriculum]
    assert [(part.share, part.mix) for part in own.curriculum] == shares
    assert replace(own, curriculum=other.curriculum) == other
    assert (config.data, config.layout, config.seed) == (base.data, base.layout, base.seed)
    assert (config.name, config.bridge) != (base.name, base.bridge)
    assert set(real_cells.CELLS.values()) == {None, *CELLS}


def test_the_tuned_receiver_has_as_many_steps_as_the_cells() -> None:
    rival = [REAL / "rivals" / "prompt_tuning_text.yaml", REAL / "cells" / "tuned.yaml"]
    config = read(QUESTIONS, over=rival)
    (tuned,) = [stage.train for stage in config.stages.values() if stage.train is not None]
    wire = short().stages["fit"].train
    assert wire is not None and (tuned.steps, tuned.batch_size) == (wire.steps, wire.batch_size)
    assert tuned.stop_when is None


@pytest.mark.slow
@pytest.mark.parametrize("stem", CELLS)
def test_the_parts_of_a_cell_of_two_real_models_fit(stem: str) -> None:
    for step in steps(short(CELLS[stem]), MeshConfig(data=1)):
        _, metrics = jax.eval_shape(step.step, *step.arguments)
        assert metrics["loss"].shape == ()


WHOSE = sorted((REAL / "whose").glob("*.yaml"))


@pytest.mark.parametrize("path", WHOSE, ids=lambda path: path.stem)
def test_a_bridge_that_reads_less_is_trained_alike(path: Path) -> None:
    """At equal steps, in the same columns, on the same rows; only what it reads is another."""
    wire, config = read(QUESTIONS), read(QUESTIONS, over=[path])
    assert config.name == f"{wire.name}_{path.stem}"
    assert wire.bridge is not None and config.bridge is not None
    assert wire.sender is not None
    ratios = 1.0
    if path.stem == "bytes":
        ratios = config.bridge.compressor.perceiver.ratios[0]  # type: ignore[attr-defined]
        assert ratios == 4.25  # bytes in a token of the sender
    if path.stem == "random_sender":
        assert config.sender == replace(wire.sender, random_weights=7)
        assert config.bridge == wire.bridge
    else:
        kind = "bytes" if path.stem == "bytes" else "embeddings"
        assert list(chosen(config.bridge.source)) == [kind]
    assert (config.sender is None) == (path.stem == "bytes")
    if path.stem == "receiver_embeddings":
        assert config.sender is not None
        assert config.sender.path == wire.receivers["qwen"].path
    same = replace(config.bridge, source=wire.bridge.source, compressor=wire.bridge.compressor)
    assert same == wire.bridge
    assert (config.data, config.receivers) == (wire.data, wire.receivers)
    for name, stage in wire.stages.items():
        own, other = config.stages[name].train, stage.train
        if own is None or other is None:
            assert config.stages[name] == stage or path.stem == "bytes"  # no sender is surprised
            continue
        for mine, theirs in zip(own.curriculum, other.curriculum, strict=True):
            assert (mine.level, mine.share) == (theirs.level, theirs.share)
            assert mine.ratio == pytest.approx((theirs.ratio or 1) * ratios)
        assert replace(own, curriculum=other.curriculum) == other


@pytest.mark.slow
@pytest.mark.parametrize("path", WHOSE, ids=lambda path: path.stem)
def test_the_parts_of_a_bridge_that_reads_less_fit(path: Path) -> None:
    for step in steps(read(QUESTIONS, over=[path]), MeshConfig(data=1)):
        _, metrics = jax.eval_shape(step.step, *step.arguments)
        assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", RATES, ids=lambda path: path.stem)
def test_a_rival_has_a_rate_search(path: Path) -> None:
    device = path.stem.removeprefix("rates_")
    rival = REAL / "rivals" / f"{device}_text.yaml"
    _, points = grid(QUESTIONS, [], [rival, path], [])
    rates = set()
    for point in points:
        fit = point.config.stages["questions"].train
        assert fit is not None
        rates.add(fit.optimiser.lr)
    own = read(QUESTIONS, over=[rival]).stages["questions"].train
    assert own is not None and own.optimiser.lr in rates and len(rates) >= 3


def _parameters(step: AbstractStep) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(step.state.params["bridge"]))
