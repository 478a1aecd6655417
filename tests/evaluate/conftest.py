"""One tiny wire for all the tests of methods."""

from __future__ import annotations

import pytest

from tests.tiny.evaluation import World, make_world

ROWS = 256


@pytest.fixture(scope="session")
def world() -> World:
    """256 contexts of one fact, about 40 receiver tokens each."""
    return make_world(ROWS)
