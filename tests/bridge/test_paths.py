"""Names of the bridge's parts: trees as a person sees them, and as linen names them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from lw_jax.bridge.bridge import Bridge
from lw_jax.bridge.module import BridgeModule
from lw_jax.bridge.paths import (
    chosen_parts,
    components,
    flat,
    flat_name,
    from_paths,
    nested,
    readable,
)
from lw_jax.errors import UserError
from lw_jax.train.checkpoint import component_counts
from tests.bridge.test_between import DIMS, config, taps

TREE: dict[str, Any] = {
    "compressor": {"queries": 1, "block": {"kernel": 2}},
    "readers": {
        "qwen": {"lora": {"q_up": 3, "q_down": 4}, "soft_tokens": {"log_scale": 5}},
        "qwen2": {"lora": {"q_up": 6, "q_down": 7}},
    },
    "sources": {"bytes": {"byte": 8}, "words": {"gates": 9}},
}
PARTS = {
    ("compressor",): TREE["compressor"],
    ("readers", "qwen", "lora"): TREE["readers"]["qwen"]["lora"],
    ("readers", "qwen", "soft_tokens"): TREE["readers"]["qwen"]["soft_tokens"],
    ("readers", "qwen2", "lora"): TREE["readers"]["qwen2"]["lora"],
    ("sources", "bytes"): TREE["sources"]["bytes"],
    ("sources", "words"): TREE["sources"]["words"],
}


def test_components_are_parts_with_their_paths() -> None:
    assert list(components(TREE)) == list(PARTS.items())
    assert from_paths(PARTS) == TREE
    arrays = jax.tree.map(np.zeros, TREE)  # as many parameters as the leaf's number
    counts = component_counts({"bridge": arrays, "heads": {"kd": {"kernel": np.zeros(10)}}})
    expected = {"/".join(("bridge", *path)): sum(jax.tree.leaves(x)) for path, x in PARTS.items()}
    assert counts == expected | {"heads/kd": 10}


def test_linens_names_and_back() -> None:
    names = {
        "compressor",
        "readers_qwen_lora",
        "readers_qwen_soft_tokens",
        "readers_qwen2_lora",
        "sources_bytes",
        "sources_words",
    }
    assert flat(TREE).keys() == names
    assert list(flat(TREE).values()) == list(PARTS.values())
    assert nested(flat(TREE), PARTS) == TREE
    assert nested({"compressor": {}, "heads": {}}, PARTS) == {"compressor": {}, "heads": {}}
    for path in PARTS:
        assert flat_name("/".join(path)) == "_".join(path)
    assert flat_name("readers/qwen/lora/q_up") == "readers_qwen_lora/q_up"
    assert flat_name("sources/bytes/encoder/kernel") == "sources_bytes/encoder/kernel"
    assert flat_name("compressor/block/kernel") == "compressor/block/kernel"


def test_a_bridge_has_readable_paths_outside_and_linens_names_inside() -> None:
    """The random keys of a part come from linen's name: a seed gives the weights it always did."""
    cfg, key = config(private=2), jax.random.key(0)
    params = jax.eval_shape(Bridge(cfg, DIMS).init, key)
    assert params["readers"].keys() == {"first", "second"}
    assert params["readers"]["first"].keys() == {"soft_tokens", "deep_prefix"}
    module = BridgeModule(cfg, DIMS)
    inside = jax.eval_shape(module.init, {"params": key, "noise": key}, {"source": taps()})
    assert flat(params) == inside["params"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["compressor"], [("compressor",)]),
        (["readers/qwen"], [("readers", "qwen", "lora"), ("readers", "qwen", "soft_tokens")]),
        (
            ["readers/qwen2", "readers/qwen/soft_tokens"],
            [("readers", "qwen2", "lora"), ("readers", "qwen", "soft_tokens")],
        ),
        (["readers/qwen/lora", "readers/qwen/lora"], [("readers", "qwen", "lora")]),
        (["sources"], [("sources", "bytes"), ("sources", "words")]),
        ([], []),
    ],
)
def test_parts_are_chosen_by_name_or_by_what_stands_above(
    names: list[str], found: list[tuple[str, ...]]
) -> None:
    assert chosen_parts(TREE, names) == {path: PARTS[path] for path in found}


@pytest.mark.parametrize("name", ["readers/qw", "compress", "readers_qwen_lora", "lora", ""])
def test_a_name_of_no_part_is_refused(name: str) -> None:
    with pytest.raises(UserError) as error:
        chosen_parts(TREE, ["compressor", name])
    assert str(error.value) == (
        f"init_only: no component {name!r} here; there are compressor, readers/qwen/lora, "
        "readers/qwen/soft_tokens, readers/qwen2/lora, sources/bytes, sources/words"
    )


@pytest.mark.parametrize("receivers", [["qwen", "qwen2"], ["qwen2", "qwen"]])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("readers_qwen_lora", "readers/qwen/lora"),
        ("readers_qwen2_lora", "readers/qwen2/lora"),
        ("readers_qwen2_soft_tokens", "readers/qwen2/soft_tokens"),
        ("readers_qwen", "readers/qwen/"),
        ("readers_qwen2", "readers/qwen2/"),
        ("readers_qwen_lora/q_.*", "readers/qwen/lora/q_.*"),
        ("readers_mistral_lora", "readers_mistral_lora"),
        ("readers/qwen/lora", "readers/qwen/lora"),
        ("compressor", "compressor"),
    ],
)
def test_names_of_earlier_versions_are_read(receivers: list[str], name: str, path: str) -> None:
    assert readable(name, receivers) == path


def test_a_receiver_whose_name_begins_like_anothers() -> None:
    assert readable("readers_a_b_lora", ["a", "a_b"]) == "readers/a_b/lora"
    assert readable("readers_a_lora", ["a", "a_b"]) == "readers/a/lora"
    assert readable("readers_qwen2_lora", ["qwen"]) == "readers_qwen2_lora"
