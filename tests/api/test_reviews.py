"""The review queue: what reviewers see, what they decide, four eyes, appeals, evaluation anew, time that runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.reviews import service
from api.sweeper import sweep
from models.api_key import ApiKey, Project, create_key, find_key
from models.audit import AuditEntry, verify
from models.base import utc_now
from models.data_risk import Screening
from models.errors import DomainError
from models.job import Job, JobEvent, JobKind, JobStatus, Stage, await_review
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import PolicyRules, SafetyPolicy, current_policy
from models.review import Appeal, ReviewApproval
from models.scope import Scope
from models.session import SessionFactory, make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from tests.api.conftest import Place, SilentDoorbell, Tenant, upload

REVIEWS = "/v1/reviews"
JOBS = "/v1/fine_tuning/jobs"
WHY = {"reason": "looked at twenty answers"}


def staff(operator: Tenant, place: Place, *scopes: Scope) -> Tenant:
    token = place.key(operator.project, *scopes)
    place.session.commit()
    client = TestClient(
        operator.client.app,
        headers={"authorization": f"Bearer {token}"},
        raise_server_exceptions=False,
    )
    return Tenant(operator.project, token, client)


@pytest.fixture
def reviewer(operator: Tenant, place: Place) -> Tenant:
    return staff(operator, place, Scope.REVIEWER)


@pytest.fixture
def second(operator: Tenant, place: Place) -> Tenant:
    return staff(operator, place, Scope.REVIEWER)


@pytest.fixture
def held(customer: Tenant, aligned: ModelVersion, place: Place) -> tuple[ModelVersion, Job]:
    version, job = place.held(customer.project, aligned)
    job.held_at = utc_now()
    job.review_expires_at = utc_now() + timedelta(hours=1)
    place.session.commit()
    return version, job


@pytest.fixture
def blocked(
    reviewer: Tenant, held: tuple[ModelVersion, Job], place: Place
) -> tuple[ModelVersion, Job]:
    answer = reviewer.client.post(f"{REVIEWS}/{held[1].id}/reject", json=WHY)
    assert answer.status_code == 200
    place.session.expire_all()
    return held


@pytest.fixture
def four_eyes(place: Place) -> None:
    current_policy(place.session)
    rules = PolicyRules(release_approvals=2).model_dump(mode="json")
    place.session.add(SafetyPolicy(version=2, rules=rules))
    place.session.commit()


def code(response: object) -> tuple[int, str]:
    return (response.status_code, response.json()["error"]["code"])  # type: ignore[attr-defined]


def audited(place: Place) -> list[str]:
    entries = select(AuditEntry.action).order_by(AuditEntry.position)
    return list(place.session.scalars(entries))


class TestWhoMay:
    @pytest.mark.parametrize("verb", ["release", "reject", "reevaluate"])
    def test_reviewers_decide_providers_only_look(
        self,
        anonymous: TestClient,
        customer: Tenant,
        operator: Tenant,
        place: Place,
        held: tuple[ModelVersion, Job],
        verb: str,
    ) -> None:
        provider = staff(operator, place, Scope.PROVIDER)
        address = f"{REVIEWS}/{held[1].id}"
        for reader in (REVIEWS, address, f"/v1/projects/{customer.project.id}/risk"):
            assert anonymous.get(reader).status_code == 401
            assert customer.client.get(reader).status_code == 403
            assert provider.client.get(reader).status_code == 200
        assert anonymous.post(f"{address}/{verb}", json=WHY).status_code == 401
        assert customer.client.post(f"{address}/{verb}", json=WHY).status_code == 403
        assert provider.client.post(f"{address}/{verb}", json=WHY).status_code == 403
        assert operator.client.post(f"{address}/{verb}", json=WHY).status_code == 200

    @pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 1001}])
    def test_a_reason_is_needed(
        self, reviewer: Tenant, held: tuple[ModelVersion, Job], body: dict[str, str]
    ) -> None:
        for verb in ("release", "reject", "reevaluate"):
            response = reviewer.client.post(f"{REVIEWS}/{held[1].id}/{verb}", json=body)
            assert response.status_code == 400

    def test_what_is_not_there(
        self, reviewer: Tenant, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        unmade = place.job(customer.project, aligned)
        place.session.commit()
        for job_id in ("ftjob-none", unmade.id):
            assert code(reviewer.client.get(f"{REVIEWS}/{job_id}")) == (404, "review_not_found")
            for verb in ("release", "reject", "reevaluate"):
                response = reviewer.client.post(f"{REVIEWS}/{job_id}/{verb}", json=WHY)
                assert code(response) == (404, "review_not_found")


class TestQueue:
    def test_shows_what_there_is_to_decide_on(
        self, reviewer: Tenant, customer: Tenant, held: tuple[ModelVersion, Job]
    ) -> None:
        version, job = held
        (review,) = reviewer.client.get(REVIEWS).json()["data"]
        assert (review["id"], review["job"], review["model"]) == (job.id, job.id, version.id)
        assert (review["status"], review["cause"]) == ("waiting", "gate")
        assert review["project"] == {"id": customer.project.id, "name": "acme"}
        assert review["reasons"] == ["HS is too high."]
        assert review["policy_version"] == 1
        assert review["safety"]["harmful_score"]["percent"] == 15
        assert review["safety"]["base"]["harmful_score"]["percent"] == 2
        assert review["risk"]["attempts"] == 1
        assert review["risk"]["score"] == 10 + 13 + 13
        assert (review["approvals"], review["approvals_needed"], review["appeal"]) == ([], 1, None)

    def test_oldest_first_in_pages_that_survive_a_decision(
        self, reviewer: Tenant, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        jobs = []
        for hours in (3, 1, 2, 4):
            _, job = place.held(customer.project, aligned)
            job.held_at = utc_now() - timedelta(hours=hours)
            jobs.append(job)
        place.session.commit()
        oldest = [jobs[3].id, jobs[0].id, jobs[2].id, jobs[1].id]
        first = reviewer.client.get(REVIEWS, params={"limit": 2}).json()
        assert ([r["id"] for r in first["data"]], first["has_more"]) == (oldest[:2], True)
        for job_id in oldest[:2]:
            reviewer.client.post(f"{REVIEWS}/{job_id}/release", json=WHY)
        rest = reviewer.client.get(REVIEWS, params={"limit": 2, "after": oldest[1]}).json()
        assert ([r["id"] for r in rest["data"]], rest["has_more"]) == (oldest[2:], False)
        assert reviewer.client.get(REVIEWS, params={"after": "ftjob-none"}).status_code == 400
        assert reviewer.client.get(REVIEWS, params={"limit": 101}).status_code == 400


class TestDecide:
    @pytest.mark.parametrize(
        ("verb", "gate", "status", "action"),
        [
            ("release", "released", "succeeded", "model.released"),
            ("reject", "blocked", "failed", "model.rejected"),
        ],
    )
    def test_ends_the_job_and_is_written_down(
        self,
        reviewer: Tenant,
        customer: Tenant,
        held: tuple[ModelVersion, Job],
        place: Place,
        verb: str,
        gate: str,
        status: str,
        action: str,
    ) -> None:
        _, job = held
        review = reviewer.client.post(f"{REVIEWS}/{job.id}/{verb}", json=WHY).json()
        assert (review["status"], review["job_status"]) == (gate, status)
        assert WHY["reason"] in review["reasons"][-1]
        seen = customer.client.get(f"{JOBS}/{job.id}").json()
        assert (seen["fine_tuned_model"] is not None) == (verb == "release")
        (entry,) = place.session.scalars(select(AuditEntry)).all()
        assert (entry.action, entry.reason, entry.project_id) == (
            action,
            WHY["reason"],
            customer.project.id,
        )
        assert reviewer.client.get(REVIEWS).json()["data"] == []
        again = reviewer.client.post(f"{REVIEWS}/{job.id}/{verb}", json=WHY)
        assert code(again) == (409, "model_not_held")
        assert again.headers["x-should-retry"] == "false"

    def test_by_the_models_name_it_is_the_same_decision(
        self, reviewer: Tenant, held: tuple[ModelVersion, Job], place: Place
    ) -> None:
        body = {"decision": "release", **WHY}
        answer = reviewer.client.post(f"/v1/models/{held[0].id}/review", json=body).json()
        assert answer["status"] == "succeeded"
        assert audited(place) == ["model.released"]


@pytest.mark.usefixtures("four_eyes")
class TestFourEyes:
    def test_a_release_needs_two_and_the_same_one_does_not_count_twice(
        self,
        reviewer: Tenant,
        second: Tenant,
        customer: Tenant,
        held: tuple[ModelVersion, Job],
        place: Place,
    ) -> None:
        address = f"{REVIEWS}/{held[1].id}/release"
        first = reviewer.client.post(address, json=WHY).json()
        assert (first["status"], first["approvals_needed"]) == ("waiting", 2)
        assert [approval["reason"] for approval in first["approvals"]] == [WHY["reason"]]
        assert customer.client.get(f"{JOBS}/{held[1].id}").json()["status"] == "running"
        assert code(reviewer.client.post(address, json=WHY)) == (409, "already_approved")
        by_name = {"decision": "release", **WHY}
        again = reviewer.client.post(f"/v1/models/{held[0].id}/review", json=by_name)
        assert code(again) == (409, "already_approved")
        done = second.client.post(address, json={"reason": "I agree"}).json()
        assert (done["status"], done["job_status"]) == ("released", "succeeded")
        assert audited(place) == ["model.release_approved", "model.released"]

    def test_two_keys_of_one_person_are_one_reviewer(
        self, reviewer: Tenant, second: Tenant, held: tuple[ModelVersion, Job], place: Place
    ) -> None:
        for tenant in (reviewer, second):
            find_key(place.session, tenant.token).user_name = "kim"
        place.session.commit()
        address = f"{REVIEWS}/{held[1].id}/release"
        assert reviewer.client.post(address, json=WHY).status_code == 200
        assert code(second.client.post(address, json=WHY)) == (409, "already_approved")

    def test_one_is_enough_to_reject(
        self, reviewer: Tenant, second: Tenant, held: tuple[ModelVersion, Job]
    ) -> None:
        reviewer.client.post(f"{REVIEWS}/{held[1].id}/release", json=WHY)
        done = second.client.post(f"{REVIEWS}/{held[1].id}/reject", json=WHY).json()
        assert done["status"] == "blocked"

    def test_an_approval_is_of_the_evidence_that_was_seen(
        self, reviewer: Tenant, second: Tenant, held: tuple[ModelVersion, Job], place: Place
    ) -> None:
        address = f"{REVIEWS}/{held[1].id}"
        reviewer.client.post(f"{address}/release", json=WHY)
        second.client.post(f"{address}/reevaluate", json=WHY)
        assert place.session.scalar(select(func.count()).select_from(ReviewApproval)) == 0


class TestReevaluate:
    def test_a_held_model_goes_back_to_the_queue_undecided(
        self,
        reviewer: Tenant,
        held: tuple[ModelVersion, Job],
        place: Place,
        doorbell: SilentDoorbell,
    ) -> None:
        version, job = held
        review = reviewer.client.post(f"{REVIEWS}/{job.id}/reevaluate", json=WHY).json()
        assert (review["status"], review["job_status"]) == ("evaluating", "queued")
        place.session.expire_all()
        assert (version.gate, job.review_expires_at) == (Gate.PENDING, None)
        assert job.id in doorbell.rung
        assert audited(place) == ["model.reevaluated"]
        for verb in ("release", "reevaluate"):
            answer = reviewer.client.post(f"{REVIEWS}/{job.id}/{verb}", json=WHY)
            assert answer.status_code == 409

    def test_a_model_whose_judge_broke_is_measured_without_training(
        self, reviewer: Tenant, held: tuple[ModelVersion, Job], place: Place
    ) -> None:
        version, job = held
        job.status, job.error_code, job.error_message = JobStatus.FAILED, "judge_failed", "x"
        job.finished_at, version.gate = utc_now(), Gate.PENDING
        place.session.commit()
        reviewer.client.post(f"{REVIEWS}/{job.id}/reevaluate", json=WHY)
        place.session.expire_all()
        assert (job.status, job.error_code, job.finished_at) == (JobStatus.QUEUED, None, None)

    @pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.CANCELLED, JobStatus.SUCCEEDED])
    def test_not_while_it_is_in_the_works_nor_after_the_owner_gave_it_up(
        self, reviewer: Tenant, held: tuple[ModelVersion, Job], place: Place, status: JobStatus
    ) -> None:
        held[1].status = status
        place.session.commit()
        answer = reviewer.client.post(f"{REVIEWS}/{held[1].id}/reevaluate", json=WHY)
        assert code(answer) == (409, "not_reevaluable")

    def test_not_without_the_files(
        self, reviewer: Tenant, customer: Tenant, blocked: tuple[ModelVersion, Job], place: Place
    ) -> None:
        file_id = upload(customer)
        blocked[1].training_file_id = file_id
        place.session.commit()
        assert customer.client.delete(f"/v1/files/{file_id}").status_code == 200
        answer = reviewer.client.post(f"{REVIEWS}/{blocked[1].id}/reevaluate", json=WHY)
        assert code(answer) == (409, "not_reevaluable")
        assert "file" in answer.json()["error"]["message"]

    def test_while_it_is_evaluated_its_files_stay(
        self, reviewer: Tenant, customer: Tenant, blocked: tuple[ModelVersion, Job], place: Place
    ) -> None:
        file_id = upload(customer)
        blocked[1].training_file_id = file_id
        place.session.commit()
        reviewer.client.post(f"{REVIEWS}/{blocked[1].id}/reevaluate", json=WHY)
        assert customer.client.delete(f"/v1/files/{file_id}").status_code == 409


class TestAppeal:
    TEXT = {"text": "Our rows are about locks that we sell."}  # noqa: RUF012

    def address(self, job: Job) -> str:
        return f"{JOBS}/{job.id}/appeal"

    def test_a_block_comes_before_a_person_again(
        self,
        customer: Tenant,
        reviewer: Tenant,
        blocked: tuple[ModelVersion, Job],
        place: Place,
    ) -> None:
        version, job = blocked
        appeal = customer.client.post(self.address(job), json=self.TEXT).json()
        assert (appeal["status"], appeal["text"]) == ("open", self.TEXT["text"])
        seen = customer.client.get(f"{JOBS}/{job.id}").json()
        assert (seen["status"], seen["stage"], seen["error"]) == ("running", "review", None)
        assert seen["finished_at"] is None
        (review,) = reviewer.client.get(REVIEWS).json()["data"]
        assert (review["cause"], review["appeal"]["text"]) == ("appeal", self.TEXT["text"])
        assert review["expires_at"] > review["created_at"]
        done = reviewer.client.post(f"{REVIEWS}/{job.id}/release", json=WHY).json()
        assert done["appeal"]["outcome"] == "released"
        assert customer.client.get(self.address(job)).json()["status"] == "released"
        assert customer.client.get(f"{JOBS}/{job.id}").json()["fine_tuned_model"] == version.id
        assert audited(place) == ["model.rejected", "model.appealed", "model.released"]
        logged = place.session.scalars(select(JobEvent.message).where(JobEvent.job_id == job.id))
        assert self.TEXT["text"] not in " ".join(logged)

    def test_once(
        self, customer: Tenant, reviewer: Tenant, blocked: tuple[ModelVersion, Job]
    ) -> None:
        job = blocked[1]
        customer.client.post(self.address(job), json=self.TEXT)
        assert code(customer.client.post(self.address(job), json=self.TEXT)) == (
            409,
            "already_appealed",
        )
        reviewer.client.post(f"{REVIEWS}/{job.id}/reject", json=WHY)
        assert customer.client.get(self.address(job)).json()["status"] == "rejected"
        assert code(customer.client.post(self.address(job), json=self.TEXT)) == (
            409,
            "already_appealed",
        )

    def test_another_tenants_job_is_not_there(
        self, anonymous: TestClient, stranger: Tenant, operator: Tenant, blocked: tuple[object, Job]
    ) -> None:
        address = self.address(blocked[1])
        assert anonymous.post(address, json=self.TEXT).status_code == 401
        assert code(stranger.client.post(address, json=self.TEXT)) == (404, "job_not_found")
        assert stranger.client.get(address).status_code == 404
        # Staff decide; they do not appeal.
        assert operator.client.post(address, json=self.TEXT).status_code in (403, 404)

    def test_what_is_not_blocked(
        self, customer: Tenant, held: tuple[ModelVersion, Job], aligned: ModelVersion, place: Place
    ) -> None:
        assert code(customer.client.post(self.address(held[1]), json=self.TEXT)) == (
            409,
            "not_appealable",
        )
        bare = place.job(customer.project, aligned, status=JobStatus.FAILED)
        place.session.commit()
        assert code(customer.client.post(self.address(bare), json=self.TEXT)) == (
            409,
            "not_appealable",
        )
        assert code(customer.client.get(self.address(bare))) == (404, "appeal_not_found")

    def test_a_deleted_model(self, customer: Tenant, blocked: tuple[ModelVersion, Job]) -> None:
        assert customer.client.delete(f"/v1/models/{blocked[0].id}").status_code == 200
        assert code(customer.client.post(self.address(blocked[1]), json=self.TEXT)) == (
            409,
            "not_appealable",
        )

    @pytest.mark.parametrize("body", [{}, {"text": " "}, {"text": "x" * 4001}, {"text": "\x00"}])
    def test_text_is_bounded(
        self, customer: Tenant, blocked: tuple[ModelVersion, Job], body: dict[str, str]
    ) -> None:
        assert customer.client.post(self.address(blocked[1]), json=body).status_code == 400

    def test_cancelling_withdraws_it(
        self, customer: Tenant, blocked: tuple[ModelVersion, Job], place: Place
    ) -> None:
        version, job = blocked
        customer.client.post(self.address(job), json=self.TEXT)
        customer.client.post(f"{JOBS}/{job.id}/cancel")
        place.session.expire_all()
        assert (version.gate, job.status) == (Gate.BLOCKED, JobStatus.CANCELLED)
        assert customer.client.get(self.address(job)).json()["status"] == "withdrawn"

    def test_an_appeal_nobody_hears_ends_blocked(
        self, customer: Tenant, blocked: tuple[ModelVersion, Job], place: Place
    ) -> None:
        version, job = blocked
        customer.client.post(self.address(job), json=self.TEXT)
        place.session.expire_all()
        assert job.review_expires_at is not None
        service.expire_review(
            place.session, job.id, now=job.review_expires_at + timedelta(seconds=1)
        )
        place.session.commit()
        assert (version.gate, job.error_code) == (Gate.BLOCKED, "review_expired")
        assert customer.client.get(self.address(job)).json()["status"] == "expired"
        assert audited(place)[-1] == "review.expired"


class TestRisk:
    def test_shows_the_parts_and_the_line(
        self, operator: Tenant, customer: Tenant, held: tuple[ModelVersion, Job]
    ) -> None:
        address = f"/v1/projects/{customer.project.id}/risk"
        risk = operator.client.get(address).json()
        assert (risk["attempts"], risk["excess_points"], risk["drift_points"]) == (1, 13, 13)
        assert (risk["score"], risk["furthest_model"]) == (36, held[0].id)
        assert (risk["window_days"], risk["limit"]) == (30, None)
        body = {
            "rules": {"max_tenant_risk": 30},
            "project": customer.project.id,
            "activate": True,
        }
        operator.client.post("/v1/policies", json=body)
        assert operator.client.get(address).json()["limit"] == 30

    def test_a_project_that_is_not_there(self, operator: Tenant) -> None:
        assert code(operator.client.get("/v1/projects/proj-none/risk")) == (
            404,
            "project_not_found",
        )


class TestRaces:
    """On real connections: whoever comes first decides, and the chain stays whole."""

    @pytest.fixture
    def sessions(self, database_url: str) -> Iterator[SessionFactory]:
        engine = make_engine(database_url)
        yield session_factory(engine)
        engine.dispose()

    def make(self, session: Session, storage: Storage) -> tuple[Job, list[ApiKey]]:
        place = Place(session, storage)
        project = place.project()
        base = place.version("tiny", VersionKind.BASE)
        aligned = place.version("tiny-booster", VersionKind.ALIGNED, parent=base)
        _, job = place.held(project, aligned)
        job.review_expires_at = utc_now() - timedelta(seconds=1)
        keys = [
            create_key(session, project, f"k{n}", frozenset({Scope.REVIEWER}))[0] for n in range(6)
        ]
        session.commit()
        return job, keys

    def at_once(
        self, sessions: SessionFactory, acts: list[Callable[[Session], object]]
    ) -> list[str]:
        def run(act: Callable[[Session], object]) -> str:
            try:
                with sessions.begin() as session:
                    act(session)
            except DomainError as error:
                return error.code
            return "done"

        with ThreadPoolExecutor(len(acts)) as pool:
            return sorted(pool.map(run, acts))

    def test_one_of_many_decisions_counts(self, sessions: SessionFactory, storage: Storage) -> None:
        with sessions() as session:
            job, keys = self.make(session, storage)

        def deciding(key: ApiKey, decision: service.Decision) -> Callable[[Session], object]:
            return lambda s: service.decide(s, job.id, decision, "r", by=key)

        acts = [
            deciding(key, "release" if number % 2 else "reject") for number, key in enumerate(keys)
        ]
        acts.append(lambda s: service.expire_review(s, job.id, now=utc_now()))
        outcomes = self.at_once(sessions, acts)
        with sessions() as session:
            stored = session.get_one(Job, job.id)
            events = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id)).all()
            entries = session.scalars(select(AuditEntry)).all()
            assert verify(session).is_whole
        # An expiry that comes late finds nothing to do, and says no more than that.
        assert outcomes.count("model_not_held") >= 5
        assert stored.is_terminal
        assert len(entries) == 1
        assert sorted(e.sequence for e in events) == list(range(1, len(events) + 1))

    def test_four_eyes_cannot_be_one_pair_twice_as_fast(
        self, sessions: SessionFactory, storage: Storage
    ) -> None:
        with sessions() as session:
            job, keys = self.make(session, storage)
            current_policy(session)
            rules = PolicyRules(release_approvals=2).model_dump(mode="json")
            session.add(SafetyPolicy(version=2, rules=rules))
            session.commit()
        same = lambda s: service.decide(s, job.id, "release", "r", by=keys[0])  # noqa: E731
        outcomes = self.at_once(sessions, [same] * 4)
        assert outcomes == ["already_approved"] * 3 + ["done"]
        with sessions() as session:
            assert session.get_one(Job, job.id).awaits_review

    def test_one_of_many_decisions_on_data_counts(
        self, sessions: SessionFactory, storage: Storage
    ) -> None:
        with sessions() as session:
            place = Place(session, storage)
            project = place.project()
            base = place.version("tiny", VersionKind.BASE)
            job = place.held_data(project, base)
            scopes = frozenset({Scope.REVIEWER})
            keys = [create_key(session, project, f"k{n}", scopes)[0] for n in range(4)]
            session.commit()

        def deciding(key: ApiKey, decision: service.Decision) -> Callable[[Session], object]:
            return lambda s: service.decide(s, job.id, decision, "r", by=key)

        acts = [deciding(k, "release" if n % 2 else "reject") for n, k in enumerate(keys)]
        outcomes = self.at_once(sessions, acts)
        assert outcomes == ["data_not_held"] * 3 + ["done"]
        with sessions() as session:
            stored = session.get_one(Job, job.id)
            review = session.get_one(Screening, job.id).review
            assert (stored.status, review) in [
                (JobStatus.QUEUED, "released"),
                (JobStatus.FAILED, "rejected"),
            ]
            assert len(session.scalars(select(AuditEntry)).all()) == 1

    def test_one_appeal(self, sessions: SessionFactory, storage: Storage) -> None:
        with sessions() as session:
            job, keys = self.make(session, storage)
            service.decide(session, job.id, "reject", "r", by=keys[0])
            session.commit()
        appeal = lambda s: service.appeal(s, job.id, "t", by=keys[0])  # noqa: E731
        outcomes = self.at_once(sessions, [appeal] * 4)
        assert outcomes == ["already_appealed"] * 3 + ["done"]
        with sessions() as session:
            assert session.scalar(select(func.count()).select_from(Appeal)) == 1

    def test_the_sweeper_still_blocks_what_nobody_decides(
        self, sessions: SessionFactory, storage: Storage, settings: Settings
    ) -> None:
        with sessions() as session:
            job, _ = self.make(session, storage)
        assert sweep(sessions, SilentDoorbell(), settings).reviews_expired == 1  # type: ignore[arg-type]
        with sessions() as session:
            assert session.get_one(Job, job.id).error_code == "review_expired"
            assert session.scalars(select(AuditEntry.action)).all() == ["review.expired"]


class TestData:
    """Training rows that the policy holds, before there is a model."""

    @pytest.fixture
    def job(self, customer: Tenant, aligned: ModelVersion, place: Place) -> Job:
        return place.held_data(customer.project, aligned)

    def test_shows_what_there_is_to_decide_on(
        self, reviewer: Tenant, customer: Tenant, job: Job
    ) -> None:
        (review,) = reviewer.client.get(REVIEWS).json()["data"]
        assert (review["id"], review["job"], review["model"]) == (
            job.id,
            job.id,
            job.result_model_id,
        )
        assert (review["status"], review["cause"], review["safety"]) == ("waiting", "data", None)
        assert (review["policy_version"], review["approvals_needed"]) == (1, 1)
        assert review["expires_at"] > review["created_at"]
        assert "2 of 12 training rows were flagged" in review["reasons"][0]
        assert review["reasons"][1] == "The policy's limit is 5%."
        assert review["data_risk"]["harmful_share"]["count"] == 2
        assert review["risk"]["models"] == 0
        assert review == reviewer.client.get(f"{REVIEWS}/{job.id}").json()
        seen = customer.client.get(f"{JOBS}/{job.id}").json()
        assert (seen["status"], seen["stage"]) == ("running", "data_review")
        assert seen["data_risk"]["review"] == {
            "status": "waiting",
            "reason": None,
            "decided_at": None,
        }

    def test_released_it_goes_on_to_training(
        self,
        reviewer: Tenant,
        customer: Tenant,
        job: Job,
        place: Place,
        doorbell: SilentDoorbell,
    ) -> None:
        review = reviewer.client.post(f"{REVIEWS}/{job.id}/release", json=WHY).json()
        assert (review["status"], review["job_status"]) == ("released", "queued")
        seen = customer.client.get(f"{JOBS}/{job.id}").json()
        assert (seen["status"], seen["stage"], seen["error"]) == ("queued", "train", None)
        assert seen["data_risk"]["review"]["status"] == "released"
        assert seen["data_risk"]["review"]["reason"] == WHY["reason"]
        assert doorbell.rung == [job.id]
        (entry,) = place.session.scalars(select(AuditEntry)).all()
        assert (entry.action, entry.subject_id, entry.reason, entry.project_id) == (
            "data.released",
            job.id,
            WHY["reason"],
            customer.project.id,
        )
        assert reviewer.client.get(REVIEWS).json()["data"] == []
        again = reviewer.client.post(f"{REVIEWS}/{job.id}/reject", json=WHY)
        assert code(again) == (409, "data_not_held")

    def test_rejected_the_job_fails_with_the_reason(
        self, reviewer: Tenant, customer: Tenant, job: Job, place: Place
    ) -> None:
        review = reviewer.client.post(f"{REVIEWS}/{job.id}/reject", json=WHY).json()
        assert (review["status"], review["job_status"]) == ("rejected", "failed")
        error = customer.client.get(f"{JOBS}/{job.id}").json()["error"]
        assert (error["code"], error["param"]) == ("data_rejected", "training_file")
        assert WHY["reason"] in error["message"]
        assert audited(place) == ["data.rejected"]
        # There is no model, so there is neither a block to appeal nor anything to measure.
        appeal = customer.client.post(f"{JOBS}/{job.id}/appeal", json={"text": "t"})
        assert code(appeal) == (409, "not_appealable")
        again = reviewer.client.post(f"{REVIEWS}/{job.id}/reevaluate", json=WHY)
        assert code(again) == (409, "not_reevaluable")

    def test_unanswered_it_is_rejected(
        self, reviewer: Tenant, customer: Tenant, job: Job, place: Place
    ) -> None:
        assert job.review_expires_at is not None
        assert not service.expire_review(place.session, job.id, now=utc_now())
        late = job.review_expires_at + timedelta(seconds=1)
        assert service.expire_review(place.session, job.id, now=late)
        place.session.commit()
        error = customer.client.get(f"{JOBS}/{job.id}").json()["error"]
        assert error["code"] == "review_expired"
        assert reviewer.client.get(f"{REVIEWS}/{job.id}").json()["status"] == "expired"
        assert audited(place) == ["review.expired"]

    def test_cancelled_it_is_withdrawn(self, reviewer: Tenant, customer: Tenant, job: Job) -> None:
        assert customer.client.post(f"{JOBS}/{job.id}/cancel").json()["status"] == "cancelled"
        review = reviewer.client.get(f"{REVIEWS}/{job.id}").json()
        assert (review["status"], review["job_status"]) == ("withdrawn", "cancelled")
        assert code(reviewer.client.post(f"{REVIEWS}/{job.id}/release", json=WHY)) == (
            409,
            "data_not_held",
        )

    def test_it_cannot_be_paused(self, customer: Tenant, job: Job) -> None:
        paused = customer.client.post(f"{JOBS}/{job.id}/pause")
        assert code(paused) == (409, "illegal_transition")

    @pytest.mark.usefixtures("four_eyes")
    def test_two_reviewers_for_the_data_and_two_for_the_model(
        self, reviewer: Tenant, second: Tenant, job: Job, place: Place
    ) -> None:
        address = f"{REVIEWS}/{job.id}/release"
        first = reviewer.client.post(address, json=WHY).json()
        assert (first["status"], len(first["approvals"])) == ("waiting", 1)
        assert code(reviewer.client.post(address, json=WHY)) == (409, "already_approved")
        assert second.client.post(address, json=WHY).json()["status"] == "released"
        assert audited(place) == ["data.release_approved", "data.released"]
        assert place.session.scalar(select(func.count()).select_from(ReviewApproval)) == 0

    def test_once_there_is_a_model_the_review_is_the_models(
        self, reviewer: Tenant, aligned: ModelVersion, job: Job, place: Place
    ) -> None:
        reviewer.client.post(f"{REVIEWS}/{job.id}/release", json=WHY)
        place.session.expire_all()
        job.status = JobStatus.RUNNING
        await_review(job, hours=1)
        project = place.session.get_one(Project, job.project_id)
        place.version(
            job.result_model_id,
            VersionKind.TUNED,
            gate=Gate.HELD,
            parent=aligned,
            project=project,
            job=job,
        )
        place.session.commit()
        (review,) = reviewer.client.get(REVIEWS).json()["data"]
        assert (review["cause"], review["status"]) == ("gate", "waiting")
        assert review["data_risk"]["review"]["status"] == "released"
        done = reviewer.client.post(f"{REVIEWS}/{job.id}/reject", json=WHY).json()
        assert (done["status"], done["job_status"]) == ("blocked", "failed")
        assert audited(place) == ["data.released", "model.rejected"]


class TestAlignment:
    def test_the_providers_models_have_no_tenants_risk(
        self, operator: Tenant, reviewer: Tenant, base: ModelVersion, place: Place
    ) -> None:
        job = place.job(
            operator.project,
            base,
            kind=JobKind.ALIGN,
            result_model_id="tiny-sft",
            status=JobStatus.RUNNING,
            stage=Stage.REVIEW,
        )
        place.version("tiny-sft", VersionKind.ALIGNED, gate=Gate.HELD, parent=base, job=job)
        place.session.commit()
        (review,) = reviewer.client.get(REVIEWS).json()["data"]
        assert (review["kind"], review["risk"], review["safety"]) == ("align", None, None)
        assert reviewer.client.post(f"{REVIEWS}/{job.id}/release", json=WHY).json()["status"] == (
            "released"
        )
