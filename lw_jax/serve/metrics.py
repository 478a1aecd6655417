"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import Any

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Metrics:
    """Counters of one server.

    Attributes:
        requests: by path and status.
        seconds: from a request's arrival to its answer, by path.
        waiting: texts and questions that wait.
        rows: texts or questions in a batch.
        left: requests whose other end went away before it was answered.
        compilations: programs that were compiled since the server was ready.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        """All at zero."""
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "lw_jax"}
        self.requests = Counter("requests", "Requests answered.", ["path", "status"], **own)
        self.seconds = Histogram(
            "request_seconds",
            "Seconds from a request's arrival to its answer.",
            ["path"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            **own,
        )
        self.waiting = Gauge("waiting", "Texts and questions that wait.", **own)
        self.rows = Histogram(
            "batch_rows", "Texts or questions in a batch.", buckets=(1, 2, 4, 8, 12, 16), **own
        )
        self.left = Counter("clients_left", "Requests whose other end went away.", **own)
        self.compilations = Counter("compilations", "Programs compiled since it is ready.", **own)
        self._ready = False
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def ready(self) -> None:
        """From now on compilations count."""
        self._ready = True

    def _heard(self, event: str, duration_secs: float, **more: str | int) -> None:
        if self._ready and event == _COMPILED:
            self.compilations.inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)
