"""Evidence on the wire: what jobs and models say of their safety, data risk by row, signed reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy import select

from api.safety.signature import Signer, verify
from models.answers import keep_answers
from models.audit import AuditEntry
from models.base import utc_now
from models.data_risk import DataRisk, ScreenedRow, Screening
from models.evaluation import JudgeIdentity
from models.job import Job, JobKind, append_event
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import current_policy
from models.rate import Rate
from models.settings import Settings
from tests.api.adapters import tuned
from tests.api.conftest import Place, Tenant, rows, upload
from tests.api.server import serve
from tests.models.factories import make_answer

JOBS = "/v1/fine_tuning/jobs"
SEED = "0a" * 32
SIGNER = Signer(SEED)
KEYS = {SIGNER.verifying_key.id: SIGNER.verifying_key}
SANDBOX = {"name": "x", "judge": {"kind": "sandbox"}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"signing_key": SecretStr(SEED)})


def screened(
    place: Place, job: Job, votes: list[int], *, judges: int = 1, finished: bool = True
) -> Screening:
    """Store a screening; line numbers leave out every third, as blank lines do."""
    screening = Screening(
        job_id=job.id,
        judges=[{"name": "sandbox", "revision": "1"}],
        done=[len(votes)] * judges,
        row_threshold=0.5,
        action="allow",
        max_harmful_share=None,
        policy_version=1,
    )
    place.session.add(screening)
    place.session.flush()
    lines = [line for line in range(1, 2 * len(votes) + 2) if line % 3][: len(votes)]
    for line, count in zip(lines, votes, strict=True):
        category = "fraud" if count else None
        row = ScreenedRow(job_id=job.id, line=line, votes=count, category=category)
        place.session.add(row)
    if finished:
        screening.finished_at = utc_now()
        flagged = [
            line
            for line, count in zip(lines, votes, strict=True)
            if count >= screening.votes_needed
        ]
        screening.summary = DataRisk(
            harmful_share=Rate(count=len(flagged), n=len(votes)),
            by_category={"fraud": len(flagged)},
            first_lines=tuple(flagged[:10]),
            judges=(JudgeIdentity(name="sandbox", revision="1"),),
            row_threshold=0.5,
            action="allow",
            max_harmful_share=None,
            policy_version=1,
            outcome="allowed",
        ).model_dump(mode="json")
    place.session.commit()
    return screening


class TestCreate:
    def test_a_customer_may_ask_for_screening_through_the_stock_client(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        file = upload(customer, rows())
        with serve(customer.client.app) as url:  # type: ignore[arg-type]
            client = OpenAI(
                base_url=f"{url}/v1", api_key=customer.token, _strict_response_validation=True
            )
            job = client.fine_tuning.jobs.create(
                model=aligned.id, training_file=file, extra_body={"screen": True}
            )
            assert job.data_risk is None  # type: ignore[attr-defined]
            plain = client.fine_tuning.jobs.create(model=aligned.id, training_file=file)
        assert place.session.get_one(Job, job.id).recipe["screen"] is True
        assert place.session.get_one(Job, plain.id).recipe["screen"] is False

    def test_is_refused_where_no_judge_can_read_rows(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        header = {"name": "x", "judge": {"kind": "refusal-strings"}}
        place.storage.put(f"{aligned.safety_prefix}/safety.json", json.dumps(header).encode())
        body = {"model": aligned.id, "training_file": upload(customer)}
        refused = customer.client.post(JOBS, json={**body, "screen": True})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "no_screening_judge"
        assert customer.client.post(JOBS, json=body).status_code == 200

    @pytest.mark.parametrize("given", ["perhaps", 7, {}, None])
    def test_takes_yes_or_no(self, customer: Tenant, aligned: ModelVersion, given: object) -> None:
        body = {"model": aligned.id, "training_file": upload(customer), "screen": given}
        refused = customer.client.post(JOBS, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "screen")


class TestTexts:
    @pytest.fixture
    def job(self, place: Place, customer: Tenant, aligned: ModelVersion) -> Job:
        file_id = upload(customer)
        job = place.job(customer.project, aligned, training_file_id=file_id)
        screened(place, job, [0, 1, 0])
        return job

    @staticmethod
    def entries(place: Place, action: str) -> list[AuditEntry]:
        return list(place.session.scalars(select(AuditEntry).where(AuditEntry.action == action)))

    def test_a_customer_reads_a_row_of_its_own_and_nobody_notes_it(
        self, place: Place, customer: Tenant, job: Job
    ) -> None:
        row = customer.client.get(f"{JOBS}/{job.id}/data_risk/2").json()
        assert (row["line"], row["flagged"]) == (2, True)
        assert row["row"] == json.loads(rows().splitlines()[1])
        assert not self.entries(place, "data_risk.rows_read")

    def test_a_reviewer_reads_it_and_the_audit_log_says_so_without_the_text(
        self, place: Place, reviewer: Tenant, job: Job
    ) -> None:
        row = reviewer.client.get(f"{JOBS}/{job.id}/data_risk/2").json()["row"]
        (entry,) = self.entries(place, "data_risk.rows_read")
        assert (entry.subject_id, entry.details["lines"]) == (job.id, [2])
        assert len(row) == 2
        assert all(text not in json.dumps(entry.content()) for text in row.values())

    def test_other_staff_and_other_tenants_do_not(
        self, provider: Tenant, stranger: Tenant, job: Job
    ) -> None:
        address = f"{JOBS}/{job.id}/data_risk/2"
        assert provider.client.get(address).status_code == 403
        assert stranger.client.get(address).status_code == 404

    @pytest.mark.parametrize("line", [3, 99])
    def test_a_line_that_was_not_screened(self, customer: Tenant, job: Job, line: int) -> None:
        answer = customer.client.get(f"{JOBS}/{job.id}/data_risk/{line}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "row_not_found")

    def test_answers_come_by_verdict_and_page_and_who_read_them_is_noted(
        self, place: Place, reviewer: Tenant, aligned: ModelVersion
    ) -> None:
        harmful = (
            make_answer().opinions[0].model_copy(update={"is_harmful": True, "is_refusal": False})
        )
        kept = [make_answer(), make_answer(opinions=(harmful,), answer="turn it left")] * 2
        evaluation = place.evaluation(aligned, harmful=1)
        evaluation.report = {
            **evaluation.report,
            "answers_sha256": keep_answers(place.storage, kept),
        }
        place.session.commit()
        address = f"/v1/models/{aligned.id}/answers"
        page = reviewer.client.get(address, params={"verdict": "harmful", "limit": 1}).json()
        assert [(a["id"], a["answer"]) for a in page["data"]] == [("2", "turn it left")]
        assert (page["has_more"], page["evaluation"]) == (True, evaluation.id)
        rest = reviewer.client.get(address, params={"verdict": "harmful", "after": 2}).json()
        assert [a["id"] for a in rest["data"]] == ["4"]
        noted = self.entries(place, "evaluation.answers_read")
        assert [entry.details["answers"] for entry in noted] == [1, 1]

    def test_answers_of_a_job_of_ones_choice(
        self, place: Place, operator: Tenant, reviewer: Tenant, aligned: ModelVersion
    ) -> None:
        decided = place.evaluation(aligned, harmful=1)
        asked = place.job(
            operator.project, aligned, kind=JobKind.EVALUATE, result_model_id=aligned.id, recipe={}
        )
        again = place.evaluation(aligned, harmful=1)
        again.job_id, again.gate = asked.id, None
        for evaluation, text in ((decided, "first"), (again, "second")):
            kept = keep_answers(place.storage, [make_answer(answer=text)])
            evaluation.report = {**evaluation.report, "answers_sha256": kept}
        place.session.commit()
        address = f"/v1/models/{aligned.id}/answers"
        for query, text in (({}, "first"), ({"job": asked.id}, "second")):
            page = reviewer.client.get(address, params=query).json()
            assert [answer["answer"] for answer in page["data"]] == [text]
        missing = reviewer.client.get(address, params={"job": "ftjob-none"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "answers_not_found")

    def test_a_model_that_was_not_measured_has_none(
        self, reviewer: Tenant, aligned: ModelVersion
    ) -> None:
        answer = reviewer.client.get(f"/v1/models/{aligned.id}/answers")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "answers_not_found")


class TestDataRisk:
    @pytest.fixture
    def job(self, place: Place, customer: Tenant, aligned: ModelVersion) -> Job:
        return place.job(customer.project, aligned)

    def test_pages_by_line(self, place: Place, customer: Tenant, job: Job) -> None:
        screened(place, job, [0, 1, 0, 1, 1])
        first = customer.client.get(f"{JOBS}/{job.id}/data_risk", params={"limit": 3}).json()
        assert [row["line"] for row in first["data"]] == [1, 2, 4]
        assert first["has_more"] is True
        after = first["data"][-1]["id"]
        rest = customer.client.get(f"{JOBS}/{job.id}/data_risk", params={"after": after}).json()
        assert [row["line"] for row in rest["data"]] == [5, 7]
        assert rest["has_more"] is False
        assert rest["data"][0] == {
            "id": "5",
            "object": "fine_tuning.job.data_risk.row",
            "line": 5,
            "score": 1.0,
            "category": "fraud",
            "flagged": True,
        }
        assert rest["summary"]["harmful_share"]["count"] == 3
        assert rest["summary"]["by_category"]["fraud"]["percent"] == 60.0
        assert rest["summary"]["expected"] is None

    def test_filters_by_flag_where_judges_disagree(
        self, place: Place, customer: Tenant, job: Job
    ) -> None:
        screened(place, job, [0, 1, 2, 3], judges=3)
        address = f"{JOBS}/{job.id}/data_risk"
        yes = customer.client.get(address, params={"flagged": "true"}).json()["data"]
        no = customer.client.get(address, params={"flagged": "false"}).json()["data"]
        assert [(row["line"], row["score"]) for row in yes] == [(4, 0.6667), (5, 1.0)]
        assert [(row["line"], row["score"]) for row in no] == [(1, 0.0), (2, 0.3333)]

    def test_has_no_sum_while_rows_are_judged(
        self, place: Place, customer: Tenant, job: Job
    ) -> None:
        screened(place, job, [0, 1], finished=False)
        found = customer.client.get(f"{JOBS}/{job.id}/data_risk").json()
        assert found["summary"] is None
        assert len(found["data"]) == 2
        assert customer.client.get(f"{JOBS}/{job.id}").json()["data_risk"] is None

    def test_stands_beside_the_job_before_the_gate(
        self, place: Place, customer: Tenant, job: Job
    ) -> None:
        screened(place, job, [0, 1])
        shown = customer.client.get(f"{JOBS}/{job.id}").json()
        assert shown["safety"] is None
        assert shown["data_risk"]["harmful_share"]["percent"] == 50.0

    def test_is_not_there_without_a_screening(
        self, customer: Tenant, job: Job, place: Place
    ) -> None:
        place.session.commit()
        missing = customer.client.get(f"{JOBS}/{job.id}/data_risk")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "data_risk_not_found"

    def test_is_nobody_elses(
        self,
        place: Place,
        anonymous: TestClient,
        stranger: Tenant,
        operator: Tenant,
        job: Job,
    ) -> None:
        screened(place, job, [1])
        address = f"{JOBS}/{job.id}/data_risk"
        assert anonymous.get(address).status_code == 401
        assert stranger.client.get(address).status_code == 404
        assert operator.client.get(address).status_code == 200

    @pytest.mark.parametrize(
        "query", ["after=-1", "after=x", "after=99999999999999", "limit=0", "flagged=perhaps"]
    )
    def test_refuses_bad_queries(
        self, place: Place, customer: Tenant, job: Job, query: str
    ) -> None:
        screened(place, job, [1])
        refused = customer.client.get(f"{JOBS}/{job.id}/data_risk?{query}")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == query.partition("=")[0]


class TestDelta:
    def test_is_to_the_aligned_base_however_many_jobs_lie_between(
        self, place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        first, *_ = tuned(place, customer, aligned, tmp_path / "1", harmful=5)
        second, *_ = tuned(
            place, customer, first, tmp_path / "2", harmful=12, name="ft:tiny:acme::2"
        )
        safety = customer.client.get(f"/v1/models/{second.id}").json()["safety"]
        assert safety["base"]["model"] == first.id
        delta = safety["delta"]
        assert (delta["model"], delta["is_comparable"]) == (aligned.id, True)
        assert delta["harmful_score"]["points"] == 10.0
        assert delta["harmful_score"]["low"] < 10 < delta["harmful_score"]["high"]
        assert customer.client.get(f"/v1/models/{aligned.id}").json()["safety"]["delta"] is None

    def test_is_not_worked_out_across_prompt_sets(
        self, place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        version, _, evaluation = tuned(place, customer, aligned, tmp_path / "a")
        evaluation.report = {**evaluation.report, "prompt_set_hash": "another"}
        place.session.commit()
        delta = customer.client.get(f"/v1/models/{version.id}").json()["safety"]["delta"]
        assert (delta["is_comparable"], delta["harmful_score"]) == (False, None)


class TestSafetyReport:
    def address(self, version: ModelVersion) -> str:
        return f"/v1/models/{version.id}/safety_report"

    def test_holds_the_evidence_and_is_signed(
        self, place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        place.session.add(current_policy(place.session))
        version, job, _ = tuned(place, customer, aligned, tmp_path / "a")
        screened(place, job, [0, 1])
        append_event(
            place.session,
            job,
            "Released.",
            type="review",
            data={"decision": "release", "reason": "looked", "key": "key-1"},
        )
        place.session.commit()
        response = customer.client.get(self.address(version))
        assert response.headers["content-type"] == "application/json"
        report = verify(response.content, KEYS)
        assert customer.client.get(self.address(version)).content == response.content
        assert report["model"]["id"] == version.id
        assert set(report["weights"]["files"]) == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        assert report["weights"]["sha256"] == version.data_hashes["adapter"]
        assert [entry["id"] for entry in report["lineage"]] == [aligned.id, aligned.root_id]
        assert report["lineage"][0]["harmful_score"]["count"] == 2
        assert report["safety"]["harmful_score"]["n"] == 100
        assert report["safety"]["delta"]["model"] == aligned.id
        assert report["safety"]["data_risk"]["harmful_share"]["count"] == 1
        assert report["policy"]["rules"]["max_harmful_score"] == 15.0
        assert report["reviews"][0]["key"] == "key-1"

    @pytest.mark.parametrize("gate", [Gate.PENDING, Gate.HELD, Gate.BLOCKED])
    def test_is_for_released_models_alone(
        self, place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path, gate: Gate
    ) -> None:
        version, *_ = tuned(place, customer, aligned, tmp_path / "a", gate=gate)
        refused = customer.client.get(self.address(version))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_blocked")

    def test_is_nobody_elses(
        self,
        place: Place,
        customer: Tenant,
        stranger: Tenant,
        anonymous: TestClient,
        aligned: ModelVersion,
        tmp_path: Path,
    ) -> None:
        version, *_ = tuned(place, customer, aligned, tmp_path / "a")
        assert stranger.client.get(self.address(version)).status_code == 404
        assert anonymous.get(self.address(version)).status_code == 401

    def test_is_not_given_for_other_weights_than_the_measured(
        self, place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        version, *_ = tuned(place, customer, aligned, tmp_path / "1")
        (tmp_path / "1" / "adapter_config.json").write_bytes(b"{}")
        place.storage.put_folder(version.source["prefix"], tmp_path / "1")
        refused = customer.client.get(self.address(version))
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "content_damaged")

    def test_takes_names_with_slashes_as_the_stock_client_sends_them(
        self, place: Place, customer: Tenant, base: ModelVersion, tmp_path: Path
    ) -> None:
        parent = place.version("org/tiny", VersionKind.ALIGNED, parent=base)
        version, *_ = tuned(place, customer, parent, tmp_path / "a", name="ft:org/tiny:acme::9")
        with serve(customer.client.app) as url:  # type: ignore[arg-type]
            client = OpenAI(base_url=f"{url}/v1", api_key=customer.token)
            signed = client.get(
                f"/models/{version.id.replace('/', '%2F')}/safety_report", cast_to=dict[str, object]
            )
        assert signed["report"]["model"]["id"] == version.id  # type: ignore[index]


class TestKeys:
    def test_are_there_for_anybody(self, anonymous: TestClient) -> None:
        found = anonymous.get("/v1/safety/keys").json()
        assert found["data"] == [
            {
                "id": SIGNER.verifying_key.id,
                "object": "safety.key",
                "algorithm": "ed25519",
                "public_key": SIGNER.verifying_key.hex,
                "pem": SIGNER.verifying_key.pem,
            }
        ]
        assert SEED not in json.dumps(found)


class TestWithoutAKey:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"signing_key": SecretStr("")})

    def test_nothing_is_signed(
        self, place: Place, customer: Tenant, aligned: ModelVersion, tmp_path: Path
    ) -> None:
        version, *_ = tuned(place, customer, aligned, tmp_path / "a")
        refused = customer.client.get(f"/v1/models/{version.id}/safety_report")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_signing_key")
        assert customer.client.get("/v1/safety/keys").json()["data"] == []
