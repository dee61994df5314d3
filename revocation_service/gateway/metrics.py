"""What the gateway counts. Labels are results and codes, never what a client sent."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class GatewayMetrics:
    """Everything that is counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "status_class")
        self.seconds = Histogram(
            "gateway_request_duration_seconds",
            "Time from the head of a request to the end of its answer",
            registry=self.registry,
            buckets=_LATENCY_BUCKETS,
        )
        self.in_flight = self._gauge("requests_in_flight", "Requests that are being answered")
        self.websockets = self._gauge("websockets_open", "WebSocket connections that are open")
        self.upstream_failures = self._counter("upstream_failures", "Requests that the upstream failed", "code")
        self.broken_answers = self._counter("broken_answers", "Answers cut off because the upstream broke off")
        self.attempts = self._counter("attempts", "Attempts that were counted, or denied", "limit", "outcome")
        self.counted_alone = self._counter("attempts_counted_alone", "Attempts that were counted in memory alone")
        self.redis_up = self._gauge("redis_up", "Whether attempts are counted in Redis, which all gateways share")

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"gateway_{name}_total", documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str) -> Gauge:
        return Gauge(f"gateway_{name}", documentation, registry=self.registry)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
