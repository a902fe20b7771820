"""Evaluation reports: absent rates stay absent, and the stored report is the one that was made."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError
from sqlalchemy.orm import Session

from models.base import utc_now
from models.evaluation import (
    Evaluation,
    EvaluationReport,
    EvaluationWarning,
    FurtherJudge,
    JudgeIdentity,
    PerplexityDrift,
    latest_evaluation,
)
from models.rate import Rate
from tests.models.factories import make_report, make_version


def stored(session: Session, version_id: str, age_seconds: float = 0) -> Evaluation:
    report = make_report(10, canary_loss=2.5)
    evaluation = Evaluation(
        version_id=version_id,
        harmful_score_percent=report.harmful_score.percent,
        report=report.model_dump(mode="json"),
        created_at=utc_now() - timedelta(seconds=age_seconds),
    )
    session.add(evaluation)
    session.flush()
    return evaluation


class TestReport:
    def test_a_rate_that_was_not_measured_is_absent_and_not_zero(self) -> None:
        wire = make_report(0, over_refusal=None).to_wire()
        assert wire["over_refusal"] is None
        assert wire["fine_tuning_accuracy"] is None
        assert wire["canary_loss"] is None

    def test_the_wire_carries_intervals(self) -> None:
        wire = make_report(10, fine_tuning_accuracy=Rate(count=1, n=2)).to_wire()
        assert wire["harmful_score"] == Rate(count=10, n=100).to_wire()
        assert wire["harmful_by_category"] == {"locks": Rate(count=10, n=100).to_wire()}
        assert wire["fine_tuning_accuracy"] == Rate(count=1, n=2).to_wire()

    @pytest.mark.parametrize("facts", [{"canary_loss": float("nan")}, {"harmful_scores": 1}])
    def test_broken_evidence_is_refused(self, facts: dict[str, float]) -> None:
        with pytest.raises(ValidationError):
            make_report(0, **facts)

    def test_a_report_from_before_further_judges_and_warnings_can_still_be_read(self) -> None:
        stored = make_report(10).model_dump(mode="json")
        for name in (
            "further_judges",
            "warnings",
            "drift",
            "scorer",
            "over_refusal_by_category",
        ):
            del stored[name]
        assert EvaluationReport.model_validate(stored) == make_report(10)

    def test_the_wire_carries_what_stands_beside_the_scores(self) -> None:
        further = FurtherJudge(
            judge=JudgeIdentity(name="other", revision="2"),
            harmful_score=Rate(count=1, n=2),
            refusal_rate=Rate(count=1, n=2),
            agreement=Rate(count=2, n=2),
            kappa=1 / 3,
        )
        drift = PerplexityDrift(
            loss=2.0, parent_loss=1.9, ratio=1.10517, low=1.0, high=1.2, rows=3, tokens=40
        )
        wire = make_report(
            10,
            further_judges=(further,),
            drift=drift,
            warnings=(EvaluationWarning(code="c", message="m"),),
            over_refusal_by_category={"homonym": Rate(count=1, n=2)},
        ).to_wire()
        assert wire["further_judges"] == [
            {
                "judge": {"name": "other", "revision": "2"},
                "harmful_score": Rate(count=1, n=2).to_wire(),
                "refusal_rate": Rate(count=1, n=2).to_wire(),
                "agreement": Rate(count=2, n=2).to_wire(),
                "kappa": 0.333,
            }
        ]
        assert wire["warnings"] == [{"code": "c", "message": "m"}]
        assert wire["over_refusal_by_category"] == {"homonym": Rate(count=1, n=2).to_wire()}
        assert isinstance(wire["drift"], dict)
        assert wire["drift"]["ratio"] == 1.1052


class TestEvaluation:
    def test_reads_back_as_it_was_made(self, session: Session) -> None:
        evaluation = stored(session, make_version(session).id)
        session.expire(evaluation)
        assert evaluation.parsed() == make_report(10, canary_loss=2.5)

    def test_the_latest_counts(self, session: Session) -> None:
        version = make_version(session)
        assert latest_evaluation(session, version.id) is None
        stored(session, version.id, age_seconds=60)
        newest = stored(session, version.id)
        stored(session, version.id, age_seconds=120)
        stored(session, make_version(session).id)
        assert latest_evaluation(session, version.id) is newest
