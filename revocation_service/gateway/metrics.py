"""The gateway's metrics. Labels are results and codes, never what a client sent."""

from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """All metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="gateway", registry=self.registry)
        gauge = partial(Gauge, namespace="gateway", registry=self.registry)
        histogram = partial(Histogram, namespace="gateway", registry=self.registry, buckets=_SECONDS)
        self.requests = counter("requests", "Requests answered", ["status_class"])
        self.seconds = histogram("request_duration_seconds", "Time from a request to the end of its response")
        self.in_flight = gauge("requests_in_flight", "Requests that are being answered")
        self.websockets = gauge("websockets_open", "WebSocket connections that are open")
        self.failures = counter("upstream_failures", "Requests without a response of the upstream", ["status"])
        self.broken_answers = counter("broken_answers", "Responses of the upstream that were cut off")
        self.attempts = counter("attempts", "Attempts that were counted, or denied", ["limit", "outcome"])
        self.counted_alone = counter("attempts_counted_alone", "Attempts that were counted in memory alone")
        self.redis_up = gauge("redis_up", "1 if attempts are counted in Redis, which all gateways share")

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
