"""The other server of a sender: the receiver to which it hands questions on."""

from __future__ import annotations

import logging
from typing import Any

import httpx

from lw_jax.errors import said
from lw_jax.serve.given import RefusedError

_UP = {True: "is back", False: "does not answer"}
_log = logging.getLogger("lw_jax.serve")


class Peer:
    """A receiver at another address.

    Attributes:
        address: its URL.
    """

    def __init__(
        self,
        address: str,
        timeout: float,
        token: str | None,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            address: its URL.
            timeout: seconds of a request.
            token: that it asks for; None: none.
            transport: how it is reached; None: over the network.
        """
        self.address, self._token = address, token
        self._client = httpx.AsyncClient(base_url=address, timeout=timeout, transport=transport)
        self._up: bool | None = None

    async def close(self) -> None:
        """Lets the connections go."""
        await self._client.aclose()

    async def answers(self, body: dict[str, Any]) -> list[Any]:
        """Its answers to a body of `/answer`.

        Raises:
            RefusedError: it does not answer, or refuses, with its own status and reason.
        """
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            response = await self._client.post("/answer", json=body, headers=headers)
        except httpx.HTTPError as error:
            self._now(False)
            reason = f"the receiver at {self.address} does not answer: {said(error)}"
            raise RefusedError(502, reason) from error
        self._now(True)
        found = _object(response)
        if response.status_code != 200:
            refused = found.get("error")
            why = refused.get("message") if isinstance(refused, dict) else None
            why = why or f"no reason given (status {response.status_code})"
            status = response.status_code if response.status_code >= 400 else 502
            raise RefusedError(status, f"the receiver at {self.address}: {why}")
        answers = found.get("answers")
        count = max(len(body["messages"]), len(body["questions"]))
        if not isinstance(answers, list) or len(answers) != count:
            raise RefusedError(
                502, f"the receiver at {self.address} answered something else than answers"
            )
        return answers

    async def status(self) -> str:
        """What its `/health` says, or that it does not answer."""
        try:
            response = await self._client.get("/health", timeout=1.0)
            status = str(_object(response).get("status", "?"))
        except httpx.HTTPError as error:
            self._now(False)
            return f"does not answer: {said(error)}"
        self._now(True)
        return status

    def _now(self, up: bool) -> None:
        """Says once when it goes away, and when it is back."""
        if up != (self._up is not False):
            _log.warning("the receiver at %s %s", self.address, _UP[up])
        self._up = up


def _object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer; {}: there is none."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
