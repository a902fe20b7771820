"""The state of the whole service in numbers, read from the database: the same from every api process.

Each query looks at what is open, or at one day, and finds it at an index: what a reading costs follows from the
work at hand, not from the length of the history. Labels are words of the vocabulary; the two that are names
(workers, bases) are bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate, product
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeHistogramMetricFamily, GaugeMetricFamily
from sqlalchemy import Row, case, func, select, true
from sqlalchemy.orm import Session

from models.base import utc_now
from models.evaluation import Evaluation
from models.job import TERMINAL, Job, JobKind, JobStatus, awaiting_review
from models.model_version import Gate, ModelVersion, VersionKind
from models.priority import Priority
from models.project import Project
from models.webhook import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from models.worker import GONE_AFTER, Worker

DAY = timedelta(days=1)
#: Upper ends, in percent; the first policy's limit is 15.
SCORE_BUCKETS = (1, 2, 5, 10, 15, 20, 30, 50, 75, 100)
#: Bases with a series of their own; the others of a day are told together.
MAX_BASES = 20
OTHER_BASES = "other"
#: Workers with series of their own: more than anybody has on one database.
MAX_WORKERS = 1_000

Values = Mapping[tuple[str, ...], float]


def read_all(session: Session) -> Iterator[Metric]:
    """Read every metric that comes from the database."""
    now = utc_now()
    open_jobs = _open_jobs(session)
    yield from _jobs(session, open_jobs, now)
    yield from _reviews([row for row in open_jobs if row.state == "review"], now)
    yield from _queue(session, now)
    yield from _workers(session, now)
    yield from _decisions(session, now)
    yield from _webhooks(session, now)


def gauge(name: str, meaning: str, value: float) -> Metric:
    """Make a metric of one number."""
    return GaugeMetricFamily(name, meaning, value=float(value))


def _gauges(
    name: str,
    meaning: str,
    labels: Sequence[str],
    values: Values,
    always: Iterable[tuple[str, ...]] = (),
) -> Metric:
    """Make a metric with labels; those that are `always` there are 0 where nothing was found."""
    made = GaugeMetricFamily(name, meaning, labels=labels)
    for label_values, value in {**dict.fromkeys(always, 0.0), **values}.items():
        made.add_metric(label_values, float(value))
    return made


def _age(since: datetime | None, now: datetime) -> float:
    """Give the seconds since a moment; 0 where there is none, or it is yet to come."""
    return 0.0 if since is None else max((now - since).total_seconds(), 0.0)


def _earliest(moments: Iterable[datetime | None]) -> datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _open_jobs(session: Session) -> Sequence[Row[Any]]:
    state = case((awaiting_review(), "review"), else_=Job.status).label("state")
    stage = func.coalesce(Job.stage, "").label("stage")
    return session.execute(
        select(
            Job.kind,
            state,
            stage,
            func.count().label("jobs"),
            func.sum(Job.lost_leases).label("lost"),
            func.min(Job.lease_expires_at).label("lease"),
            func.min(Job.held_at).label("held"),
            func.min(Job.review_expires_at).label("decide_by"),
        )
        .where(Job.finished_at.is_(None))
        .group_by(Job.kind, state, stage)
    ).all()


def _jobs(session: Session, open_jobs: Sequence[Row[Any]], now: datetime) -> Iterator[Metric]:
    ended = session.execute(
        select(
            Job.kind,
            Job.status,
            func.count().label("jobs"),
            func.sum(Job.lost_leases).label("lost"),
        )
        .where(Job.finished_at >= now - DAY)
        .group_by(Job.kind, Job.status)
    ).all()
    lost: Counter[tuple[str, ...]] = Counter()
    for row in (*open_jobs, *ended):
        lost[(row.kind,)] += row.lost
    yield _gauges(
        "titer_jobs",
        "Jobs that have not ended, by kind, state and the stage that they are in or were last.",
        ("kind", "state", "stage"),
        {(row.kind, row.state, row.stage): row.jobs for row in open_jobs},
    )
    yield _gauges(
        "titer_jobs_ended_last_day",
        "Jobs that ended within 24 hours, by kind and how.",
        ("kind", "state"),
        {(row.kind, row.status): row.jobs for row in ended},
        product(JobKind, sorted(TERMINAL)),
    )
    yield _gauges(
        "titer_lost_leases",
        "Times that a worker fell silent over a job that is open or ended within 24 hours.",
        ("kind",),
        lost,
        ((kind,) for kind in JobKind),
    )
    yield gauge(
        "titer_lease_overdue_seconds",
        "For how long a lease has been over without the sweeper's taking it back; 0 when none is.",
        _age(_earliest(row.lease for row in open_jobs), now),
    )


def _reviews(held: Sequence[Row[Any]], now: datetime) -> Iterator[Metric]:
    yield gauge(
        "titer_review_jobs",
        "Jobs that wait for a person to decide on what was held.",
        sum(row.jobs for row in held),
    )
    yield gauge(
        "titer_review_oldest_age_seconds",
        "For how long the first of them has waited; 0 when none waits.",
        _age(_earliest(row.held for row in held), now),
    )
    decide_by = _earliest(row.decide_by for row in held)
    # No sample is better than a number that would look like much time, or none.
    yield _gauges(
        "titer_review_time_left_seconds",
        "Time until the next of them is blocked because nobody decided; absent when none waits.",
        (),
        {} if decide_by is None else {(): (decide_by - now).total_seconds()},
    )


def _queue(session: Session, now: datetime) -> Iterator[Metric]:
    waiting = session.execute(
        select(
            Project.priority,
            func.count().label("jobs"),
            func.min(Job.created_at).label("oldest"),
        )
        .join(Project, Project.id == Job.project_id)
        .where(Job.finished_at.is_(None), Job.status == JobStatus.QUEUED)
        .group_by(Project.priority)
    ).all()
    always = [(priority,) for priority in Priority]
    yield _gauges(
        "titer_queue_jobs",
        "Jobs that wait for a worker, by their project's priority.",
        ("priority",),
        {(row.priority,): row.jobs for row in waiting},
        always,
    )
    yield _gauges(
        "titer_queue_oldest_age_seconds",
        "Time since the oldest of them was created, by priority; 0 when none waits.",
        ("priority",),
        {(row.priority,): _age(row.oldest, now) for row in waiting},
        always,
    )


def _workers(session: Session, now: datetime) -> Iterator[Metric]:
    alive = session.execute(
        select(Worker, Job.kind)
        .outerjoin(Job, Job.id == Worker.job_id)
        .where(Worker.stopped_at.is_(None), Worker.seen_at > now - GONE_AFTER)
        .order_by(Worker.id)
        .limit(MAX_WORKERS)
    ).all()
    states: Counter[tuple[str, ...]] = Counter(
        ("busy" if worker.job_id else "idle",) for worker, _ in alive
    )
    yield _gauges(
        "titer_workers",
        "Workers that spoke lately, by whether they have a job.",
        ("state",),
        states,
        (("busy",), ("idle",)),
    )
    yield _gauges(
        "titer_worker_silence_seconds",
        "Time since a worker last spoke.",
        ("worker", "device"),
        {(worker.id, worker.device): _age(worker.seen_at, now) for worker, _ in alive},
    )
    yield _gauges(
        "titer_worker_job",
        "1 for the kind of job that a worker has.",
        ("worker", "kind"),
        {(worker.id, kind): 1 for worker, kind in alive if kind is not None},
    )
    for name, meaning, values in (
        (
            "titer_worker_memory_bytes",
            "Memory of a worker's device: the GPU's, or the machine's.",
            {(worker.id,): worker.memory_bytes for worker, _ in alive},
        ),
        (
            "titer_worker_memory_used_bytes",
            "What is in use of it: all of a GPU's, or what this process has of the machine's.",
            {(worker.id,): worker.memory_used_bytes for worker, _ in alive},
        ),
        (
            "titer_worker_gpu_utilisation_ratio",
            "Busy share of a worker's GPU, 0 to 1; absent without one.",
            {
                (worker.id,): worker.utilisation_percent / 100
                for worker, _ in alive
                if worker.utilisation_percent is not None
            },
        ),
    ):
        known: dict[tuple[str, ...], float] = {
            labels: value for labels, value in values.items() if value is not None
        }
        yield _gauges(name, meaning, ("worker",), known)


def _decisions(session: Session, now: datetime) -> Iterator[Metric]:
    """Tell the gate's decisions of a day and the scores that they were made on, in one look."""
    bucket = func.width_bucket(
        # From above: a score that is a bucket's upper end belongs to that bucket.
        -Evaluation.harmful_score_percent,
        [-float(end) for end in reversed(SCORE_BUCKETS)],
    ).label("bucket")
    # One look into the index for each of the day's evaluations. A plain join may read the whole table of models.
    version = (
        select(ModelVersion.root_id, ModelVersion.kind)
        .where(ModelVersion.id == Evaluation.version_id)
        .limit(1)
        .lateral()
    )
    rows = session.execute(
        select(
            version.c.root_id,
            version.c.kind,
            Evaluation.gate,
            bucket,
            func.count().label("decisions"),
            func.sum(Evaluation.harmful_score_percent).label("total"),
        )
        .join(version, true())
        .where(Evaluation.created_at >= now - DAY, Evaluation.gate.is_not(None))
        .group_by(version.c.root_id, version.c.kind, Evaluation.gate, bucket)
    ).all()
    decided: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        decided[(row.kind, row.gate)] += row.decisions
    yield _gauges(
        "titer_gate_decisions_last_day",
        "The gate's decisions within 24 hours, by the model's kind and the verdict.",
        ("kind", "verdict"),
        decided,
        product((VersionKind.ALIGNED, VersionKind.TUNED), Gate),
    )
    yield _scores(rows)


def _scores(rows: Sequence[Row[Any]]) -> Metric:
    by_base: Counter[str] = Counter()
    for row in rows:
        by_base[row.root_id] += row.decisions
    scores = GaugeHistogramMetricFamily(
        "titer_harmful_score_percent",
        "Harmful scores that the gate decided on within 24 hours, by base.",
        labels=("base",),
    )
    named = {base for base, _ in by_base.most_common(MAX_BASES)}
    counts: dict[str, list[int]] = {}
    sums: Counter[str] = Counter()
    for row in rows:
        base = row.root_id if row.root_id in named else OTHER_BASES
        in_bucket = counts.setdefault(base, [0] * len(SCORE_BUCKETS))
        in_bucket[len(SCORE_BUCKETS) - row.bucket] += row.decisions
        sums[base] += row.total
    for base, in_bucket in sorted(counts.items()):
        upto = list(accumulate(in_bucket))
        buckets = [(str(float(end)), n) for end, n in zip(SCORE_BUCKETS, upto, strict=True)]
        scores.add_metric((base,), [*buckets, ("+Inf", upto[-1])], sums[base])
    return scores


def _webhooks(session: Session, now: datetime) -> Iterator[Metric]:
    waiting, due = session.execute(
        select(func.count(), func.min(WebhookDelivery.next_attempt_at))
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(
            WebhookDelivery.status == DeliveryStatus.PENDING,
            # Nothing is sent to the others, so it is not late either.
            WebhookEndpoint.disabled_at.is_(None),
        )
    ).one()
    told = session.execute(
        select(WebhookDelivery.status, func.count())
        .where(WebhookDelivery.created_at >= now - DAY)
        .group_by(WebhookDelivery.status)
    )
    yield _gauges(
        "titer_webhook_deliveries_last_day",
        "Webhook deliveries that were begun within 24 hours, by what has come of them.",
        ("outcome",),
        {(status,): count for status, count in told},
        ((status,) for status in DeliveryStatus),
    )
    yield gauge(
        "titer_webhook_deliveries_pending",
        "Webhook deliveries that are to be made, or made again.",
        waiting,
    )
    yield gauge(
        "titer_webhook_overdue_seconds",
        "For how long the first of them has been due; 0 when none is.",
        _age(due, now),
    )
