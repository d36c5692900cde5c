from collections.abc import Callable
from typing import Any

from .._optional import optional_import

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)


class Statistics:
    """What a server counts, for Prometheus.

    **Arguments:** `waiting`: how many requests wait; `sizes`: of batches.
    """

    def __init__(self, *, waiting: Callable[[], int], sizes: tuple[int, ...]):
        self._library: Any = optional_import("prometheus_client", extra="serve")
        self._registry = self._library.CollectorRegistry()
        kept = {"registry": self._registry}
        self.requests = self._library.Counter(
            "elt_zoo_requests", "Requests by what became of them", ["outcome"], **kept
        )
        seconds = kept | {"buckets": _SECONDS}
        self.answered = self._library.Histogram(
            "elt_zoo_answer_seconds", "From the arrival of a request to its samples", **seconds
        )
        self.waited = self._library.Histogram(
            "elt_zoo_wait_seconds", "From the arrival of a request to the start of its batch", **seconds
        )
        self.sampled = self._library.Histogram("elt_zoo_batch_seconds", "Sampling of one batch", **seconds)
        self.samples = self._library.Histogram(
            "elt_zoo_batch_samples", "Samples of one batch, without padding", buckets=sizes, **kept
        )
        queue = self._library.Gauge("elt_zoo_queue_length", "Requests that wait", **kept)
        queue.set_function(waiting)

    def count(self, outcome: str) -> None:
        """Counts a request by what became of it."""
        self.requests.labels(outcome).inc()

    def text(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text format, and its content type."""
        return self._library.generate_latest(self._registry), self._library.CONTENT_TYPE_LATEST
