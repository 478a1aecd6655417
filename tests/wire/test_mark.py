"""A bridge's mark changes with everything that a packet's meaning depends on."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from lw_jax.wire.mark import mark_of

PARAMS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": {"x": np.ones(2, np.float32)}}
ABOUT: dict[str, Any] = {"bridge": {"slots": 4, "layers": [0, 2]}, "fingerprints": {"r": "abc"}}


def test_it_is_the_beginning_of_a_sha256() -> None:
    whole = hashlib.sha256(b"lw_jax mark of a bridge\n")
    whole.update(b'{"bridge": {"layers": [0, 2], "slots": 4}, "fingerprints": {"r": "abc"}}')
    whole.update(b"\na/x <f4 (2,)\n" + PARAMS["a"]["x"].tobytes())  # type: ignore[index]
    whole.update(b"\nb <f4 (2, 3)\n" + PARAMS["b"].tobytes())  # type: ignore[union-attr]
    assert mark_of(PARAMS, ABOUT) == whole.digest()[:8]


def test_all_that_counts_changes_it() -> None:
    def with_b(value: np.ndarray) -> dict[str, Any]:
        return {**PARAMS, "b": value}

    b = np.asarray(PARAMS["b"])
    one_bit = b.view(np.uint32).copy()
    one_bit[1, 1] ^= 1
    marks = {
        mark_of(PARAMS, ABOUT),
        mark_of(with_b(one_bit.view(np.float32)), ABOUT),
        mark_of(with_b(b.reshape(3, 2)), ABOUT),
        mark_of(with_b(b.astype(np.int32)), ABOUT),
        mark_of({"c": b, "a": PARAMS["a"]}, ABOUT),
        mark_of(PARAMS, {**ABOUT, "fingerprints": {"r": "abd"}}),
        mark_of(PARAMS, {**ABOUT, "bridge": {"slots": 4, "layers": [0, 3]}}),
        mark_of(PARAMS, {**ABOUT, "layout": {"primer": ""}}),  # no primer, not no key
    }
    assert len(marks) == 8


def test_an_option_that_is_off_changes_nothing() -> None:
    off = {"lora": None, "rotary": False, "views": [], "sources": {}, "deeper": {"x": None}}
    assert mark_of(PARAMS, {**ABOUT, "bridge": {**ABOUT["bridge"], **off}}) == mark_of(
        PARAMS, ABOUT
    )


def test_options_in_lists_are_off_as_well() -> None:
    for kind in (list, tuple):
        one, other = ({**ABOUT, "stack": kind([own, {"x": 1}])} for own in ({"y": None}, {}))
        assert mark_of(PARAMS, one) == mark_of(PARAMS, other) != mark_of(PARAMS, ABOUT)
