"""What open streams of job events cost the database while nothing happens, how late an event comes, and what telling costs.

A real uvicorn process on a real PostgreSQL holds streams open, each on a job of its own. Once it is told of
changes, and once it cannot listen and so looks every second, as it did before it listened at all.

    python -m benchmarks.idle_streams --streams 50 --out benchmarks/results/idle_streams.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psycopg
from sqlalchemy.orm import Session

from api.embedded.database import upgrade
from api.embedded.postgres import EmbeddedPostgres
from benchmarks.upload_memory import free_port
from models.api_key import Project, create_key
from models.job import Job, JobKind, JobStatus, append_event, lock_job
from models.model_version import ModelVersion, VersionKind
from models.scope import Scope
from models.session import make_engine, psycopg_arguments

NOWHERE = "postgresql://127.0.0.1:1/none"
SETTLE_SECONDS = 5.0
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Measure:
    """One way to learn of changes: its price while nothing happens, and its delay when something does."""

    way: str
    streams: int
    idle_transactions_per_second: float
    delay_milliseconds_median: float
    delay_milliseconds_worst: float


@dataclass(frozen=True, slots=True)
class Price:
    """One event in a transaction of its own, with and without telling of it."""

    milliseconds_told: float
    milliseconds_untold: float


def make_jobs(session: Session, count: int) -> tuple[str, list[str]]:
    """Make a customer's key and so many running jobs."""
    project = Project(name="benchmark")
    base = ModelVersion(
        id="base", kind=VersionKind.BASE, root_id="base", source={}, safety_prefix="safety/x"
    )
    session.add_all([project, base])
    session.flush()
    token = create_key(session, project, "benchmark", frozenset({Scope.CUSTOMER}))[1]
    jobs = [
        Job(
            project_id=project.id,
            kind=JobKind.FINETUNE,
            status=JobStatus.RUNNING,
            model_id="base",
            result_model_id=f"model-{number}",
            seed=0,
            recipe={},
        )
        for number in range(count)
    ]
    session.add_all(jobs)
    session.flush()
    for job in jobs:
        append_event(session, job, "Created.")
    session.commit()
    return token, [job.id for job in jobs]


@contextmanager
def api_process(url: str, listen_url: str, streams: int, folder: Path) -> Iterator[str]:
    """Run the api as it is deployed; give its address once it answers."""
    port = free_port()
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "STORAGE_URL": (folder / "storage").as_uri(),
        "TITER_LISTEN_URL": listen_url,
        # One project has a tenth.
        "TITER_MAX_EVENT_STREAMS": str(streams * 10),
        "TITER_LOG_LEVEL": "ERROR",
        "TITER_KEY_REQUESTS_PER_MINUTE": "0",
        "TITER_PROJECT_REQUESTS_PER_MINUTE": "0",
    }
    module = ["uvicorn", "--factory", "api.app:create_app", "--port", str(port)]
    quiet = ["--no-access-log", "--log-level", "error", "--timeout-graceful-shutdown", "1"]
    with subprocess.Popen([sys.executable, "-m", *module, *quiet], env=environment) as process:
        try:
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/openapi.json").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


class Follower:
    """Reads one job's stream, and notes when each event came."""

    def __init__(self, address: str, token: str, job_id: str) -> None:
        self.came: list[float] = []
        self.is_open = threading.Event()
        self._address, self._token, self._job_id = address, token, job_id
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        path = f"{self._address}/v1/fine_tuning/jobs/{self._job_id}/events/stream"
        headers = {"authorization": f"Bearer {self._token}"}
        with ExitStack() as stack:
            client = stack.enter_context(httpx.Client(headers=headers, timeout=None))
            response = stack.enter_context(client.stream("GET", path))
            response.raise_for_status()
            try:
                for line in response.iter_lines():
                    if line.startswith("id: "):
                        self.came.append(time.perf_counter())
                        self.is_open.set()
            except httpx.TransportError:
                return


def transactions(connection: psycopg.Connection[tuple[int]]) -> int:
    """Read how many the database has had, from statistics that are a second old at most."""
    row = connection.execute(
        "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    ).fetchone()
    assert row is not None
    return row[0]


def measure(
    way: str,
    url: str,
    listen_url: str,
    token: str,
    job_ids: list[str],
    seconds: float,
    folder: Path,
) -> Measure:
    """Hold streams open for a while, then tell one job after another something."""
    engine = make_engine(url)
    with (
        api_process(url, listen_url, len(job_ids), folder) as address,
        psycopg.connect(**psycopg_arguments(url), autocommit=True) as connection,
    ):
        followers = [Follower(address, token, job_id) for job_id in job_ids]
        assert all(follower.is_open.wait(60) for follower in followers)
        time.sleep(SETTLE_SECONDS)
        before, began = transactions(connection), time.perf_counter()
        time.sleep(seconds)
        idle = (transactions(connection) - before) / (time.perf_counter() - began)
        delays = []
        with Session(engine) as session:
            for job_id, follower in zip(job_ids, followers, strict=True):
                count = len(follower.came)
                append_event(session, lock_job(session, job_id), "Something.")
                session.commit()
                told = time.perf_counter()
                while len(follower.came) == count:
                    time.sleep(0.0005)
                delays.append(1000 * (follower.came[-1] - told))
    engine.dispose()
    return Measure(
        way,
        len(job_ids),
        round(idle, 2),
        round(statistics.median(delays), 1),
        round(max(delays), 1),
    )


def price(url: str, job_id: str, events: int) -> Price:
    """Write events one by one, with the trigger and without it, by turns."""
    engine = make_engine(url)
    took: dict[str, list[float]] = {"enable": [], "disable": []}
    with Session(engine) as session:
        for _ in range(ROUNDS):
            for what, times in took.items():
                session.connection().exec_driver_sql(
                    f"alter table job_events {what} trigger job_events_told"
                )
                session.commit()
                began = time.perf_counter()
                for _ in range(events):
                    append_event(session, lock_job(session, job_id), "Something.")
                    session.commit()
                times.append(1000 * (time.perf_counter() - began) / events)
        session.connection().exec_driver_sql(
            "alter table job_events enable trigger job_events_told"
        )
        session.commit()
    engine.dispose()
    return Price(
        round(statistics.median(took["enable"]), 3), round(statistics.median(took["disable"]), 3)
    )


def main() -> None:
    """Measure both ways and the price of telling, print a line each, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Without waiting for the disk, whose moods are larger than what is measured.
        server = EmbeddedPostgres(folder / "postgres", is_durable=False)
        url = server.start()
        try:
            upgrade(url)
            engine = make_engine(url)
            with Session(engine) as session:
                token, job_ids = make_jobs(session, args.streams)
            engine.dispose()
            found: list[Measure | Price] = [price(url, job_ids[0], args.events)]
            for way, listen_url in (("looks every second", NOWHERE), ("is told", url)):
                found.append(measure(way, url, listen_url, token, job_ids, args.seconds, folder))
        finally:
            server.stop()
    for one in found:
        print(one)
    if args.out is not None:
        args.out.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
