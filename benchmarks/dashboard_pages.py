"""Whether the dashboard's pages stay as fast with a million jobs as with a thousand.

Two databases on one PostgreSQL, of 1,000 jobs with 10,000 events and of 1,000,000 jobs with 10,000,000, are served by
one process each. Each page is asked for in turn from the one and from the other; what counts is the ratio of the
medians, and that every page really shows jobs.

    python -m benchmarks.dashboard_pages --out benchmarks/results/dashboard_pages.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi.testclient import TestClient
from pydantic import SecretStr
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.app import create_app
from api.embedded.database import upgrade
from api.embedded.postgres import EmbeddedPostgres
from api.organization.use import count_use
from models.api_key import Project, create_key
from models.scope import Scope
from models.session import make_engine, session_factory
from models.settings import Settings
from tests.models.factories import make_report

SMALL, LARGE = 1_000, 1_000_000
EVENTS_PER_JOB = 10
#: So many that a page of tenants is full in both databases; one tenant has a tenth of all jobs.
MIN_PROJECTS, JOBS_PER_PROJECT = 60, 1_000
#: Of the finished jobs these are the newest; older models have no evaluation, to keep the database on a disk.
EVALUATED = 100_000
WARM_UP = 3

#: Every fifth job failed, one in a hundred was cancelled; forty run, twenty of them in review, two hundred wait. Every
#: nineteenth is an alignment: they too fill a page of fifty in both databases.
JOBS = """
insert into jobs (id, project_id, kind, status, stage, model_id, result_model_id, suffix, seed, recipe, metadata,
    integrations, created_at, started_at, finished_at, trained_tokens, error_code, error_message, attempt,
    lost_leases, gpu_seconds, event_count, lease_owner, lease_expires_at, held_at, review_expires_at)
select 'ftjob-' || n, 'proj-' || case when n % 10 = 7 then 7 else n % :projects end, case when n % 19 = 0 then 'align' else 'finetune' end,
    status, stage, case when n % 2 = 0 then 'aligned-a' else 'aligned-b' end, 'ft:base:org:run' || n % 7 || ':' || n,
    'run' || n % 7, 0, cast(:recipe as jsonb), '{}', '[]', created_at, created_at + interval '1 second',
    case when status in ('succeeded', 'failed', 'cancelled') then created_at + interval '90 seconds' end, 10000,
    case when status = 'failed' then 'harmful_score_exceeded' end, case when status = 'failed' then 'Blocked.' end,
    1, 0, 90, :events, case when stage = 'train' then 'host:' || n end,
    case when stage = 'train' then now() + interval '1 day' end,
    case when stage = 'review' then created_at end,
    case when stage = 'review' then now() + interval '3 days' end
from (
    select n, now() - (:jobs - n) * interval '1 minute' as created_at,
        case when n > :jobs - 200 then 'queued' when n > :jobs - 240 then 'running'
            when n % 100 = 0 then 'cancelled' when n % 5 = 0 then 'failed' else 'succeeded' end as status,
        case when n > :jobs - 200 then null when n > :jobs - 220 then 'train' when n > :jobs - 240 then 'review'
            else 'gate' end as stage
    from generate_series(1, :jobs) as n
) as made
"""
VERSIONS = """
insert into model_versions (id, kind, gate, gate_reasons, project_id, parent_id, root_id, job_id, source,
    safety_prefix, method, recipe, data_hashes, created_at)
select result_model_id, 'tuned', case status when 'succeeded' then 'released' when 'failed' then 'blocked'
    else 'held' end, '[]', project_id, model_id, 'base', id, '{"prefix": "m"}', 's', 'sft', '{}', '{}',
    created_at + interval '80 seconds'
from jobs where status in ('succeeded', 'failed') or stage = 'review'
"""
EVALUATIONS = """
insert into evaluations (id, version_id, job_id, harmful_score_percent, report, policy_version, gate, score_gate,
    reasons, created_at, tenant_risk)
select 'eval-' || v.id, v.id, v.job_id, 3, cast(:report as jsonb), 1, v.gate, v.gate, '[]', v.created_at, 3
from model_versions v where v.job_id is not null order by v.created_at desc limit :evaluated
"""
EVENTS = """
insert into job_events (id, job_id, sequence, created_at, level, type, message, data)
select 'ftevent-' || j.id || '-' || n, j.id, n, j.created_at + n * interval '1 second', 'info',
    case when n between 3 and 8 then 'metrics' else 'message' end, 'Step ' || n,
    case when n between 3 and 8 then jsonb_build_object('step', n * 20, 'total_steps', 160, 'train_loss', 1.0 / n,
        'stage', 'train', 'canary_loss', 2.1) end
from jobs j, generate_series(1, :events) as n
"""
AUDIT = """
insert into audit_entries (id, position, created_at, action, actor_name, subject_kind, subject_id, project_id,
    details, previous_sha256, sha256)
select 'audit-' || n, n, now() - (:jobs - n) * interval '1 minute', 'gate.decided', 'titer', 'model',
    'ft:base:org:run' || n % 7 || ':' || n, 'proj-' || case when n % 10 = 7 then 7 else n % :projects end, '{}',
    repeat('0', 64), repeat('0', 64)
from generate_series(1, :jobs) as n
"""
BASES = """
insert into model_versions (id, kind, gate, gate_reasons, root_id, source, safety_prefix, recipe, data_hashes,
    created_at, parent_id)
values ('base', 'base', 'pending', '[]', 'base', '{"folder": "/srv"}', 's', '{}', '{}', now() - interval '9 years', null),
    ('aligned-a', 'aligned', 'released', '[]', 'base', '{"prefix": "a"}', 's', '{}', '{}', now() - interval '8 years', 'base'),
    ('aligned-b', 'aligned', 'released', '[]', 'base', '{"prefix": "b"}', 's', '{}', '{}', now() - interval '8 years', 'base')
"""
WHERE = """
insert into projects (id, name, organization_id, priority, created_at)
select 'proj-' || n, 'tenant ' || n, :organization, 'normal', now() from generate_series(0, :projects - 1) as n
"""


@dataclass(frozen=True, slots=True)
class Page:
    """One page, and a word that stands on it only when it shows what it is for."""

    name: str
    address: str
    shows: str
    is_customer: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """A page's median times in milliseconds, and their ratio; how often both pages show what they are for."""

    page: str
    shown_small: int
    shown_large: int
    milliseconds_small: float
    milliseconds_large: float
    ratio: float


def pages(jobs: int) -> list[Page]:
    """Name the pages, of a database with so many jobs."""
    blocked = jobs - 245
    blocked -= blocked % 5
    return [
        Page("overview", "/dashboard/overview", "Overview"),
        Page("jobs", "/dashboard/jobs", "row-ftjob-"),
        Page("jobs, failed", "/dashboard/jobs?status=failed", "row-ftjob-"),
        Page("jobs, of a tenant", "/dashboard/jobs?tenant=tenant+7", "row-ftjob-"),
        Page("jobs, held", "/dashboard/jobs?gate=held", "row-ftjob-"),
        Page("jobs, alignments", "/dashboard/jobs?kind=align", "row-ftjob-"),
        Page("jobs, made from", "/dashboard/jobs?base=aligned-a", "row-ftjob-"),
        Page("jobs, by suffix", "/dashboard/jobs?search=run3", "row-ftjob-"),
        Page("jobs, by id", f"/dashboard/jobs?search=ftjob-{blocked}", "row-ftjob-"),
        Page("jobs, far back", f"/dashboard/jobs?before=ftjob-{jobs // 2}", "row-ftjob-"),
        Page("jobs, of a day", "/dashboard/jobs?since=2001-01-01&until=2999-01-01", "row-ftjob-"),
        Page("jobs, a customer's", "/dashboard/jobs", "row-ftjob-", is_customer=True),
        Page("a job", f"/dashboard/jobs/ftjob-{blocked}", "Harmful score"),
        Page("a job's curves", f"/dashboard/jobs/ftjob-{blocked}/curves.json", "train_loss"),
        Page("reviews", "/dashboard/reviews", "Review"),
        Page("models", "/dashboard/models", "aligned-a"),
        Page("models, a customer's", "/dashboard/models", "aligned-a", is_customer=True),
        Page("an aligned base", "/dashboard/models/aligned-a", "aligned-a"),
        Page("tenants", "/dashboard/tenants", "tenant"),
        Page("a tenant", "/dashboard/tenants/proj-7", "tenant 7"),
        Page("policies", "/dashboard/policies", "Polic"),
        Page("audit", "/dashboard/audit", "gate.decided"),
        Page("audit, of a tenant", "/dashboard/audit?project=proj-7", "gate.decided"),
        Page("system", "/dashboard/system", "System"),
    ]


def fill(session: Session, jobs: int, console: Console) -> tuple[str, str]:
    """Put so many jobs into an empty database; give an operator's and a customer's token."""
    provider = Project(name="provider")
    session.add(provider)
    session.flush()
    many = {
        "projects": max(MIN_PROJECTS, jobs // JOBS_PER_PROJECT),
        "organization": provider.organization_id,
        "jobs": jobs,
    }
    recipe = {"method": {"name": "sft"}, "train": {"steps": 160}}
    facts = {
        **many,
        "events": EVENTS_PER_JOB,
        "recipe": json.dumps(recipe),
        "report": make_report(3, n=200).model_dump_json(),
        "evaluated": EVALUATED,
    }
    # The trigger tells listeners; there are none.
    session.execute(text("alter table job_events disable trigger user"))
    for statement in (WHERE, BASES, JOBS, VERSIONS, EVALUATIONS, EVENTS, AUDIT):
        started = time.monotonic()
        wanted = {name: value for name, value in facts.items() if f":{name}" in statement}
        session.execute(text(statement), wanted)
        console.log(statement.split()[2], f"{time.monotonic() - started:.0f} s")
    session.execute(text("alter table job_events enable trigger user"))
    customer = session.get_one(Project, "proj-7")
    operator = create_key(session, provider, "operator", frozenset({Scope.OPERATOR}))[1]
    return operator, create_key(session, customer, "customer", frozenset({Scope.CUSTOMER}))[1]


@contextmanager
def served(url: str, jobs: int, folder: Path, console: Console) -> Iterator[dict[bool, TestClient]]:
    """Serve a filled database; give signed-in clients, by whether they are a customer's."""
    upgrade(url)
    engine = make_engine(url)
    with session_factory(engine).begin() as session:
        operator, customer = fill(session, jobs, console)
        # As the sweeper does every minute.
        count_use(session)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))
    engine.dispose()
    settings = Settings(
        database_url=url,
        redis_url="redis://127.0.0.1:1/0",
        storage_url=folder.as_uri(),
        session_secret=SecretStr("s" * 32),
    )
    app = create_app(settings)
    with ExitStack() as stack:
        clients = {}
        for is_customer, token in ((False, operator), (True, customer)):
            client = stack.enter_context(TestClient(app, follow_redirects=False))
            page = client.get("/dashboard/login").text
            csrf = page.split('name="csrf" value="')[1].split('"')[0]
            client.post("/dashboard/login", data={"csrf": csrf, "api_key": token})
            clients[is_customer] = client
        yield clients


def ask(client: TestClient, page: Page) -> tuple[float, int]:
    """Ask for a page; give the milliseconds that it took, and how often it shows what it is for."""
    started = time.perf_counter()
    answer = client.get(page.address)
    elapsed = time.perf_counter() - started
    if answer.status_code != 200 or page.shows not in answer.text:
        raise RuntimeError(f"{page.address}: {answer.status_code}, or not what it should show")
    return elapsed * 1000, answer.text.count(page.shows)


def measure(
    small: dict[bool, TestClient],
    large: dict[bool, TestClient],
    jobs: int,
    rounds: int,
    only: str,
) -> list[Measure]:
    """Ask for each page in turn from both, and compare the medians."""
    measured = []
    pairs = zip(pages(SMALL), pages(jobs), strict=True)
    wanted = [pair for pair in pairs if only in pair[0].name]
    for near, far in track(wanted, description="Pages"):
        times: tuple[list[float], list[float]] = ([], [])
        pair = ((0.0, 0), (0.0, 0))
        for round_ in range(rounds + WARM_UP):
            pair = (ask(small[near.is_customer], near), ask(large[far.is_customer], far))
            if round_ >= WARM_UP:
                for kept, (took, _) in zip(times, pair, strict=True):
                    kept.append(took)
        few, many = map(statistics.median, times)
        shown = (pair[0][1], pair[1][1])
        measured.append(
            Measure(near.name, *shown, round(few, 2), round(many, 2), round(many / few, 2))
        )
    return measured


def main() -> None:
    """Fill, serve, measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=LARGE)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="", help="pages with this in their names")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clients = []
        for jobs in (SMALL, arguments.jobs):
            place = Path(folder) / str(jobs)
            server = EmbeddedPostgres(place / "postgres", is_durable=False)
            url = server.start()
            stack.callback(server.stop)
            (place / "store").mkdir()
            clients.append(stack.enter_context(served(url, jobs, place / "store", console)))
        measured = measure(clients[0], clients[1], arguments.jobs, arguments.rounds, arguments.only)
    table = Table(
        "page", "shown", "shown", f"{SMALL:,} jobs, ms", f"{arguments.jobs:,} jobs, ms", "ratio"
    )
    for line in measured:
        table.add_row(line.page, *(str(value) for value in list(asdict(line).values())[1:]))
    console.print(table)
    if arguments.out:
        facts = {
            "jobs": [SMALL, arguments.jobs],
            "events_per_job": EVENTS_PER_JOB,
            "rounds": arguments.rounds,
            "pages": [asdict(line) for line in measured],
        }
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
