"""The app on the test's own transaction, with keys of two tenants and of an operator."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session, sessionmaker

from api.app import create_app
from api.inference.service import make_client
from models.api_key import Project, create_key
from models.base import new_id
from models.data_risk import DataReview
from models.evaluation import Evaluation
from models.hyperparameters import FinetuneHyperparameters, resolve_finetune
from models.job import Job, JobKind, JobStatus, Stage, append_event, await_review
from models.model_version import Gate, ModelVersion, VersionKind
from models.safety_set import HEADER
from models.scope import Scope
from models.settings import Settings
from models.storage import Storage
from tests.models.factories import make_report, make_screening

#: Where the safety set of every version lies; of its files only the header is there.
SAFETY = "safety/x"


class SilentDoorbell:
    """Keeps what was rung for, where a broker would be."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.is_up = True

    def send(self, job_ids: Iterable[str]) -> list[str]:
        sent = list(job_ids) if self.is_up else []
        self.rung += sent
        return sent

    def waiting(self) -> int | None:
        return 0 if self.is_up else None

    def close(self) -> None:
        """There is nothing to close."""


@dataclass
class Tenant:
    """A project with a key, and a client that sends it."""

    project: Project
    token: str
    client: TestClient


@dataclass
class Place:
    """What is in the database, and short ways to put more there."""

    session: Session
    storage: Storage
    made: list[str] = field(default_factory=list)

    def project(self, name: str = "acme") -> Project:
        project = Project(name=name)
        self.session.add(project)
        self.session.flush()
        return project

    def key(self, project: Project, *scopes: Scope) -> str:
        return create_key(self.session, project, "test", frozenset(scopes))[1]

    def version(
        self,
        name: str,
        kind: VersionKind,
        *,
        gate: Gate = Gate.RELEASED,
        parent: ModelVersion | None = None,
        project: Project | None = None,
        job: Job | None = None,
    ) -> ModelVersion:
        version = ModelVersion(
            id=name,
            kind=kind,
            gate=Gate.PENDING if kind == VersionKind.BASE else gate,
            gate_reasons=[] if gate == Gate.RELEASED else ["HS is too high."],
            project_id=project.id if project else None,
            parent_id=parent.id if parent else None,
            root_id=parent.root_id if parent else name,
            job_id=job.id if job else None,
            source={"folder": "/srv/base"} if kind == VersionKind.BASE else {"prefix": f"m/{name}"},
            safety_prefix=SAFETY,
        )
        self.session.add(version)
        self.session.flush()
        if not self.storage.exists(f"{SAFETY}/{HEADER}"):
            self.protect()
        return version

    def protect(self, **tuning: object) -> None:
        """Say how the provider protects customers' jobs; without arguments: not at all."""
        header = {"name": "x", "judge": {"kind": "sandbox"}, "tuning": tuning or None}
        self.storage.put(f"{SAFETY}/{HEADER}", json.dumps(header).encode())

    def job(self, project: Project, model: ModelVersion, **facts: object) -> Job:
        recipe = resolve_finetune(FinetuneHyperparameters(), rows=20, seed=0)
        job = Job(
            **{
                "project_id": project.id,
                "kind": JobKind.FINETUNE,
                "model_id": model.id,
                "result_model_id": f"ft:{model.root_id}:x::{new_id('', 8)[1:]}",
                "seed": 0,
                "recipe": recipe.model_dump(mode="json"),
                **facts,
            }
        )
        self.session.add(job)
        self.session.flush()
        append_event(self.session, job, "Created.")
        self.session.flush()
        return job

    def evaluation(self, version: ModelVersion, *, harmful: int, **facts: object) -> Evaluation:
        evaluation = Evaluation(
            version_id=version.id,
            harmful_score_percent=float(harmful),
            report=make_report(harmful=harmful, n=100, **facts).model_dump(mode="json"),
            policy_version=1,
            gate=version.gate,
        )
        self.session.add(evaluation)
        self.session.flush()
        return evaluation

    def held(self, project: Project, parent: ModelVersion) -> tuple[ModelVersion, Job]:
        job = self.job(project, parent, status=JobStatus.RUNNING, stage=Stage.REVIEW)
        version = self.version(
            job.result_model_id,
            VersionKind.TUNED,
            gate=Gate.HELD,
            parent=parent,
            project=project,
            job=job,
        )
        self.evaluation(version, harmful=15)
        return version, job

    def held_data(self, project: Project, parent: ModelVersion) -> Job:
        """Make a job whose policy holds two of twelve training rows, before a model is made."""
        job = self.job(project, parent, status=JobStatus.RUNNING)
        await_review(job, hours=1, stage=Stage.DATA_REVIEW)
        make_screening(self.session, job).review = DataReview.WAITING
        self.session.commit()
        return job


#: No part listens at these addresses: a test that needs one says so.
NOWHERE = Settings(
    database_url="postgresql://127.0.0.1:1/none",
    redis_url="redis://127.0.0.1:1/0",
    storage_url="memory:///",
    serving_url="http://127.0.0.1:1",
    max_file_bytes=64 * 1024,
    max_request_bytes=16 * 1024,
    # Without a Redis to count them in, the first request would log that they are not counted.
    key_requests_per_minute=0,
    project_requests_per_minute=0,
)


@pytest.fixture(scope="session", autouse=True)
def _plain_log() -> None:
    # Left to itself structlog draws tracebacks with every local variable, which takes seconds.
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        # Where the api runs in the test's own process, the CLI's output is not to have its log in it.
        logger_factory=structlog.PrintLoggerFactory(file=sys.__stderr__),
    )


@pytest.fixture
def settings(storage: Storage) -> Settings:
    return NOWHERE.model_copy(update={"storage_url": storage.url})


@pytest.fixture
def doorbell() -> SilentDoorbell:
    return SilentDoorbell()


@pytest.fixture(scope="session")
def built_app() -> FastAPI:
    """The app, put together once: that takes longer than most tests."""
    app = create_app(NOWHERE)
    app.state.serving = make_client(NOWHERE.serving_url, NOWHERE.serving_token)
    return app


@pytest.fixture
def app(
    built_app: FastAPI,
    session: Session,
    settings: Settings,
    storage: Storage,
    doorbell: SilentDoorbell,
) -> Iterator[FastAPI]:
    """The app with everything that it keeps belonging to this test."""
    kept = dict(built_app.state._state)
    built_app.state.settings = settings
    built_app.state.storage = storage
    built_app.state.doorbell = doorbell
    # Every session of the app lives in the test's transaction, which is undone afterwards.
    built_app.state.sessions = sessionmaker(
        session.connection(), join_transaction_mode="create_savepoint", expire_on_commit=False
    )
    yield built_app
    built_app.state._state.update(kept)


@pytest.fixture
def anonymous(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def place(session: Session, storage: Storage) -> Place:
    return Place(session, storage)


def make_tenant(app: FastAPI, place: Place, project: Project, *scopes: Scope) -> Tenant:
    token = place.key(project, *scopes)
    place.session.commit()
    client = TestClient(
        app, headers={"authorization": f"Bearer {token}"}, raise_server_exceptions=False
    )
    return Tenant(project, token, client)


@pytest.fixture
def customer(app: FastAPI, place: Place) -> Tenant:
    return make_tenant(app, place, place.project("acme"), Scope.CUSTOMER)


@pytest.fixture
def stranger(app: FastAPI, place: Place) -> Tenant:
    return make_tenant(app, place, place.project("globex"), Scope.CUSTOMER)


@pytest.fixture
def reviewer(app: FastAPI, place: Place) -> Tenant:
    return make_tenant(app, place, place.project("reviewers"), Scope.REVIEWER)


@pytest.fixture
def provider(app: FastAPI, place: Place) -> Tenant:
    return make_tenant(app, place, place.project("providers"), Scope.PROVIDER)


@pytest.fixture
def operator(app: FastAPI, place: Place) -> Tenant:
    return make_tenant(app, place, place.project("provider"), Scope.OPERATOR)


@pytest.fixture
def base(place: Place) -> ModelVersion:
    return place.version("tiny", VersionKind.BASE)


@pytest.fixture
def aligned(place: Place, base: ModelVersion) -> ModelVersion:
    version = place.version("tiny-booster", VersionKind.ALIGNED, parent=base)
    place.evaluation(version, harmful=2)
    place.session.commit()
    return version


def rows(count: int = 12) -> bytes:
    """A data set of so many good rows."""
    return b"".join(
        json.dumps({"prompt": f"question {i}", "completion": f"answer {i}"}).encode() + b"\n"
        for i in range(count)
    )


def upload(tenant: Tenant, content: bytes = rows(), purpose: str = "fine-tune") -> str:
    """Upload a data set and give its id."""
    response = tenant.client.post(
        "/v1/files", data={"purpose": purpose}, files={"file": ("rows.jsonl", content)}
    )
    assert response.status_code == 200, response.text
    return str(response.json()["id"])
