"""What the demo page shows of a text and a question."""

from __future__ import annotations

import math
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from lw_jax.api.bridge import Question
from lw_jax.api.shapes import TEXT_RUNG, rung
from lw_jax.serve.given import Given, RefusedError
from lw_jax.serve.replies import about
from lw_jax.serve.work import Work

PAGE = Path(__file__).with_name("page.html")


def page(request: Request) -> Response:
    """The page itself."""
    return FileResponse(PAGE, media_type="text/html")


class Demo:
    """The handler of `/demo`."""

    def __init__(self, work: Work) -> None:
        """What it has done."""
        self._work = work

    async def __call__(self, request: Request) -> Response:
        """The message, and answers from it, from the text, and from as many of its columns."""
        work, given = (
            self._work,
            Given(request.state.body, {"text", "question", "ratio", "receiver"}),
        )
        text, question = given.needed("text", str), given.value("question", str) or ""
        wire, receiver = work.bridge, given.value("receiver", str)
        inside, (asked,) = work.split([question])
        message = await work.sent(text, inside, given)
        if not question.strip():
            return JSONResponse(about(message))

        def ready() -> tuple[list[Question], list[int]]:
            work.check_length(asked, receiver)
            latent = wire.question(message, asked, receiver)
            whole = wire.question_on_text(text, asked, receiver)
            most = work.config.text_tokens
            if len(whole.words) > rung(TEXT_RUNG, most, None):
                raise RefusedError(413, f"a text of {len(whole.words)} tokens; {most} are the most")
            columns = min(message.slots, len(whole.words))
            short = wire.question_on_text(text, asked, receiver, tokens=columns)
            return [latent, whole, short], [message.slots, len(whole.words), columns]

        questions, columns = await run_in_threadpool(ready)
        answers = await work.batcher.ask(questions)
        rows = {
            name: {"answer": one.text, "columns": n, "probability": math.exp(one.logprob)}
            for name, one, n in zip(("latent", "text", "cut"), answers, columns, strict=True)
        }
        tokenizer = wire.pipeline.receivers[questions[0].receiver]
        rows["cut"]["kept"] = tokenizer.backend.decode(list(questions[2].words))
        return JSONResponse(about(message) | {"rows": rows})
