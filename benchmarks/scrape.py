"""What a reading of the metrics costs, with the work of a day and histories of growing length behind it.

A real PostgreSQL is filled by `generate_series`: jobs that have not ended, a day's jobs with their models, evaluations
and webhook deliveries, and before that a year of the same, with ten events for each job. Then the api's /metrics is
read, each time anew. If a reading looks only at what is open and at one day, the history costs nothing.

    python -m benchmarks.scrape --history 0 1000000 --out benchmarks/results/scrape.json
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Engine, text

from api.app import create_app
from api.embedded.database import upgrade
from api.embedded.postgres import EmbeddedPostgres
from api.metrics import database
from api.metrics.readings import read_all
from models.session import make_engine, session_factory
from models.settings import Settings

PROJECTS, OPEN_JOBS, JOBS_OF_A_DAY, WORKERS = 200, 5_000, 3_000, 16
EVENTS_PER_JOB = 10
PART = 50_000
TOKEN = "m" * 32

# A recipe and a report are about as long as these.
RECIPE = """jsonb_build_object('train', repeat('x', 900))"""
REPORT = """jsonb_build_object('judge', repeat('x', 1500))"""

TENANTS = f"""
insert into organizations (id, name, created_at) values ('org-1', 'o', now());
insert into projects (id, organization_id, name, created_at, priority)
  select 'proj-' || i, 'org-1', 'p', now(), (array['high', 'normal', 'low'])[1 + i % 3]
  from generate_series(1, {PROJECTS}) i;
insert into model_versions
  (id, kind, gate, gate_reasons, root_id, source, safety_prefix, recipe, data_hashes, created_at)
  select 'base-' || i, 'base', 'pending', '[]', 'base-' || i, '{{}}', 's', '{{}}', '{{}}', now()
  from generate_series(0, 4) i;
insert into webhook_endpoints
  (id, project_id, name, url, event_types, sealed_secret, secret_hint, created_at, updated_at, given_up_in_a_row)
  select 'whe-' || i, 'proj-' || i, 'n', 'https://example.com', '{{}}', 's', 'h', now(), now(), 0
  from generate_series(1, {PROJECTS}) i;
insert into webhook_events (id, project_id, type, data, created_at) values ('evt_1', 'proj-1', 't', '{{}}', now());
insert into workers (id, host, started_at, seen_at, device, version)
  select 'host:' || i, 'host', now(), now() + interval '1 day', 'cpu', '0' from generate_series(1, {WORKERS}) i;
"""

# Jobs @from to @to, whose times are spread from @newest back to @oldest, in seconds ago.
TIMES = "now() - (@newest + (@oldest - @newest) * ((i - @from)::float / (@to - @from + 1))) * interval '1 second'"
JOBS = f"""
insert into jobs
  (id, project_id, kind, status, stage, model_id, result_model_id, seed, recipe, metadata, created_at, started_at,
   finished_at, attempt, lost_leases, gpu_seconds, event_count, claimed_at, lease_expires_at)
  select 'ftjob-' || lpad(i::text, 12, '0'), 'proj-' || (1 + i % {PROJECTS}), 'finetune',
    case when @is_open then (array['queued', 'queued', 'running', 'paused'])[1 + i % 4] else
      (array['succeeded', 'succeeded', 'failed', 'cancelled'])[1 + i % 4] end,
    case when @is_open and i % 4 < 2 then null else 'train' end,
    'base-' || (i % 5), 'ft:' || i, 0, {RECIPE}, '{{}}', {TIMES}, {TIMES},
    case when @is_open then null else {TIMES} end, 1, (i % 50 = 0)::int, 60, {EVENTS_PER_JOB}, {TIMES},
    case when @is_open and i % 4 = 2 then now() + interval '1 day' end
  from generate_series(@from, @to) i
"""
VERSIONS = f"""
insert into model_versions
  (id, kind, gate, gate_reasons, project_id, parent_id, root_id, job_id, source, safety_prefix, recipe, data_hashes,
   created_at)
  select 'ft:' || i, 'tuned', (array['released', 'held', 'blocked'])[1 + i % 3], '[]', 'proj-' || (1 + i % {PROJECTS}),
    'base-' || (i % 5), 'base-' || (i % 5), 'ftjob-' || lpad(i::text, 12, '0'), '{{}}', 's', {RECIPE}, '{{}}', {TIMES}
  from generate_series(@from, @to) i
"""
EVALUATIONS = f"""
insert into evaluations
  (id, version_id, job_id, harmful_score_percent, report, policy_version, gate, reasons, created_at)
  select 'eval-' || lpad(i::text, 12, '0'), 'ft:' || i, 'ftjob-' || lpad(i::text, 12, '0'), (i * 7 % 1000) / 10.0,
    {REPORT}, 1, (array['released', 'held', 'blocked'])[1 + i % 3], '[]', {TIMES}
  from generate_series(@from, @to) i
"""
DELIVERIES = f"""
insert into webhook_deliveries (id, endpoint_id, event_id, status, attempts, attempts_left, created_at)
  select 'whd-' || lpad(i::text, 12, '0'), 'whe-' || (1 + i % {PROJECTS}), 'evt_1',
    (array['delivered', 'delivered', 'delivered', 'failed'])[1 + i % 4], 1, 9, {TIMES}
  from generate_series(@from, @to) i
"""
EVENTS = f"""
insert into job_events (id, job_id, sequence, created_at, level, type, message, data)
  select 'ftevent-' || lpad(i::text, 12, '0') || '-' || n, 'ftjob-' || lpad(i::text, 12, '0'), n, {TIMES}, 'info',
    'metrics', 'Step ' || n, '{{"step": 1, "train_loss": 1.234, "learning_rate": 0.001, "canary_loss": null}}'
  from generate_series(@from, @to) i, generate_series(1, {EVENTS_PER_JOB}) n
"""
OF_ENDED_JOBS = (JOBS, VERSIONS, EVALUATIONS, DELIVERIES, EVENTS)
DAY, YEAR = 24 * 3600, 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Measure:
    """Readings of one database: the fastest, the median and the slowest, in milliseconds.

    On a machine that others use as well the fastest says the most about the work, the others about the wait.
    """

    jobs: int
    events: int
    gigabytes: float
    queries: tuple[float, float, float]
    scrape: tuple[float, float, float]
    bytes: int


def fill(
    engine: Engine, first: int, count: int, *, newest: int, oldest: int, is_open: bool = False
) -> None:
    """Write jobs `first` to `first + count - 1`, with what belongs to them."""
    for start in range(first, first + count, PART):
        end = min(start + PART, first + count) - 1
        share = (oldest - newest) / count
        span = {
            "from": start,
            "to": end,
            "is_open": is_open,
            "newest": newest + (start - first) * share,
            "oldest": newest + (end + 1 - first) * share,
        }
        with engine.begin() as connection:
            # What is written here is known to fit together; the checks would take the most time.
            connection.execute(text("set local session_replication_role = replica"))
            for statement in (JOBS, EVENTS) if is_open else OF_ENDED_JOBS:
                connection.execute(text(_with(statement, span)))


def _with(statement: str, values: Mapping[str, object]) -> str:
    for name, value in values.items():
        statement = re.sub(rf"@{name}\b", str(value), statement)
    return statement


@contextmanager
def filled(history: int) -> Iterator[tuple[str, Engine]]:
    """Lend a database with the work of a day, and so many jobs from the year before."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder), is_durable=False)
        url = server.start()
        try:
            upgrade(url)
            engine = make_engine(url)
            with engine.begin() as connection:
                for statement in TENANTS.strip().split(";\n"):
                    connection.execute(text(statement))
            fill(engine, 1, OPEN_JOBS, newest=0, oldest=DAY, is_open=True)
            fill(engine, 1 + OPEN_JOBS, JOBS_OF_A_DAY, newest=0, oldest=DAY)
            if history:
                fill(engine, 1 + OPEN_JOBS + JOBS_OF_A_DAY, history, newest=DAY, oldest=YEAR)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                # As autovacuum leaves it.
                connection.execute(text("vacuum analyze"))
            yield url, engine
            engine.dispose()
        finally:
            server.stop()


def measure(history: int, readings: int) -> Measure:
    """Fill a database and read its metrics so many times, never from what was kept."""
    with filled(history) as (url, engine):
        sessions = session_factory(engine)
        settings = Settings(
            database_url=url, storage_url="memory:///", metrics_token=SecretStr(TOKEN)
        )
        database.KEPT_SECONDS = -1.0
        of_queries, of_scrape, size = [], [], 0
        headers = {"authorization": f"Bearer {TOKEN}"}
        with TestClient(create_app(settings), headers=headers) as client:
            for _ in range(readings):
                began = time.perf_counter()
                with sessions() as session:
                    list(read_all(session))
                of_queries.append(time.perf_counter() - began)
                began = time.perf_counter()
                answer = client.get("/metrics")
                of_scrape.append(time.perf_counter() - began)
                assert "titer_database_up 1.0" in answer.text
                size = len(answer.content)
        with engine.connect() as connection:
            jobs, events, stored = connection.execute(
                text(
                    "select (select count(*) from jobs), (select count(*) from job_events), "
                    "pg_database_size(current_database())"
                )
            ).one()
        return Measure(
            jobs=jobs,
            events=events,
            gigabytes=round(stored / 1e9, 2),
            queries=_spread(of_queries),
            scrape=_spread(of_scrape),
            bytes=size,
        )


def _spread(seconds: list[float]) -> tuple[float, float, float]:
    found = (min(seconds), statistics.median(seconds), max(seconds))
    fastest, median, slowest = (round(1000 * value, 1) for value in found)
    return fastest, median, slowest


def main() -> None:
    """Measure each history and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=int, nargs="+", default=[0, 100_000])
    parser.add_argument("--readings", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    for history in options.history:
        measured = measure(history, options.readings)
        found.append(asdict(measured))
        print(json.dumps(found[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
