"""A job that measures a registered model, on its page, in the list, and on the model's page."""

from __future__ import annotations

import re

from sqlalchemy import select

from models.answers import keep_answers
from models.evaluation import Evaluation
from models.job import JobKind, JobStatus
from models.model_version import ModelVersion
from tests.api.conftest import Place, Tenant
from tests.api.dashboard.conftest import SignIn, csrf
from tests.api.test_evaluation import measured
from tests.models.factories import make_answer


def test_its_page_has_the_evaluation_and_nothing_of_training(
    operator: Tenant, aligned: ModelVersion, place: Place, sign_in: SignIn
) -> None:
    job = measured(place, operator, aligned, harmful=41)
    html = sign_in(operator.token).get(f"/dashboard/jobs/{job.id}").text
    assert "<dd>Evaluation</dd>" in html
    assert "41.0%" in html
    assert "which it does not change" in html
    for absent in ("curves-title", "gate-title", "configuration", "certificate", "/answers"):
        assert f'"{absent}"' not in html
        assert f'{absent}"' not in html


def test_its_answers_are_its_own(
    operator: Tenant, aligned: ModelVersion, place: Place, sign_in: SignIn
) -> None:
    decided = place.evaluation(aligned, harmful=1)
    job = measured(place, operator, aligned, harmful=41)
    again = place.session.scalars(select(Evaluation).where(Evaluation.job_id == job.id)).one()
    for evaluation, prompt in ((decided, "asked before"), (again, "asked again")):
        kept = keep_answers(place.storage, [make_answer(prompt=prompt)])
        evaluation.report = {**evaluation.report, "answers_sha256": kept}
    place.session.commit()
    page, address = sign_in(operator.token), f"/dashboard/jobs/{job.id}/answers"
    assert address in page.get(f"/dashboard/jobs/{job.id}").text
    shown = page.post(address, data={"csrf": csrf(page.get(address)), "verdict": ""}).text
    assert "asked again" in shown
    assert "asked before" not in shown


def test_the_list_knows_the_kind_and_its_score(
    operator: Tenant, aligned: ModelVersion, place: Place, sign_in: SignIn
) -> None:
    job = measured(place, operator, aligned, harmful=41)
    page = sign_in(operator.token)
    html = page.get("/dashboard/jobs", params={"kind": "evaluate"}).text
    assert re.search(r'value="evaluate" selected>Evaluation<', html)
    assert job.id in html
    assert "41.0%" in html
    assert job.id not in page.get("/dashboard/jobs", params={"kind": "certify"}).text


def test_the_models_page_says_that_it_is_under_way(
    operator: Tenant, aligned: ModelVersion, place: Place, sign_in: SignIn
) -> None:
    place.job(
        operator.project,
        aligned,
        kind=JobKind.EVALUATE,
        status=JobStatus.QUEUED,
        result_model_id=aligned.id,
        recipe={},
    )
    place.session.commit()
    assert "measures it anew" in sign_in(operator.token).get(f"/dashboard/models/{aligned.id}").text
