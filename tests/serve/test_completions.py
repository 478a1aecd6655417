"""An answer that is streamed ends where the whole one does, whatever its pieces are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lw_jax.models.tokenizer import load_tokenizer, text_tokenizer
from lw_jax.serve.completions import Completions, _Cutter
from lw_jax.text.tokenizer import Tokenizer

ZOO = Path(__file__).parents[2] / "zoo"
ANSWER = "the red barn. It is old"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return text_tokenizer("mistral", load_tokenizer(ZOO / "tiny-mistral"), 1, [2])


async def call(work: Callable[[], Any]) -> Any:
    return work()


def streamed(
    pieces: list[str], cutter: _Cutter, read: int | None = None, finished: bool = True
) -> list[dict[str, Any]]:
    work: Any = SimpleNamespace(batcher=SimpleNamespace(call=call))
    talk: Any = SimpleNamespace(finished=finished)

    async def run() -> list[bytes]:
        found = Completions(work, "facts")._streamed(talk, iter(pieces), {"id": "x"}, cutter, read)
        return [one async for one in found]

    events = asyncio.run(run())
    assert events[-1] == b"data: [DONE]\n\n"
    return [json.loads(one.decode()[6:]) for one in events[:-1]]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize("most", [None, 1, 4, 1000])
@pytest.mark.parametrize("stops", [(), ("barn",), (". It is new", "old"), ("none",)])
def test_a_stream_ends_where_the_whole_answer_does(
    size: int, most: int | None, stops: tuple[str, ...], tokenizer: Tokenizer
) -> None:
    cutter = _Cutter(tokenizer, most, stops)
    whole, ended = cutter.cut(ANSWER)
    pieces = [ANSWER[i : i + size] for i in range(0, len(ANSWER), size)]
    found = streamed(pieces, cutter)
    texts = [one["choices"][0]["text"] for one in found]
    reasons = [one["choices"][0]["finish_reason"] for one in found]
    assert "".join(texts) == whole
    assert reasons == [None] * (len(found) - 1) + [ended or "stop"]
    assert (most, stops) != (None, ()) or whole == ANSWER


def test_a_stream_that_ran_into_the_most_tokens_says_so(tokenizer: Tokenizer) -> None:
    found = streamed([ANSWER], _Cutter(tokenizer, None, ()), finished=False)
    assert found[-1]["choices"][0]["finish_reason"] == "length"
    found = streamed([ANSWER], _Cutter(tokenizer, None, ("barn",)), finished=False)
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_usage_comes_last_where_it_is_asked_for(tokenizer: Tokenizer) -> None:
    found = streamed([ANSWER], _Cutter(tokenizer, 3, ()), read=5)
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
    }
