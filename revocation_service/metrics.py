"""The Prometheus metrics of the service. Labels are routes, results and codes, never what a caller sent."""

from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_KEYS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Metrics:
    """All metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="revocation", registry=self.registry)
        gauge = partial(Gauge, namespace="revocation", registry=self.registry)
        histogram = partial(Histogram, namespace="revocation", registry=self.registry, buckets=_SECONDS)
        labels = ("route", "method", "status")
        self.requests = histogram("http_request_duration_seconds", "Time to answer a request", labels)
        self.revocations = counter("revocations", "Revocations asked for", ["claim", "result"])
        self.checks = counter("checks", "Checks answered", ["outcome"])
        self.checks_from_mirror = counter("checks_from_mirror", "Checks answered from the mirror", ["outcome"])
        self.exp_too_far = counter("checked_exp_too_far", "Checks of tokens that outlive the longest lifetime set")
        self.iat_unusable = counter("checks_iat_unusable", "Tokens revoked only because their iat is unusable")
        self.feed_subscribers = gauge("feed_subscribers", "Mirrors that follow the feed")
        self.feed_streams = counter("feed_streams", "Streams of the feed that began", ["kind"])
        self.store_up = gauge("store_up", "1 if Redis answered the last time it was asked")
        self.store_failures = counter("store_failures", "Store operations that failed", ["operation"])
        self.read_batch = histogram("store_read_batch_keys", "Keys in one read of the store", buckets=_KEYS)
        self.foreign_records = counter("foreign_records", "Records found that a foreign application wrote")
        self.replicas_short = counter("replicas_short", "Writes that found too few replicas connected")
        self.clock_offset = gauge("redis_clock_offset_seconds", "Offset of Redis' clock from the local clock")
        self.mirror_entries = gauge("mirror_entries", "Live revocations in the mirror of this process")
        self.mirror_age = gauge("mirror_age_seconds", "Seconds since the mirror was last proven complete")
        self.mirror_lag = histogram("mirror_lag_seconds", "From a change in the log to the mirror")
        self.mirror_scans = counter("mirror_scans", "Scans of all records", ["reason"])
        self.restored = counter("restored", "Revocations written back to a Redis that had lost them")

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
