"""docs/from-openai.md does what it says: its script runs, its tables are the served API's, call for call."""

from __future__ import annotations

import hashlib
import inspect
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, reduce
from pathlib import Path
from typing import get_args

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from openai import OpenAI
from openai._resource import SyncAPIResource
from sqlalchemy import select
from starlette.routing import BaseRoute

from api import deps
from api.schemas import JsonObject
from models.api_key import Project
from models.file import File, content_key
from models.job import Job, JobStatus, append_event, claim, fail, succeed
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import PolicyRules
from models.scope import Scope
from tests.api.conftest import Place, Tenant, rows, upload
from tests.api.server import serve
from tests.api.test_openai_client import ANSWER

# Each test starts a server.
pytestmark = pytest.mark.long

PAGE = (Path(__file__).parents[2] / "docs" / "from-openai.md").read_text()
SCRIPT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CURVE = b"step,train_loss,train_accuracy\n1,1.00000,0.50000\n"


def table(title: str) -> list[list[str]]:
    """The cells of the one table below a heading, without its two first lines."""
    below = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def operations(cell: str) -> list[str]:
    return re.findall(r"`([A-Z]+ /[^`]+)`", cell)


THEIRS, OURS, ABSENT = (
    table(title) for title in ("OpenAI's endpoints", "Titer's own endpoints", "What is not here")
)


class TestTables:
    def test_every_operation_is_named_once_and_no_other(self, built_app: FastAPI) -> None:
        named = [found for line in (*THEIRS, *OURS) for found in operations(line[0])]
        assert len(named) == len(set(named))
        assert set(named) == {
            f"{method.upper()} {path}"
            for path, methods in built_app.openapi()["paths"].items()
            for method in methods
        }

    def test_the_keys_are_those_that_are_asked_for(self, built_app: FastAPI) -> None:
        needed = {
            f"{method} {route.path_format}": scope(route.dependant)
            for route in routes(built_app.routes)
            for method in route.methods
        }
        told = {
            found: line[column]
            for lines, column in ((THEIRS, 2), (OURS, 1))
            for line in lines
            for found in operations(line[0])
        }
        assert told == {found: needed[found] for found in told}

    @pytest.mark.parametrize("name", [line[1].strip("`") for line in THEIRS])
    def test_the_stock_client_has_the_calls_of_the_first_table(self, name: str) -> None:
        assert callable(resolve(name))

    @pytest.mark.parametrize(
        "name", [found for line in ABSENT for found in re.findall(r"`([a-z_.]+)`", line[0])]
    )
    def test_what_is_not_here_is_in_the_stock_client(self, name: str) -> None:
        assert resolve(name) is not None

    def test_every_call_of_the_stock_client_is_told_of(self) -> None:
        there = {line[1].strip("`") for line in THEIRS}
        absent = [name for line in ABSENT for name in re.findall(r"`([a-z_.]+)`", line[0])]
        helpers = PAGE.split("The client's helpers")[1]
        left = {
            call
            for call in offered(OpenAI(api_key="none", admin_api_key="none"))
            if call not in there and not any(f"{call}.".startswith(f"{name}.") for name in absent)
        }
        assert left == set(re.findall(r"`([a-z]+\.[a-z_.]+)`", helpers))

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("POST", "/v1/fine_tuning/alpha/graders/run", 404, "unknown_url"),
            ("GET", "/v1/fine_tuning/checkpoints/x/permissions", 404, "unknown_url"),
            ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
            ("GET", "/v1/chat/completions/x", 404, "unknown_url"),
            ("POST", "/v1/responses", 404, "unknown_url"),
            ("POST", "/v1/batches", 404, "unknown_url"),
            ("GET", "/v1/organization/users", 404, "unknown_url"),
            ("GET", "/v1/organization/usage/completions", 404, "unknown_url"),
        ],
    )
    def test_what_is_not_here_is_told_so(
        self, operator: Tenant, method: str, path: str, status: int, code: str
    ) -> None:
        response = operator.client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


class TestDifferences:
    @pytest.mark.parametrize(
        ("asked", "status", "code"),
        [
            ({"model": "gpt-4o-mini-2024-07-18"}, 404, "model_not_found"),
            ({"model": "tiny"}, 400, "model_not_aligned"),
            ({"method": {"type": "reinforcement"}}, 400, "unsupported_method"),
            ({"n_epochs": 3}, 400, "invalid_request"),
        ],
    )
    def test_what_is_refused_is_refused_in_these_words(
        self, customer: Tenant, aligned: ModelVersion, asked: JsonObject, status: int, code: str
    ) -> None:
        body = {"model": aligned.id, "training_file": upload(customer), **asked}
        response = customer.client.post("/v1/fine_tuning/jobs", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert f"{status} `{code}`" in PAGE

    def test_the_hours_of_a_held_model(self) -> None:
        assert f"after {PolicyRules().review_hours:g} hours" in PAGE


class TestScript:
    @pytest.fixture
    def project(self, place: Place) -> Project:
        return place.project()

    @pytest.fixture
    def run(
        self,
        app: FastAPI,
        place: Place,
        project: Project,
        aligned: ModelVersion,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Iterator[Callable[[], None]]:
        token = place.key(project, Scope.CUSTOMER)
        place.session.commit()
        (tmp_path / "train.jsonl").write_bytes(rows(20))
        monkeypatch.chdir(tmp_path)
        (script,) = SCRIPT
        with serve(app) as address:
            app.state.serving = httpx.AsyncClient(
                transport=httpx.MockTransport(lambda _: httpx.Response(200, json=ANSWER)),
                base_url="http://serving",
            )
            monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", token)
            yield lambda: exec(script, {})

    def test_to_the_answer_of_a_released_model(
        self,
        run: Callable[[], None],
        place: Place,
        aligned: ModelVersion,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def work() -> None:
            job = taken(place)
            version = tuned(place, job, aligned, Gate.RELEASED)
            place.evaluation(version, harmful=3)
            job.result_file_id = curve(place, job).id
            succeed(place.session, job)

        monkeypatch.setattr(time, "sleep", turns(place, lambda: train(place), work))
        run()
        told = capsys.readouterr().out
        for line in (
            "info Step 1/2: training loss=1.00",
            "info The job has successfully completed.",
            CURVE.decode().strip(),
            "harmful score, percent: 3.0",
            "hi",
        ):
            assert told.count(f"{line}\n") == 1, line
        assert told.index("Created") < told.index("Step 1/2") < told.index("completed")

    def test_a_held_model_keeps_it_waiting_and_a_blocked_one_ends_it(
        self,
        run: Callable[[], None],
        place: Place,
        aligned: ModelVersion,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def block() -> None:
            job = taken(place)
            tuned(place, job, aligned, Gate.BLOCKED)
            fail(place.session, job, code="harmful_score_exceeded", message="HS is 90%.")

        def hold() -> None:
            append_event(place.session, taken(place), "The model is held.", level="warn")

        monkeypatch.setattr(time, "sleep", turns(place, lambda: train(place), hold, block))
        with pytest.raises(SystemExit, match="failed: harmful_score_exceeded"):
            run()
        told = capsys.readouterr().out
        assert told.index("warn The model is held.") < told.index("error HS is 90%.")


def resolve(name: str) -> object:
    """The attribute of a stock client that a dotted name leads to."""
    client: object = OpenAI(api_key="none", admin_api_key="none")
    return reduce(getattr, name.split("."), client)


def offered(resource: object, *names: str) -> Iterator[str]:
    """The dotted names of all calls that a client, or one resource of it, has."""
    for name, member in inspect.getmembers_static(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        if isinstance(member, cached_property):
            within = getattr(resource, name)
            if isinstance(within, SyncAPIResource):
                yield from offered(within, *names, name)
        elif isinstance(resource, SyncAPIResource) and callable(member):
            yield ".".join((*names, name))


SCOPES = {
    deps.require_operator: "operator",
    deps.require_provider: "provider",
    deps.require_reviewer: "reviewer",
    get_args(deps.CustomerDep)[1].dependency: "customer",
    deps.require_staff: "staff",
    deps.get_caller: "any",
}


def routes(found: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    """Every route of an app, through the routers that it includes."""
    for route in found:
        if isinstance(route, APIRoute):
            yield route
        elif (included := getattr(route, "original_router", None)) is not None:
            yield from routes(included.routes)


def scope(dependant: Dependant) -> str:
    """The narrowest of the scopes that a route asks for."""
    asked = set(calls(dependant))
    return next((word for call, word in SCOPES.items() if call in asked), "none")


def calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for further in dependant.dependencies:
        yield from calls(further)


def turns(place: Place, *steps: Callable[[], None]) -> Callable[[float], None]:
    """A sleep during which the worker does the next of its steps; after the last the test fails."""
    left = iter(steps)

    def sleep(seconds: float) -> None:
        step = next(left, None)
        assert step is not None, "the script waits for a job that has ended"
        step()
        place.session.commit()

    return sleep


def taken(place: Place) -> Job:
    place.session.expire_all()
    return place.session.scalars(select(Job)).one()


def train(place: Place) -> None:
    job = taken(place)
    assert claim(place.session, job.id, owner="w", lease_seconds=60)
    assert job.status == JobStatus.RUNNING
    data = {"step": 1, "train_loss": 1.0}
    append_event(place.session, job, "Step 1/2: training loss=1.00", type="metrics", data=data)


def tuned(place: Place, job: Job, parent: ModelVersion, gate: Gate) -> ModelVersion:
    return place.version(
        job.result_model_id,
        VersionKind.TUNED,
        gate=gate,
        parent=parent,
        project=place.session.get_one(Project, job.project_id),
        job=job,
    )


def curve(place: Place, job: Job) -> File:
    """The result file, as the worker stores it."""
    sha256 = hashlib.sha256(CURVE).hexdigest()
    place.storage.put(content_key(sha256), CURVE)
    file = File(
        project_id=job.project_id,
        filename="step_metrics.csv",
        purpose="fine-tune-results",
        bytes=len(CURVE),
        sha256=sha256,
    )
    place.session.add(file)
    place.session.flush()
    return file
