"""The metrics: their names are stable, because dashboards and alerts use them."""

from revocation_service.metrics import Metrics

NAMES = {
    "revocation_checked_exp_too_far_total": "counter",
    "revocation_checks_from_mirror_total": "counter",
    "revocation_checks_iat_unusable_total": "counter",
    "revocation_checks_total": "counter",
    "revocation_feed_streams_total": "counter",
    "revocation_feed_subscribers": "gauge",
    "revocation_foreign_records_total": "counter",
    "revocation_http_request_duration_seconds": "histogram",
    "revocation_mirror_age_seconds": "gauge",
    "revocation_mirror_entries": "gauge",
    "revocation_mirror_lag_seconds": "histogram",
    "revocation_mirror_scans_total": "counter",
    "revocation_redis_clock_offset_seconds": "gauge",
    "revocation_replicas_short_total": "counter",
    "revocation_restored_total": "counter",
    "revocation_revocations_total": "counter",
    "revocation_store_failures_total": "counter",
    "revocation_store_read_batch_keys": "histogram",
    "revocation_store_up": "gauge",
}


def test_the_names_are_the_documented_ones() -> None:
    """Every metric is exposed under its name and type from the start."""
    lines = Metrics().exposition().decode().splitlines()
    types = [line.split()[2:] for line in lines if line.startswith("# TYPE ")]
    assert {name: kind for name, kind in types if not name.endswith("_created")} == NAMES


def test_two_services_in_a_process_count_apart() -> None:
    """Two `Metrics` in one process count separately, because each has its own registry."""
    one, two = Metrics(), Metrics()
    one.revocations.labels("jti", "revoked").inc()
    assert b'result="revoked"' in one.exposition()
    assert b'result="revoked"' not in two.exposition()
