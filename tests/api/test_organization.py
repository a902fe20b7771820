"""Projects, quotas and usage over HTTP, and the stock client's administration resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI
from sqlalchemy import select

from api.organization.quotas import check_bytes, show_use
from api.organization.usage import Width
from models.api_key import ApiKey, Project
from models.base import utc_now
from models.errors import Unauthorized
from models.file import File
from models.job import Job, JobStatus, Stage
from models.model_version import ModelVersion
from models.scope import Scope
from tests.api.conftest import Place, Tenant, rows, upload
from tests.api.server import serve

PROJECTS = "/v1/organization/projects"
QUOTAS = "/v1/organization/quotas"
USAGE = "/v1/organization/usage/fine_tuning"
JOBS = "/v1/fine_tuning/jobs"


def create(operator: Tenant, name: str = "initech", **facts: object) -> dict[str, object]:
    response = operator.client.post(PROJECTS, json={"name": name, **facts})
    assert response.status_code == 200, response.text
    return dict(response.json())


def limit(operator: Tenant, tenant: Tenant, **quotas: int | None) -> None:
    response = operator.client.post(f"{PROJECTS}/{tenant.project.id}", json={"quotas": quotas})
    assert response.status_code == 200, response.text


def start(tenant: Tenant, file: str, **facts: object) -> dict[str, object]:
    body = {"model": "tiny-booster", "training_file": file, **facts}
    response = tenant.client.post(JOBS, json=body)
    return {"status": response.status_code, "headers": response.headers, **response.json()}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/projects"),
        ("GET", "/projects"),
        ("GET", "/projects/{own}"),
        ("POST", "/projects/{own}"),
        ("POST", "/projects/{own}/archive"),
        ("GET", "/projects/{own}/api_keys"),
        ("GET", "/projects/{own}/api_keys/key-x"),
        ("DELETE", "/projects/{own}/api_keys/key-x"),
        ("POST", "/admin_api_keys"),
        ("GET", "/admin_api_keys"),
        ("GET", "/admin_api_keys/key-x"),
        ("DELETE", "/admin_api_keys/key-x"),
    ],
)
def test_only_operators(
    anonymous: TestClient, customer: Tenant, place: Place, app: FastAPI, method: str, path: str
) -> None:
    address = "/v1/organization" + path.format(own=customer.project.id)
    body = {"json": {"name": "n"}} if method == "POST" else {}
    assert anonymous.request(method, address, **body).status_code == 401
    assert customer.client.request(method, address, **body).status_code == 403
    token = place.key(place.project("x"), Scope.REVIEWER, Scope.PROVIDER)
    place.session.commit()
    staff = TestClient(app, headers={"authorization": f"Bearer {token}"})
    assert staff.request(method, address, **body).status_code == 403


class TestProjects:
    def test_a_project_gets_an_organization_of_its_own_unless_one_is_named(
        self, operator: Tenant
    ) -> None:
        alone = create(operator, "a")
        assert alone["organization_id"] == "org-" + str(alone["id"]).removeprefix("proj-")
        assert (alone["organization_name"], alone["status"]) == ("a", "active")
        one, two = (create(operator, name, organization="big") for name in ("b", "c"))
        three = create(operator, "d", organization=one["organization_id"])
        assert one["organization_id"] == two["organization_id"] == three["organization_id"]
        assert one["organization_id"] != alone["organization_id"]
        assert two["organization_name"] == "big"

    def test_jobs_and_models_carry_the_organization(
        self, operator: Tenant, anonymous: TestClient, aligned: ModelVersion
    ) -> None:
        project = create(operator, organization="big")
        key = operator.client.post("/v1/keys", json={"name": "n", "project": project["id"]}).json()[
            "key"
        ]
        tenant = Tenant(Project(name="x"), key, anonymous)
        anonymous.headers["authorization"] = f"Bearer {key}"
        job = start(tenant, upload(tenant))
        assert job["organization_id"] == project["organization_id"]
        suffix = str(project["organization_id"]).removeprefix("org-")
        assert str(job["result_model"]).startswith(f"ft:tiny:{suffix}:")

    def test_names_are_given_once(self, operator: Tenant) -> None:
        create(operator, "a")
        response = operator.client.post(PROJECTS, json={"name": "a"})
        assert (response.status_code, response.json()["error"]["code"]) == (409, "name_taken")
        other = create(operator, "b")
        response = operator.client.post(f"{PROJECTS}/{other['id']}", json={"name": "a"})
        assert response.status_code == 409
        same = operator.client.post(f"{PROJECTS}/{other['id']}", json={"name": "b"})
        assert same.status_code == 200

    def test_what_is_not_sent_stays(self, operator: Tenant) -> None:
        project = create(operator, priority="high", quotas={"jobs_queued": 5, "bytes_stored": 9})
        path = f"{PROJECTS}/{project['id']}"
        changed = operator.client.post(path, json={"quotas": {"jobs_queued": None}}).json()
        assert (changed["priority"], changed["name"]) == ("high", "initech")
        assert changed["quotas"]["jobs_queued"] is None
        assert changed["quotas"]["bytes_stored"] == 9
        changed = operator.client.post(path, json={"priority": "low", "name": "x"}).json()
        assert (changed["priority"], changed["name"]) == ("low", "x")
        assert changed["quotas"]["bytes_stored"] == 9

    @pytest.mark.parametrize(
        "facts",
        [
            {"priority": "urgent"},
            {"quotas": {"jobs_queued": -1}},
            {"quotas": {"jobs_queued": 2**31}},
            {"quotas": {"bytes_stored": 2**63}},
            {"quotas": {"gpus": 1}},
            {"quotas": {"jobs_queued": 1.5}},
            {"name": ""},
            {"name": "\x00"},
            {"geography": "EU"},
            {"organization": "org-x"},
        ],
    )
    def test_odd_requests_are_refused(self, operator: Tenant, facts: dict[str, object]) -> None:
        response = operator.client.post(PROJECTS, json={"name": "n", **facts})
        assert response.status_code in (400, 404)
        assert set(response.json()["error"]) >= {"message", "type", "param", "code"}

    def test_unknown_ones_are_not_found(self, operator: Tenant) -> None:
        for path in ("proj-x", "proj-x/archive"):
            assert operator.client.post(f"{PROJECTS}/{path}", json={}).status_code == 404
        for path in ("proj-x", "proj-x/api_keys"):
            assert operator.client.get(f"{PROJECTS}/{path}").status_code == 404
        assert operator.client.get(PROJECTS, params={"after": "proj-x"}).status_code == 404


class TestArchive:
    def test_keys_stop_waiting_jobs_are_cancelled_and_objects_stay(
        self, operator: Tenant, customer: Tenant, place: Place, aligned: ModelVersion
    ) -> None:
        file = upload(customer)
        waiting = place.job(customer.project, aligned)
        running = place.job(customer.project, aligned, status=JobStatus.RUNNING)
        place.session.commit()
        archived = operator.client.post(f"{PROJECTS}/{customer.project.id}/archive").json()
        assert archived["status"] == "archived"
        assert archived["archived_at"] is not None
        response = customer.client.get("/v1/files")
        assert response.status_code == 401
        assert "archived" in response.json()["error"]["message"]
        place.session.expire_all()
        assert (waiting.status, running.status) == (JobStatus.CANCELLED, JobStatus.RUNNING)
        assert place.session.get_one(File, file).deleted_at is None
        again = operator.client.post(f"{PROJECTS}/{customer.project.id}/archive").json()
        assert again["archived_at"] == archived["archived_at"]

    def test_archived_ones_are_listed_when_asked_for(self, operator: Tenant) -> None:
        project = create(operator)
        operator.client.post(f"{PROJECTS}/{project['id']}/archive")
        listed = [p["id"] for p in operator.client.get(PROJECTS).json()["data"]]
        assert project["id"] not in listed
        everything = operator.client.get(PROJECTS, params={"include_archived": True}).json()
        assert project["id"] in [p["id"] for p in everything["data"]]

    def test_are_found_by_a_part_of_their_name(self, operator: Tenant, customer: Tenant) -> None:
        found = operator.client.get(PROJECTS, params={"search": "CM"}).json()["data"]
        assert [p["id"] for p in found] == [customer.project.id]
        assert operator.client.get(PROJECTS, params={"search": "c_e"}).json()["data"] == []

    def test_it_gets_no_new_keys(self, operator: Tenant) -> None:
        project = create(operator)
        operator.client.post(f"{PROJECTS}/{project['id']}/archive")
        for named in (project["id"], project["name"]):
            response = operator.client.post("/v1/keys", json={"name": "n", "project": named})
            assert (response.status_code, response.json()["error"]["code"]) == (
                409,
                "project_archived",
            )

    def test_the_project_of_the_last_operator_key_stays(self, operator: Tenant) -> None:
        path = f"{PROJECTS}/{operator.project.id}/archive"
        response = operator.client.post(path)
        assert response.json()["error"]["code"] == "last_operator_key"
        body = {"name": "n", "project": "others", "scopes": ["operator"]}
        assert operator.client.post("/v1/keys", json=body).status_code == 200
        assert operator.client.post(path).status_code == 200
        assert operator.client.get(PROJECTS).status_code == 401

    def test_a_request_that_was_on_its_way_stores_nothing(
        self, place: Place, customer: Tenant
    ) -> None:
        customer.project.archived_at = utc_now()
        place.session.flush()
        with pytest.raises(Unauthorized, match="archived"):
            check_bytes(place.session, customer.project.id, 1)


class TestQuotas:
    def test_waiting_jobs(
        self, operator: Tenant, customer: Tenant, stranger: Tenant, aligned: ModelVersion
    ) -> None:
        limit(operator, customer, jobs_queued=2)
        file = upload(customer)
        first = start(customer, file)
        assert (first["status"], start(customer, file)["status"]) == ("queued", "queued")
        refused = start(customer, file)
        error = refused["error"]
        assert isinstance(error, dict)
        assert refused["status"] == 429
        assert (error["code"], error["param"]) == ("insufficient_quota", None)
        assert error["message"] == (
            "The project's quota 'jobs_queued' does not allow this: at most 2 jobs waiting; "
            "at present it is 2."
        )
        assert (error["quota"], error["limit"], error["used"]) == ("jobs_queued", 2, 2)
        headers = refused["headers"]
        assert isinstance(headers, Mapping)
        assert headers["x-should-retry"] == "false"
        assert "retry-after" not in headers
        assert start(stranger, upload(stranger))["status"] == "queued"
        customer.client.post(f"{JOBS}/{first['id']}/cancel")
        assert start(customer, file)["status"] == "queued"

    def test_a_replay_of_what_was_made_is_answered_even_at_the_limit(
        self, operator: Tenant, customer: Tenant, aligned: ModelVersion
    ) -> None:
        limit(operator, customer, jobs_queued=1)
        body = {"model": "tiny-booster", "training_file": upload(customer)}
        sent = [
            customer.client.post(JOBS, json=body, headers={"idempotency-key": "k"})
            for _ in range(2)
        ]
        assert [response.status_code for response in sent] == [200, 200]
        assert sent[0].json()["id"] == sent[1].json()["id"]

    def test_bytes(self, operator: Tenant, customer: Tenant) -> None:
        size = len(rows())
        limit(operator, customer, bytes_stored=2 * size)
        first = upload(customer)
        upload(customer)
        response = customer.client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", rows(1))}
        )
        assert response.status_code == 429
        error = response.json()["error"]
        assert (error["code"], error["quota"]) == ("insufficient_quota", "bytes_stored")
        assert f"{2 * size:,}" in error["message"]
        assert f"needs {len(rows(1))} more" in error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert customer.client.delete(f"/v1/files/{first}").status_code == 200
        upload(customer)

    @pytest.mark.parametrize(
        ("quota", "facts"),
        [
            ("training_tokens_month", {"trained_tokens": 1000}),
            ("gpu_seconds_month", {"gpu_seconds": 1000.0}),
        ],
    )
    def test_a_months_work(
        self,
        operator: Tenant,
        customer: Tenant,
        place: Place,
        aligned: ModelVersion,
        quota: str,
        facts: dict[str, object],
    ) -> None:
        file = upload(customer)
        limit(operator, customer, **{quota: 1000})
        long_ago = utc_now() - timedelta(days=32)
        place.job(
            customer.project, aligned, status=JobStatus.SUCCEEDED, finished_at=long_ago, **facts
        )
        place.session.commit()
        assert start(customer, file)["status"] == "queued"
        # Failed jobs have used it as well.
        place.job(
            customer.project, aligned, status=JobStatus.FAILED, finished_at=utc_now(), **facts
        )
        place.session.commit()
        refused = start(customer, file)
        assert refused["status"] == 429
        assert refused["error"]["quota"] == quota  # type: ignore[index]
        limit(operator, customer, **{quota: 1001})
        assert start(customer, file)["status"] == "queued"
        limit(operator, customer, **{quota: 0})
        assert start(customer, file)["status"] == "queued"

    def test_the_services_limit_holds_where_a_project_has_none(
        self, app: FastAPI, operator: Tenant, customer: Tenant, aligned: ModelVersion
    ) -> None:
        app.state.settings = app.state.settings.model_copy(update={"quota_jobs_queued": 1})
        file = upload(customer)
        assert start(customer, file)["status"] == "queued"
        assert start(customer, file)["status"] == 429
        limit(operator, customer, jobs_queued=2)
        assert start(customer, file)["status"] == "queued"
        assert start(customer, file)["status"] == 429

    def test_they_are_shown_with_what_is_used(
        self,
        operator: Tenant,
        customer: Tenant,
        place: Place,
        aligned: ModelVersion,
    ) -> None:
        limit(operator, customer, bytes_stored=10**6)
        upload(customer)
        now = utc_now()
        place.job(
            customer.project,
            aligned,
            status=JobStatus.RUNNING,
            claimed_at=now - timedelta(seconds=50),
            lease_expires_at=now + timedelta(seconds=50),
            gpu_seconds=100.0,
            trained_tokens=7,
        )
        place.job(customer.project, aligned, status=JobStatus.RUNNING, stage=Stage.REVIEW)
        place.job(customer.project, aligned)
        place.session.commit()
        shown = customer.client.get(QUOTAS).json()
        assert shown["project_id"] == customer.project.id
        quotas = {quota["name"]: quota for quota in shown["data"]}
        assert {name: quota["used"] for name, quota in quotas.items()} == {
            "jobs_running": 1,
            "jobs_queued": 1,
            "bytes_stored": len(rows()),
            "training_tokens_month": 7,
            "gpu_seconds_month": pytest.approx(150, abs=5),
        }
        assert (quotas["bytes_stored"]["limit"], quotas["bytes_stored"]["is_default"]) == (
            10**6,
            False,
        )
        assert (quotas["jobs_queued"]["limit"], quotas["jobs_queued"]["is_default"]) == (1000, True)
        asked = {"project_id": customer.project.id}
        assert operator.client.get(QUOTAS, params=asked).json()["data"][2] == shown["data"][2]

    def test_others_are_not_found(self, customer: Tenant, stranger: Tenant) -> None:
        response = customer.client.get(QUOTAS, params={"project_id": stranger.project.id})
        assert (response.status_code, response.json()["error"]["code"]) == (
            404,
            "project_not_found",
        )


class TestUsage:
    def finished(
        self, place: Place, tenant: Tenant, model: ModelVersion, at: datetime, **facts: object
    ) -> Job:
        job = place.job(tenant.project, model, status=JobStatus.SUCCEEDED, finished_at=at, **facts)
        place.session.commit()
        return job

    def test_jobs_count_on_the_day_they_ended_and_bytes_at_its_end(
        self, customer: Tenant, stranger: Tenant, place: Place, aligned: ModelVersion
    ) -> None:
        noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
        midnight = datetime(2026, 3, 2, tzinfo=UTC)
        self.finished(place, customer, aligned, noon, trained_tokens=10, gpu_seconds=1.5)
        self.finished(
            place, customer, aligned, midnight - timedelta(microseconds=1), trained_tokens=5
        )
        self.finished(place, customer, aligned, midnight, gpu_seconds=4.0)
        self.finished(place, stranger, aligned, noon, trained_tokens=99)
        file = place.session.get_one(File, upload(customer))
        file.created_at = noon
        file.deleted_at = midnight + timedelta(hours=1)
        place.session.commit()
        page = customer.client.get(
            USAGE,
            params={
                "start_time": int(noon.timestamp()),
                "end_time": int(midnight.timestamp()) + 1,
            },
        ).json()
        assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
        result = {
            "object": "organization.usage.fine_tuning.result",
            "project_id": customer.project.id,
            "gpu_seconds": 1.5,
        }
        assert page["data"] == [
            {
                "object": "bucket",
                "start_time": int(midnight.timestamp()) - 86400,
                "end_time": int(midnight.timestamp()),
                "results": [{**result, "jobs": 2, "trained_tokens": 15, "bytes": len(rows())}],
            },
            {
                "object": "bucket",
                "start_time": int(midnight.timestamp()),
                "end_time": int(midnight.timestamp()) + 86400,
                "results": [
                    {**result, "jobs": 1, "trained_tokens": 0, "gpu_seconds": 4.0, "bytes": 0}
                ],
            },
        ]

    def test_operators_see_all_or_those_they_ask_for_and_others_their_own(
        self,
        operator: Tenant,
        customer: Tenant,
        stranger: Tenant,
        place: Place,
        aligned: ModelVersion,
    ) -> None:
        for tenant in (customer, stranger):
            self.finished(place, tenant, aligned, utc_now(), trained_tokens=1)

        def projects(tenant: Tenant, *asked: Tenant) -> set[str]:
            params = [("project_ids[]", other.project.id) for other in asked]
            page = tenant.client.get(USAGE, params=params).json()
            return {result["project_id"] for b in page["data"] for result in b["results"]}

        both = {customer.project.id, stranger.project.id}
        assert projects(operator) == both
        assert projects(operator, stranger) == {stranger.project.id}
        assert projects(customer) == projects(customer, customer, stranger) == {customer.project.id}
        assert projects(customer, stranger) == set()

    def test_months_are_calendar_months_and_pages_go_on(
        self, customer: Tenant, place: Place, aligned: ModelVersion
    ) -> None:
        for month in (1, 2, 3):
            at = datetime(2024, month, 29, 23, tzinfo=UTC)
            self.finished(place, customer, aligned, at, trained_tokens=month)
        params: dict[str, object] = {
            "start_time": int(datetime(2024, 1, 15, tzinfo=UTC).timestamp()),
            "end_time": int(datetime(2024, 3, 1, tzinfo=UTC).timestamp()) + 1,
            "bucket_width": "1mo",
            "limit": 2,
        }
        first = customer.client.get(USAGE, params=params).json()
        assert first["has_more"]
        second = customer.client.get(USAGE, params={**params, "page": first["next_page"]}).json()
        assert not second["has_more"]
        buckets = first["data"] + second["data"]
        assert [b["results"][0]["trained_tokens"] for b in buckets] == [1, 2, 3]
        assert [datetime.fromtimestamp(b["start_time"], UTC).month for b in buckets] == [1, 2, 3]

    @pytest.mark.parametrize(
        "params",
        [
            {"start_time": 2, "end_time": 1},
            {"start_time": 1_700_000_000, "end_time": 1_700_000_000},
            {"start_time": 10**18},
            {"limit": 367},
            {"limit": 0},
            {"bucket_width": "1m"},
            {"page": "x"},
        ],
    )
    def test_odd_periods_are_refused(self, customer: Tenant, params: dict[str, object]) -> None:
        assert customer.client.get(USAGE, params=params).status_code == 400

    def test_needs_a_key(self, anonymous: TestClient) -> None:
        assert anonymous.get(USAGE).status_code == 401
        assert anonymous.get(QUOTAS).status_code == 401

    @pytest.mark.parametrize("width", Width)
    def test_buckets_follow_one_another_without_gaps(self, width: Width) -> None:
        at = width.floor(datetime(2024, 1, 31, 12, tzinfo=UTC))
        for _ in range(40):
            assert width.floor(at) == at
            assert width.floor(width.after(at) - timedelta(microseconds=1)) == at
            at = width.after(at)


class TestStockClient:
    @pytest.fixture
    def admin(self, app: FastAPI, operator: Tenant) -> Iterator[OpenAI]:
        with (
            serve(app) as address,
            OpenAI(
                base_url=f"{address}/v1",
                api_key="unused",
                admin_api_key=operator.token,
                max_retries=0,
                _strict_response_validation=True,
            ) as client,
        ):
            yield client

    def test_projects(self, admin: OpenAI) -> None:
        projects = admin.admin.organization.projects
        made = [projects.create(name=name) for name in ("a", "b", "c")]
        assert made[0].status == "active"
        assert projects.retrieve(made[0].id).name == "a"
        assert projects.update(made[0].id, name="z").name == "z"
        listed = [project.id for project in projects.list(limit=2)]
        assert listed[:3] == [project.id for project in made[::-1]]
        assert len(listed) == 4
        assert projects.archive(made[1].id).archived_at is not None
        assert made[1].id not in [project.id for project in projects.list()]
        assert made[1].id in [project.id for project in projects.list(include_archived=True)]
        with pytest.raises(openai.NotFoundError) as caught:
            projects.retrieve("proj-x")
        assert caught.value.code == "project_not_found"

    def test_a_projects_keys(self, admin: OpenAI, operator: Tenant, customer: Tenant) -> None:
        body = {"name": "n", "project": customer.project.id, "user": "ada@acme.example"}
        made = operator.client.post("/v1/keys", json=body).json()
        api_keys = admin.admin.organization.projects.api_keys
        listed = list(api_keys.list(customer.project.id, limit=1))
        assert listed[0].id == made["id"]
        assert len(listed) == 2
        assert listed[0].owner.user is not None
        assert listed[0].owner.user.email == "ada@acme.example"
        assert listed[1].owner.service_account is not None
        key = api_keys.retrieve(made["id"], project_id=customer.project.id)
        assert key.redacted_value.endswith(made["hint"])
        with pytest.raises(openai.NotFoundError):
            api_keys.retrieve(made["id"], project_id=operator.project.id)
        assert api_keys.delete(made["id"], project_id=customer.project.id).deleted
        assert len(list(api_keys.list(customer.project.id))) == 1

    def test_admin_keys(self, admin: OpenAI, anonymous: TestClient, place: Place) -> None:
        keys = admin.admin.organization.admin_api_keys
        made = keys.create(name="second", expires_in_seconds=3600)
        answer = anonymous.get(PROJECTS, headers={"authorization": f"Bearer {made.value}"})
        assert answer.status_code == 200
        assert next(key.id for key in keys.list(limit=1)) == made.id
        assert [key.id for key in keys.list(order="asc")][-1] == made.id
        assert keys.retrieve(made.id).expires_at == made.expires_at
        assert keys.delete(made.id).deleted
        (last,) = keys.list()
        with pytest.raises(openai.ConflictError) as caught:
            keys.delete(last.id)
        assert caught.value.code == "last_operator_key"
        stored = place.session.scalars(select(ApiKey).where(ApiKey.id == made.id)).one()
        assert stored.revoked_at is not None

    def test_the_headers_that_the_constructor_takes(
        self, admin: OpenAI, operator: Tenant, customer: Tenant
    ) -> None:
        own = admin.with_options(
            organization=operator.project.organization_id, project=operator.project.id
        )
        assert list(own.admin.organization.projects.list())
        other = admin.with_options(organization=customer.project.organization_id)
        with pytest.raises(openai.AuthenticationError) as caught:
            list(other.admin.organization.projects.list())
        assert caught.value.code == "mismatched_organization"


def test_use_is_of_one_project(place: Place, customer: Tenant, stranger: Tenant) -> None:
    upload(stranger)
    assert set(show_use(place.session, customer.project.id).values()) == {0}
