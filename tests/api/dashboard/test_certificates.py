"""Certificates on the dashboard: a line beside the model, the page for operators, and the job that makes one."""

from __future__ import annotations

from models.job import JobKind, JobStatus, Stage
from models.model_version import ModelVersion, VersionKind
from tests.api.certificates import SMALL_PLAN, certify
from tests.api.conftest import Place, Tenant
from tests.api.dashboard.conftest import SignIn
from tests.worker.certify.made import certificate as made_by_hand
from worker.certify.page import draw_page


class TestModelsPage:
    def test_a_line_tells_the_titer(
        self,
        operator: Tenant,
        customer: Tenant,
        aligned: ModelVersion,
        place: Place,
        sign_in: SignIn,
    ) -> None:
        certify(place, aligned)
        for tenant in (operator, customer):
            html = sign_in(tenant.token).get("/dashboard/models").text
            assert "titer 40 steps" in html
            assert "34.0%" in html

    def test_without_one_it_says_so(
        self, operator: Tenant, aligned: ModelVersion, sign_in: SignIn
    ) -> None:
        assert "no certificate" in sign_in(operator.token).get("/dashboard/models").text


class TestPage:
    def test_is_shown_as_it_was_stored_and_may_use_its_own_style_alone(
        self, operator: Tenant, place: Place, sign_in: SignIn
    ) -> None:
        base = place.version("org/base", VersionKind.BASE)
        version = place.version("org/hard", VersionKind.ALIGNED, parent=base)
        stored = certify(place, version)
        page = draw_page(made_by_hand(version.id))
        place.storage.put(f"{stored.prefix}/certificate.html", page.encode())
        answer = sign_in(operator.token).get("/dashboard/models/org/hard/certificate")
        assert answer.status_code == 200
        assert answer.text == page
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"

    def test_is_for_signed_in_operators(
        self, customer: Tenant, aligned: ModelVersion, place: Place, sign_in: SignIn
    ) -> None:
        certify(place, aligned)
        address = f"/dashboard/models/{aligned.id}/certificate"
        assert sign_in(customer.token).get(address).status_code == 403
        anonymous = sign_in(customer.token)
        anonymous.cookies.clear()
        assert anonymous.get(address).status_code == 303

    def test_a_model_without_one_says_so(
        self, operator: Tenant, aligned: ModelVersion, sign_in: SignIn
    ) -> None:
        answer = sign_in(operator.token).get(f"/dashboard/models/{aligned.id}/certificate")
        assert answer.status_code == 404
        assert "has no certificate" in answer.text

    def test_other_pages_keep_the_strict_policy(self, operator: Tenant, sign_in: SignIn) -> None:
        answer = sign_in(operator.token).get("/dashboard/models")
        assert "unsafe-inline" not in answer.headers["content-security-policy"]


class TestJobPage:
    def test_a_running_one_shows_how_many_came(
        self, operator: Tenant, aligned: ModelVersion, place: Place, sign_in: SignIn
    ) -> None:
        job = place.job(
            operator.project,
            aligned,
            kind=JobKind.CERTIFY,
            status=JobStatus.RUNNING,
            stage=Stage.EVALUATE,
            result_model_id=aligned.id,
            recipe=SMALL_PLAN,
        )
        place.session.commit()
        html = sign_in(operator.token).get(f"/dashboard/jobs/{job.id}").text
        assert "Certification" in html
        assert "Simulated customers tune the model" in html
        assert "to be made" not in html
        assert 'id="gate"' not in html
        assert "data-curves" not in html
        assert "mine" in html
        assert f'action="/dashboard/jobs/{job.id}/pause"' in html
        job.status = JobStatus.PAUSED
        place.session.commit()
        html = sign_in(operator.token).get(f"/dashboard/jobs/{job.id}").text
        assert "that are done are kept" in html
        assert "Simulated customers tune the model" not in html
        assert f'action="/dashboard/jobs/{job.id}/resume"' in html

    def test_a_finished_one_leads_to_the_certificate(
        self, operator: Tenant, aligned: ModelVersion, place: Place, sign_in: SignIn
    ) -> None:
        job_id = certify(place, aligned).job_id
        client = sign_in(operator.token)
        html = client.get(f"/dashboard/jobs/{job_id}").text
        assert f'href="/dashboard/models/{aligned.id}/certificate?job={job_id}"' in html
        assert "pure 100%, 200 rows" in html
        jobs = client.get("/dashboard/jobs").text
        assert ">certify<" in jobs
        assert ">mine<" in jobs
