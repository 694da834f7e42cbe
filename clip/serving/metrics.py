"""What Prometheus asks a server for."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; any thread may add to them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "clip_requests", "Requests that have ended, by route and status.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "clip_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.in_flight = Gauge("clip_requests_in_flight", "Requests that are being answered.", registry=registry)
        self.inputs = Counter("clip_inputs", "Texts and pictures that were embedded.", ["kind"], registry=registry)
        self.pass_inputs = Histogram(
            "clip_forward_pass_inputs",
            "Texts or pictures of a forward pass.",
            ["kind"],
            registry=registry,
            buckets=_INPUTS,
        )
        self.pass_seconds = Histogram(
            "clip_forward_pass_seconds", "Seconds of a forward pass.", ["kind"], registry=registry, buckets=_SECONDS
        )
        self.model = Gauge("clip_model", "1, once the model is loaded.", ["model", "backend"], registry=registry)
        self.index_rows = Gauge("clip_index_rows", "Rows of the index.", registry=registry)
        self.index_held = Gauge("clip_index_held_bytes", "Bytes of the index's vectors in memory.", registry=registry)
        self._connections = Gauge("clip_connections", "Connections that are open.", registry=registry)
        self._held = Gauge("clip_body_bytes", "Bytes of bodies that are held in memory.", registry=registry)
        self._accepted = Gauge("clip_inputs_accepted", "Inputs that have been accepted.", registry=registry)
        self._waiting = Gauge("clip_inputs_waiting", "Inputs that wait for a forward pass.", registry=registry)

    def watch(
        self,
        connections: Callable[[], float],
        held: Callable[[], float],
        accepted: Callable[[], float],
        waiting: Callable[[], float],
    ) -> None:
        """Ask for these numbers whenever the metrics are asked for."""
        self._connections.set_function(connections)
        self._held.set_function(held)
        self._accepted.set_function(accepted)
        self._waiting.set_function(waiting)

    def observe_pass(self, kind: str, inputs: int, seconds: float) -> None:
        self.inputs.labels(kind).inc(inputs)
        self.pass_inputs.labels(kind).observe(inputs)
        self.pass_seconds.labels(kind).observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
