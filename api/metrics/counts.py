"""What this process counts by itself, since it started. Labels come from short lists, never from a request.

Each process has its own numbers, which Prometheus adds up. Nothing is registered here: `api.metrics.service` does
that, for each application.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

# When each series was born is of no use to anybody here, and would double what is read.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: From the fastest answer without a model to a chat that waits for one.
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

REQUEST_SECONDS = Histogram(
    "titer_http_request_seconds",
    "Time until the answer to a request began.",
    ["route", "method", "status"],
    buckets=LATENCY_BUCKETS,
    registry=None,
)
RATE_LIMITED = Counter(
    "titer_rate_limited_requests",
    "Requests refused because their key or project sent too many, or asked for too many tokens.",
    ["unit"],
    registry=None,
)
UNCOUNTED = Counter(
    "titer_uncounted_requests",
    "Requests let through uncounted because Redis was away.",
    ["unit"],
    registry=None,
)
DOORBELL_FAILURES = Counter(
    "titer_doorbell_failures",
    "Times that the broker could not be reached to ring for jobs.",
    registry=None,
)
OPEN_STREAMS = Gauge(
    "titer_event_streams_open",
    "Streams of job events that this process keeps open.",
    registry=None,
)

for unit in ("requests", "tokens"):
    # There from the start, so that the first one is seen as an increase.
    RATE_LIMITED.labels(unit)
    UNCOUNTED.labels(unit)

ALL = (REQUEST_SECONDS, RATE_LIMITED, UNCOUNTED, DOORBELL_FAILURES, OPEN_STREAMS)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def observe_request(*, route: str | None, method: str, status: int, seconds: float) -> None:
    """Count one answer.

    Args:
        route: the route's template; none: no route has this address.
        method: as it was sent, which may be any word.
        status: of the answer.
        seconds: until it began.
    """
    REQUEST_SECONDS.labels(
        route or "none", method if method in METHODS else "other", f"{status // 100}xx"
    ).observe(seconds)
