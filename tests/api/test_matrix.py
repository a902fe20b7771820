"""Every operation against {no key, wrong scope, other tenant, wrong state, valid}: the table, and what follows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.event_stream import service as event_stream
from api.webhooks.sender import Sender
from models.model_version import ModelVersion
from models.scope import Scope
from models.settings import Settings
from tests.api.conftest import NOWHERE, Place, Tenant, make_tenant
from tests.api.test_completions import chat
from tests.api.test_moderations import judged
from tests.api.test_openapi import operations
from tests.api.world import HOOK, SETTINGS, Ask, Made, World

# Some three hundred cases, each with a tenant of its own.
pytestmark = pytest.mark.long

Scopes = frozenset[Scope]
CUSTOMER = frozenset({Scope.CUSTOMER})
OPERATOR = frozenset({Scope.OPERATOR})
REVIEWER = OPERATOR | {Scope.REVIEWER}
PROVIDER = OPERATOR | {Scope.PROVIDER}
STAFF = REVIEWER | PROVIDER
ANYONE = STAFF | CUSTOMER
#: Of an object that its own project alone can reach, staff no more than others.
NOBODY: Scopes = frozenset()
#: Operations without a key.
PUBLIC = {"GET /healthz", "GET /v1/safety/keys"}


@dataclass(frozen=True)
class Line:
    """One operation.

    `who` may call it. `make` gives a valid request, on an object of the caller's where there is one.
    `seen_by`: the object is a tenant's, and these scopes alone reach another tenant's; None: it is no tenant's.
    `wrong` gives a request on an object whose state does not allow it, and `status` the refusal.
    """

    call: str
    who: Scopes
    make: Callable[[World], Made] = World.nothing
    seen_by: Scopes | None = None
    json: dict[str, Any] | None = None
    wrong: Callable[[World], Made] | None = None
    status: int = 409

    def is_listed(self, ask: Ask) -> bool:
        """Whether the object is looked for among others, and not asked for by its id."""
        return self.call.startswith("GET ") and "{" not in self.call and not ask.content

    def ask(self, made: Made) -> Ask:
        ask = made if isinstance(made, Ask) else Ask((made,) if made else (), about=made or "")
        return Ask(
            ask.ids, {**({"json": self.json} if self.json else {}), **ask.content}, ask.about
        )

    def send(self, client: TestClient, ask: Ask) -> httpx.Response:
        method, path = self.call.split()
        for value in ask.ids:
            path = re.sub(r"\{\w+\}", quote(value, safe=""), path, count=1)
        response: httpx.Response = client.request(method, path, **ask.content)
        return response


FILES, UPLOADS = "/v1/files", "/v1/uploads"
TUNING, ALIGNING = "/v1/fine_tuning/jobs", "/v1/alignment/jobs"
CERTIFYING, EVALUATING = "/v1/certification/jobs", "/v1/evaluation/jobs"
MODEL = "/v1/models/{model}"
KEYS, ORGANIZATION = "/v1/keys", "/v1/organization"
PROJECTS, PROJECT = f"{ORGANIZATION}/projects", f"{ORGANIZATION}/projects/{{project_id}}"
ADMIN_KEYS = f"{ORGANIZATION}/admin_api_keys"
HOOKS, ENDPOINT = "/v1/webhook_endpoints", "/v1/webhook_endpoints/{endpoint_id}"
POLICIES, REVIEWS = "/v1/policies", "/v1/reviews"
REASON = {"reason": "Looked at."}
KEY = {"name": "k", "scopes": ["customer"]}
SAMPLE = {"event_type": "fine_tuning.job.failed"}
NEW_UPLOAD = {
    "bytes": 9,
    "filename": "rows.jsonl",
    "mime_type": "application/jsonl",
    "purpose": "fine-tune",
}

# fmt: off
TABLE = [
    Line(f"POST {FILES}", CUSTOMER, World.new_file),
    Line(f"GET {FILES}", ANYONE, World.file, NOBODY),
    Line(f"GET {FILES}/{{file_id}}", ANYONE, World.file, NOBODY),
    Line(f"DELETE {FILES}/{{file_id}}", CUSTOMER, World.file, NOBODY, wrong=World.file_in_use),
    Line(f"GET {FILES}/{{file_id}}/content", ANYONE, World.file, NOBODY),

    Line(f"POST {UPLOADS}", CUSTOMER, json=NEW_UPLOAD),
    Line(f"POST {UPLOADS}/{{upload_id}}/parts", CUSTOMER, World.upload_and_part, NOBODY, wrong=World.part_of_cancelled),
    Line(f"POST {UPLOADS}/{{upload_id}}/complete", CUSTOMER, World.filled_upload, NOBODY, wrong=World.filled_cancelled),
    Line(f"POST {UPLOADS}/{{upload_id}}/cancel", CUSTOMER, World.upload, NOBODY, wrong=World.expired_upload),

    Line(f"POST {TUNING}", CUSTOMER, World.new_job, NOBODY, wrong=World.reused_idempotency_key),
    Line(f"GET {TUNING}", ANYONE, World.queued, STAFF),
    Line(f"GET {TUNING}/{{job_id}}", ANYONE, World.queued, STAFF),
    Line(f"POST {TUNING}/{{job_id}}/cancel", ANYONE, World.queued, STAFF, wrong=World.ended),
    Line(f"POST {TUNING}/{{job_id}}/pause", ANYONE, World.queued, STAFF, wrong=World.ended),
    Line(f"POST {TUNING}/{{job_id}}/resume", ANYONE, World.paused, STAFF, wrong=World.ended),
    Line(f"GET {TUNING}/{{job_id}}/events", ANYONE, World.queued, STAFF),
    Line(f"GET {TUNING}/{{job_id}}/events/stream", ANYONE, World.ended, STAFF),
    Line(f"GET {TUNING}/{{job_id}}/checkpoints", ANYONE, World.queued, STAFF),
    Line(f"GET {TUNING}/{{job_id}}/data_risk", ANYONE, World.screened, STAFF),
    Line(f"GET {TUNING}/{{job_id}}/data_risk/{{line}}", CUSTOMER | REVIEWER, World.screened_row, REVIEWER),
    Line(f"POST {TUNING}/{{job_id}}/appeal", CUSTOMER, World.appealable, NOBODY, {"text": "Look again."}, World.decided),
    Line(f"GET {TUNING}/{{job_id}}/appeal", ANYONE, World.appealed, STAFF),

    Line(f"POST {ALIGNING}", PROVIDER, World.new_alignment, wrong=World.name_of_alignment_taken),
    Line(f"GET {ALIGNING}", PROVIDER),
    Line(f"GET {ALIGNING}/{{job_id}}", PROVIDER, World.alignment),
    Line(f"POST {ALIGNING}/{{job_id}}/cancel", PROVIDER, World.alignment, wrong=World.ended_alignment),
    Line(f"POST {ALIGNING}/{{job_id}}/pause", PROVIDER, World.alignment, wrong=World.ended_alignment),
    Line(f"POST {ALIGNING}/{{job_id}}/resume", PROVIDER, World.paused_alignment, wrong=World.ended_alignment),
    Line(f"GET {ALIGNING}/{{job_id}}/events", PROVIDER, World.alignment),
    Line(f"GET {ALIGNING}/{{job_id}}/events/stream", PROVIDER, World.ended_alignment),

    Line("GET /v1/certification/plans", PROVIDER),
    Line(f"POST {CERTIFYING}", PROVIDER, World.new_certification, wrong=World.certified_already),
    Line(f"GET {CERTIFYING}", PROVIDER),
    Line(f"GET {CERTIFYING}/{{job_id}}", PROVIDER, World.certification),
    Line(f"POST {CERTIFYING}/{{job_id}}/cancel", PROVIDER, World.certification, wrong=World.ended_certification),
    Line(f"POST {CERTIFYING}/{{job_id}}/pause", PROVIDER, World.certification, wrong=World.ended_certification),
    Line(f"POST {CERTIFYING}/{{job_id}}/resume", PROVIDER, World.paused_certification, wrong=World.ended_certification),
    Line(f"GET {CERTIFYING}/{{job_id}}/events", PROVIDER, World.certification),
    Line(f"GET {CERTIFYING}/{{job_id}}/events/stream", PROVIDER, World.ended_certification),

    Line(f"POST {EVALUATING}", PROVIDER, World.new_evaluation, wrong=World.evaluated_already),
    Line(f"GET {EVALUATING}", PROVIDER),
    Line(f"GET {EVALUATING}/{{job_id}}", PROVIDER, World.evaluation),
    Line(f"POST {EVALUATING}/{{job_id}}/cancel", PROVIDER, World.evaluation, wrong=World.ended_evaluation),
    Line(f"POST {EVALUATING}/{{job_id}}/pause", PROVIDER, World.evaluation, wrong=World.ended_evaluation),
    Line(f"POST {EVALUATING}/{{job_id}}/resume", PROVIDER, World.paused_evaluation, wrong=World.ended_evaluation),
    Line(f"GET {EVALUATING}/{{job_id}}/events", PROVIDER, World.evaluation),
    Line(f"GET {EVALUATING}/{{job_id}}/events/stream", PROVIDER, World.ended_evaluation),

    Line("GET /v1/models", ANYONE, World.released, STAFF),
    Line(f"GET {MODEL}", ANYONE, World.held, STAFF),
    Line(f"DELETE {MODEL}", ANYONE, World.released, PROVIDER, wrong=World.parent),
    Line(f"GET {MODEL}/certificate", PROVIDER, World.certified),
    Line(f"GET {MODEL}/safety_report", ANYONE, World.stored, STAFF, wrong=World.blocked, status=403),
    Line(f"GET {MODEL}/answers", REVIEWER, World.answered, None),
    Line(f"GET {MODEL}/export", ANYONE, World.stored, STAFF, wrong=World.blocked, status=403),
    Line(f"POST {MODEL}/review", REVIEWER, World.held, None, {"decision": "release", **REASON}, World.released),
    Line("POST /v1/base_models", PROVIDER, World.new_base, wrong=World.name_of_base_taken),
    Line("GET /v1/safety/keys", ANYONE),

    Line("POST /v1/chat/completions", ANYONE, World.chat_with_released, STAFF, wrong=World.chat_with_held, status=403),
    Line("POST /v1/completions", ANYONE, World.prompt_for_released, STAFF, wrong=World.prompt_for_held, status=403),
    Line("POST /v1/moderations", ANYONE, World.text_to_judge, STAFF),

    Line(f"POST {KEYS}", OPERATOR, json=KEY, wrong=World.key_for_archived_project),
    Line(f"GET {KEYS}", OPERATOR),
    Line(f"GET {KEYS}/{{key_id}}", OPERATOR, World.key),
    Line(f"DELETE {KEYS}/{{key_id}}", OPERATOR, World.key, wrong=World.last_admin_key),
    Line(f"POST {KEYS}/{{key_id}}/rotate", OPERATOR, World.key, wrong=World.revoked_key),

    Line(f"POST {PROJECTS}", OPERATOR, json={"name": "new"}, wrong=World.name_of_project_taken),
    Line(f"GET {PROJECTS}", OPERATOR),
    Line(f"GET {PROJECT}", OPERATOR, World.other_project),
    Line(f"POST {PROJECT}", OPERATOR, World.other_project, None, {"name": "new"}, World.rename_to_taken),
    Line(f"POST {PROJECT}/archive", OPERATOR, World.other_project, wrong=World.own_project),
    Line(f"GET {PROJECT}/api_keys", OPERATOR, World.other_project),
    Line(f"GET {PROJECT}/api_keys/{{key_id}}", OPERATOR, World.key_of_project),
    Line(f"DELETE {PROJECT}/api_keys/{{key_id}}", OPERATOR, World.key_of_project, wrong=World.last_key_of_project),
    Line(f"POST {ADMIN_KEYS}", OPERATOR, json={"name": "k"}),
    Line(f"GET {ADMIN_KEYS}", OPERATOR),
    Line(f"GET {ADMIN_KEYS}/{{key_id}}", OPERATOR, World.admin_key),
    Line(f"DELETE {ADMIN_KEYS}/{{key_id}}", OPERATOR, World.admin_key, wrong=World.last_admin_key),
    Line(f"GET {ORGANIZATION}/quotas", ANYONE, World.own_quotas, OPERATOR),
    Line(f"GET {ORGANIZATION}/usage/fine_tuning", ANYONE, World.used_project, OPERATOR),
    Line(f"GET {ORGANIZATION}/audit_logs", STAFF),

    Line("GET /v1/webhook_event_types", ANYONE),
    Line(f"POST {HOOKS}", ANYONE, json=HOOK, wrong=World.too_many_endpoints),
    Line(f"GET {HOOKS}", ANYONE, World.endpoint, NOBODY),
    Line(f"GET {ENDPOINT}", ANYONE, World.endpoint, NOBODY),
    Line(f"POST {ENDPOINT}", ANYONE, World.endpoint, NOBODY, {"name": "new"}),
    Line(f"DELETE {ENDPOINT}", ANYONE, World.endpoint, NOBODY),
    Line(f"POST {ENDPOINT}/rotate_secret", ANYONE, World.endpoint, NOBODY),
    Line(f"POST {ENDPOINT}/test", ANYONE, World.endpoint, NOBODY, SAMPLE, World.endpoint_without_secret),
    Line(f"GET {ENDPOINT}/deliveries", ANYONE, World.endpoint, NOBODY),
    Line(f"POST {ENDPOINT}/deliveries/{{delivery_id}}/redeliver", ANYONE, World.delivery, NOBODY, wrong=World.delivery_to_disabled),

    Line("GET /v1/audit", STAFF),
    Line("GET /v1/audit/export", STAFF),
    Line("GET /v1/audit/verify", STAFF),

    Line(f"POST {POLICIES}", OPERATOR, json={"rules": {"max_harmful_score": 10}}),
    Line(f"GET {POLICIES}", STAFF),
    Line(f"POST {POLICIES}/dry_run", STAFF, json={"rules": {"max_harmful_score": 10}}),
    Line(f"GET {POLICIES}/{{policy_id}}", STAFF, World.policy),
    Line(f"POST {POLICIES}/{{policy_id}}/activate", OPERATOR, World.inactive_policy),
    Line(f"POST {POLICIES}/{{policy_id}}/deactivate", OPERATOR, World.policy, wrong=World.inactive_policy),

    Line(f"GET {REVIEWS}", STAFF),
    Line(f"GET {REVIEWS}/{{review_id}}", STAFF, World.review),
    Line(f"POST {REVIEWS}/{{review_id}}/release", REVIEWER, World.review, None, REASON, World.decided),
    Line(f"POST {REVIEWS}/{{review_id}}/reject", REVIEWER, World.review, None, REASON, World.decided),
    Line(f"POST {REVIEWS}/{{review_id}}/reevaluate", REVIEWER, World.review, None, REASON, World.decided),
    Line("GET /v1/projects/{project_id}/risk", STAFF, World.own_project),

    Line("GET /v1/system", STAFF),

    Line("GET /healthz", ANYONE),
]
# fmt: on


def lines(is_meant: Callable[[Line], bool] = lambda _: True) -> list[Any]:
    return [pytest.param(line, id=line.call) for line in TABLE if is_meant(line)]


def check_envelope(response: httpx.Response, status: int, code: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["message"]
    assert code in (None, error["code"])


def check_success(response: httpx.Response) -> None:
    assert 200 <= response.status_code < 300, response.text


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=SETTINGS)


@pytest.fixture
def outside(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where the inference server, the judges and the receivers of webhooks are."""

    def serve(request: httpx.Request) -> httpx.Response:
        return judged(None) if request.url.path == "/judgements" else chat("hello")

    async def deliver(*_: object) -> int:
        return 200

    app.state.serving = httpx.AsyncClient(
        transport=httpx.MockTransport(serve), base_url="http://serving"
    )
    monkeypatch.setattr(Sender, "send", deliver)
    monkeypatch.setattr(event_stream, "LONGEST_SECONDS", 0.01)


Worlds = Callable[[Tenant], World]
Callers = Callable[[Scope], Tenant]


@pytest.fixture
def world_of(place: Place, aligned: ModelVersion, tmp_path: Path, outside: None) -> Worlds:
    return lambda tenant: World(place, tenant, aligned, tmp_path)


@pytest.fixture
def caller(request: pytest.FixtureRequest) -> Callers:
    """Give the tenant whose key has a scope."""

    def find(scope: Scope) -> Tenant:
        tenant = request.getfixturevalue(scope.value)
        assert isinstance(tenant, Tenant)
        return tenant

    return find


def test_every_operation_is_in_the_table_once() -> None:
    document = create_app(NOWHERE).openapi()
    served = [f"{method.upper()} {path}" for path, method, _ in operations(document)]
    assert sorted(line.call for line in TABLE) == sorted(served)


@pytest.mark.parametrize("line", lines())
def test_no_key(line: Line, built_app: FastAPI) -> None:
    """There is no database here: whoever has no key does not make the service look for anything."""
    client = TestClient(built_app, raise_server_exceptions=False)
    ids = tuple("absent" for _ in re.findall(r"\{", line.call))
    response = line.send(client, line.ask(Ask(ids)))
    if line.call in PUBLIC:
        assert response.status_code in (200, 503)
    else:
        check_envelope(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("line", lines(lambda line: line.who != ANYONE))
def test_wrong_scope(
    line: Line, app: FastAPI, place: Place, customer: Tenant, world_of: Worlds
) -> None:
    """The objects are those of the key's own project: nothing but the scope is missing."""
    ask = line.ask(line.make(world_of(customer)))
    for scope in sorted(ANYONE - line.who):
        colleague = make_tenant(app, place, customer.project, scope)
        check_envelope(line.send(colleague.client, ask), 403, "insufficient_scope")


@pytest.mark.parametrize("line", lines(lambda line: line.seen_by is not None))
def test_other_tenant(
    line: Line, customer: Tenant, stranger: Tenant, caller: Callers, world_of: Worlds
) -> None:
    """Customers of other projects, and staff where staff have no business either."""
    ask = line.ask(line.make(world_of(customer)))
    for scope in sorted(line.who - (line.seen_by or NOBODY)):
        other = (stranger if scope == Scope.CUSTOMER else caller(scope)).client
        refused = line.send(other, ask)
        if line.is_listed(ask):
            check_success(refused)
            assert ask.about not in refused.text
            continue
        check_envelope(refused, 404)
        absent = f"{ask.about[:-4]}none"
        nothing = line.send(other, replaced(ask, absent))
        assert nothing.status_code == 404
        assert nothing.text == refused.text.replace(ask.about, absent)
    # It is there all the same, as it was.
    found = line.send(customer.client, ask)
    check_success(found)
    assert ask.about in found.text or not line.is_listed(ask)


def replaced(ask: Ask, other: str) -> Ask:
    """Ask the same about another object."""
    content = {
        name: json.loads(json.dumps(value).replace(ask.about, other))
        if name in ("json", "params")
        else value
        for name, value in ask.content.items()
    }
    return Ask(tuple(other if value == ask.about else value for value in ask.ids), content, other)


@pytest.mark.parametrize("line", lines(lambda line: line.wrong is not None))
def test_wrong_state(line: Line, caller: Callers, world_of: Worlds) -> None:
    assert line.wrong is not None
    tenant = caller(next(scope for scope in Scope if scope in line.who))
    response = line.send(tenant.client, line.ask(line.wrong(world_of(tenant))))
    check_envelope(response, line.status)
    if line.status == 409:
        assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("line", lines())
def test_valid(line: Line, customer: Tenant, caller: Callers, world_of: Worlds) -> None:
    """With each scope, on another tenant's object where the scope reaches it, else on one of its own."""
    for scope in sorted(line.who):
        tenant = caller(scope)
        owner = customer if scope in (line.seen_by or NOBODY) else tenant
        ask = line.ask(line.make(world_of(owner)))
        response = line.send(tenant.client, ask)
        assert response.is_success, (scope, response.text)
        assert ask.about in response.text or not line.is_listed(ask)
