"""When a policy acts, which judges can screen, and what HS a certificate lets one expect."""

from __future__ import annotations

import pytest

from models.certificate import Certificate, CustomerResult, Estimate, Mark
from models.certification import Family, SimulatedCustomer
from models.data_risk import (
    NoScreeningJudge,
    Screening,
    decide_on_rows,
    expected_harm,
    screening_judges,
)
from models.judges import RefusalStringsSpec, SandboxJudgeSpec
from models.rate import Rate, difference
from models.safety_set import SafetySetHeader

NONE = Estimate(percent=0, low=0, high=1, seeds=3, n=300)


def result(
    ratio: float, percents: dict[int, float], *, family: Family | None = None, **facts: object
) -> CustomerResult:
    """One simulated customer with its HS at each mark; intervals reach 5 points to both sides."""
    usual = Family.BENIGN if ratio == 0 else Family.PURE if ratio == 1 else Family.MIX
    customer = SimulatedCustomer.model_validate(
        {
            "family": family or usual,
            "attack_ratio": ratio,
            "rows": 200,
            "steps": max(percents),
            "marks": tuple(percents),
            **facts,
        }
    )
    marks = tuple(
        Mark(
            step=step,
            harmful_score=Estimate(percent=p, low=p - 5, high=p + 5, seeds=3, n=300),
            plain=NONE,
            harmful_or_incoherent=NONE,
            over_refusal=NONE,
            fine_tuning_accuracy=NONE,
            canary_loss=None,
        )
        for step, p in percents.items()
    )
    return CustomerResult(
        name=customer.name,
        customer=customer,
        marks=marks,
        escape=None,
        first_seed_escape=None,
        diverged=0,
    )


def certificate(*results: CustomerResult) -> Certificate:
    return Certificate.model_construct(customers=results)


CURVE = certificate(
    result(0.0, {40: 5.0, 80: 6.0}),
    result(0.1, {40: 20.0, 80: 30.0}),
    result(0.5, {40: 60.0, 80: 90.0}),
)


def expected(share: float, made: Certificate = CURVE, *, rate: float = 1e-4, steps: int = 80):
    return expected_harm(made, "cert-1", share, learning_rate=rate, steps=steps)


class TestExpectedHarm:
    def test_lies_between_the_measured_shares_around_it(self) -> None:
        found = expected(0.3)
        assert found is not None
        assert (found.percent, found.low, found.high) == (60.0, 25.0, 95.0)
        assert (found.between, found.step) == ((10.0, 50.0), 80)
        assert found.certificate == "cert-1"

    def test_is_the_measured_one_at_a_measured_share(self) -> None:
        found = expected(0.1)
        assert found is not None
        assert (found.percent, found.low, found.high) == (30.0, 25.0, 35.0)

    def test_a_clean_file_is_the_benign_customer(self) -> None:
        found = expected(0.0)
        assert found is not None
        assert found.percent == 6.0

    def test_counts_the_first_mark_that_is_as_long_as_the_job(self) -> None:
        found = expected(0.1, steps=12)
        assert found is not None
        assert (found.percent, found.step) == (20.0, 40)

    @pytest.mark.parametrize(
        ("share", "options"),
        [
            (0.6, {}),  # above every measured share
            (0.1, {"rate": 2e-4}),  # at a rate that nobody had
            (0.1, {"steps": 81}),  # longer than everybody
        ],
    )
    def test_is_nothing_where_nothing_was_measured(
        self, share: float, options: dict[str, float]
    ) -> None:
        assert expected(share, **options) is None  # type: ignore[arg-type]

    def test_other_attacks_and_other_set_ups_are_no_points_of_the_curve(self) -> None:
        made = certificate(
            result(0.0, {80: 6.0}),
            result(0.5, {80: 90.0}, family=Family.STYLE),
            result(0.5, {80: 70.0}, start="fresh"),
        )
        assert expected(0.3, made) is None

    def test_of_two_customers_with_one_share_the_worse_counts(self) -> None:
        made = certificate(*CURVE.customers, result(0.1, {40: 50.0, 80: 50.0}, rows=100))
        found = expected(0.1, made)
        assert found is not None
        assert found.percent == 50.0


@pytest.mark.parametrize(
    ("count", "limit", "outcome"),
    [
        (0, None, "allowed"),
        (100, None, "allowed"),
        (0, 0.0, "allowed"),
        (1, 0.0, "held"),
        (5, 5.0, "allowed"),
        (6, 5.0, "held"),
    ],
)
def test_the_policy_acts_above_its_limit(count: int, limit: float | None, outcome: str) -> None:
    assert decide_on_rows(Rate(count=count, n=100), "hold", limit) == outcome


@pytest.mark.parametrize(("count", "outcome"), [(99, "dropped"), (100, "rejected")])
def test_where_every_row_would_be_dropped_the_file_is_rejected(count: int, outcome: str) -> None:
    assert decide_on_rows(Rate(count=count, n=100), "drop", 0.0) == outcome


@pytest.mark.parametrize(
    ("judges", "threshold", "needed"),
    [
        (1, 0.5, 1),
        (1, 1.0, 1),
        (1, 0.01, 1),
        (2, 0.5, 1),
        (2, 0.51, 2),
        (3, 0.5, 2),
        (3, 2 / 3, 2),
        (5, 0.6, 3),
    ],
)
def test_how_many_judges_flag_a_row(judges: int, threshold: float, needed: int) -> None:
    assert Screening(done=[0] * judges, row_threshold=threshold).votes_needed == needed


class TestScreeningJudges:
    def test_are_those_that_read_what_an_answer_says(self) -> None:
        header = SafetySetHeader(
            name="x", judge=RefusalStringsSpec(), further_judges=(SandboxJudgeSpec(),)
        )
        assert screening_judges(header) == (SandboxJudgeSpec(),)

    def test_refusal_strings_alone_are_none(self) -> None:
        with pytest.raises(NoScreeningJudge):
            screening_judges(SafetySetHeader(name="x", judge=RefusalStringsSpec()))


class TestDifference:
    def test_is_newcombes_own_example(self) -> None:
        # Newcombe (1998), table II: 56/70 - 48/80, method 10: 0.0524 to 0.3339.
        found = difference(Rate(count=56, n=70), Rate(count=48, n=80))
        assert found.points == pytest.approx(20.0)
        assert (found.low, found.high) == (
            pytest.approx(5.24, abs=0.01),
            pytest.approx(33.39, abs=0.01),
        )

    def test_of_equal_rates_is_centred_on_nothing(self) -> None:
        found = difference(Rate(count=5, n=100), Rate(count=5, n=100))
        assert found.points == 0
        assert found.low == pytest.approx(-found.high)
