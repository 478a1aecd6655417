"""A gate lets honest messages pass, but for about the share it may refuse, and others not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lw_jax.errors import UserError
from lw_jax.types import Latent
from lw_jax.wire.gate import MEASURES, Gate

MARK = b"8 bytes!"
ALARMS = 0.04


def messages(count: int, seed: int, scale: float = 1.0) -> list[np.ndarray]:
    """Slots [6, 4] with a mean, whose channels depend on each other and hardly leave a plane."""
    rng = np.random.default_rng(seed)
    mix = np.array([[3.0, 1.0, 0.0, 1.0], [0.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.01, 0.0]])
    return [scale * (5.0 + rng.normal(size=(6, 3)) @ mix) for _ in range(count)]


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate.fit(messages(200, 0), messages(2000, 1), ALARMS, MARK)


def refused(gate: Gate, some: list[np.ndarray]) -> float:
    return float(np.mean([gate.refusal(one) is not None for one in some]))


def test_of_honest_messages_about_the_share_is_refused(gate: Gate) -> None:
    assert ALARMS / 4 < refused(gate, messages(2000, 2)) < 2 * ALARMS


def test_what_is_looked_at_by_hand() -> None:
    """The mean is that of honest slots; slot (2, 4) lies one deviation from it in each channel."""
    seen = [np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 4.0], [2.0, 4.0]])]
    own = Gate.fit(seen, seen, ALARMS, MARK)
    np.testing.assert_allclose(own.mean, [1.0, 2.0])
    np.testing.assert_allclose(
        own.whiten.T @ np.cov(np.concatenate(seen).T) @ own.whiten, np.eye(2)
    )
    share = np.sqrt(3 / 4)  # four slots have three degrees of freedom
    found = own.measures(np.array([[2.0, 4.0], [1.0, 2.0], [1.0, 2.0]]))
    assert found == pytest.approx(
        {
            "largest_norm": np.sqrt(20),
            "smallest_norm": np.sqrt(5),
            "farthest": share,
            "distance": share / np.sqrt(3),
        }
    )


def test_bounds_share_the_alarms() -> None:
    """Norms 1 to 101: a tenth, shared by four measures, leaves 2.5 of 100 at one end of each."""
    seen = messages(20, 0)
    held = [n * np.array([[1.0, 0.0, 0.0, 0.0]]) for n in range(1, 102)]
    bounds = Gate.fit(seen, held, 0.1, MARK).bounds
    assert bounds["largest_norm"] == pytest.approx(98.5)
    assert bounds["smallest_norm"] == pytest.approx(3.5)


@pytest.mark.parametrize("scale", [2.0, 0.3])
def test_other_norms_are_refused(gate: Gate, scale: float) -> None:
    assert refused(gate, messages(100, 3, scale)) > 0.95


def test_what_has_the_norm_but_leaves_the_plane_is_refused(gate: Gate) -> None:
    for one in messages(20, 4):
        moved = one + np.array([0.0, 0.0, 0.5, -0.5])
        why = gate.refusal(moved * np.linalg.norm(one) / np.linalg.norm(moved))
        assert why is not None and "distance" in why


def test_one_bad_slot_among_good_ones_is_refused(gate: Gate) -> None:
    (one,) = messages(1, 5)
    assert gate.refusal(one) is None
    one[3] *= 4
    assert "largest norm of a slot" in str(gate.refusal(one))


def test_masked_slots_do_not_count(gate: Gate) -> None:
    (one,) = messages(1, 5)
    slots, mask = np.concatenate([one, 100 * one[:1]])[None], np.arange(7)[None] < 6
    gate.check(Latent(slots, mask))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^gate: the largest norm of a slot is .* at most"):
        gate.check(Latent(slots, np.ones((1, 7), bool)))  # type: ignore[arg-type]


def test_it_is_kept_in_a_file(gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "gate.npz"
    gate.save(path)
    again = Gate.load(path, MARK)
    for one in messages(50, 6):
        assert again.measures(one) == gate.measures(one)
        assert again.refusal(one) == gate.refusal(one)
    assert set(again.bounds) == set(MEASURES)


def test_what_is_no_gate_of_this_bridge_is_not_taken(gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "gate.npz"
    with pytest.raises(UserError, match="no gate there"):
        Gate.load(path, MARK)
    gate.save(path)
    with pytest.raises(UserError, match="another bridge's messages"):
        Gate.load(path, b"8 others")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        Gate.load(path, MARK)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(UserError, match="no gate"):
        Gate.load(path, MARK)


def test_too_few_slots_make_no_gate() -> None:
    wide = [np.ones((2, 40))] * 5
    with pytest.raises(UserError, match="fit it on more messages"):
        Gate.fit(wide, wide, ALARMS, MARK)


SPOILT = {
    "a mean that is no number": {"mean": np.full(4, np.nan)},
    "distances that are no numbers": {"whiten": np.full((4, 4), np.nan)},
    "distances without an end": {"whiten": np.full((4, 4), np.inf)},
    "one number": {"mean": np.float64(1)},
    "a mean of lists": {"mean": np.zeros((4, 1))},
    "words": {"mean": np.array(list("abcd"))},
    "complex numbers": {"mean": np.zeros(4, complex)},
    "another width": {"mean": np.zeros(5)},
    "nothing": {"mean": np.zeros(0), "whiten": np.zeros((0, 0))},
    "truth values": {"whiten": np.eye(4, dtype=bool)},
    "several bounds": {"bound_distance": np.ones(1)},
    "a bound that is a word": {"bound_distance": np.array("1")},
    "a bound that is no number": {"bound_distance": np.float64("nan")},
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_gate_that_is_none_is_damaged(name: str, gate: Gate, tmp_path: Path) -> None:
    path = tmp_path / "gate.npz"
    gate.save(path)
    Gate.load(path, MARK)
    np.savez(path, **dict(np.load(path)) | SPOILT[name])
    with pytest.raises(UserError, match=r"gate.npz is damaged \(no gate: .*probe hostile RUN"):
        Gate.load(path, MARK)
