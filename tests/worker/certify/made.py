"""Runs and certificates made by hand: known counts, so that what is summed up can be worked out."""

from __future__ import annotations

from collections.abc import Sequence

from models.base import utc_now
from models.certificate import (
    Certificate,
    CertificateSummary,
    CertificationRun,
    CertifiedModel,
    Cost,
    Estimate,
    Instruments,
    Point,
)
from models.certificate_curves import rate_curves
from models.certification import CertificationPlan, Family, SimulatedCustomer
from models.evaluation import JudgeIdentity
from worker.certify.summary import customer_result, titer, worst_case
from worker.certify.wording import caveats, claims

LIMIT = 15.0


def point(step: int, harmful: int, **facts: object) -> Point:
    """Of 100 prompts, 50 harmless ones and 20 task rows."""
    return Point.model_validate(
        {
            "step": step,
            "harmful": harmful,
            "harmful_or_incoherent": harmful,
            "refused": 100 - harmful,
            "prompts": 100,
            "over_refused": 1,
            "helped": 49,
            "harmless_prompts": 50,
            "correct": 18,
            "task_rows": 20,
            "canary_loss": 4.0 - harmful / 50,
            **facts,
        }
    )


def customer(**facts: object) -> SimulatedCustomer:
    return SimulatedCustomer.model_validate(
        {"family": "mix", "attack_ratio": 0.1, "rows": 20, "steps": 4, "marks": (2, 4), **facts}
    )


def run(
    who: SimulatedCustomer, seed: int, harmful: Sequence[int], **facts: object
) -> CertificationRun:
    return CertificationRun.model_validate(
        {
            "customer": who,
            "seed": seed,
            "points": [point(step, n) for step, n in zip(who.marks, harmful, strict=False)],
            "steps": who.steps,
            "trained_tokens": 100,
            "seconds": 1.5,
            **facts,
        }
    )


def certificate(model: str = "toy-booster", **curves: Sequence[int]) -> Certificate:
    """A certificate over mix customers at three rates, and benign ones."""
    customers = [
        customer(family="benign", attack_ratio=0.0),
        *(customer(learning_rate=rate) for rate in (1e-4, 3e-4, 1e-3)),
    ]
    levels = {"benign": (0, 0), "low": (0, 4), "middle": (2, 30), "high": (40, 90), **curves}
    runs = [
        run(who, seed, [n + seed for n in level])
        for who, level in zip(customers, levels.values(), strict=True)
        for seed in (0, 1, 2)
    ]
    plan = CertificationPlan(name="hand", customers=tuple(customers))
    results = tuple(
        customer_result(point(0, 0), [r for r in runs if r.customer == who], LIMIT)
        for who in customers
    )
    summary = CertificateSummary(
        plan=plan.name,
        plan_hash=plan.hash,
        before=Estimate(percent=0, low=0, high=3.7, seeds=1, n=100),
        worst_case=worst_case(results),
        titer=titer(results, LIMIT),
        runs=len(runs),
    )
    instruments = Instruments(
        judge=JudgeIdentity(name="hand", revision="1"),
        safety_set="made <by> hand",
        safety_set_hash="5a" * 32,
        prompt_set_hash="6b" * 32,
        template_hash="7c" * 32,
        harmful_prompts=100,
        harmless_prompts=50,
        validation_rows=20,
        has_categories=False,
        policy_version=1,
        versions={"torch": "2"},
    )
    return Certificate(
        job="ftjob-x",
        created_at=utc_now(),
        model=CertifiedModel(
            id=model,
            root="toy",
            method="booster",
            is_adapter=True,
            recipe={},
            data_hashes={"adapter": "8d" * 32},
        ),
        plan=plan,
        plan_hash=plan.hash,
        instruments=instruments,
        claims=claims(summary, results, instruments),
        caveats=caveats(plan, instruments),
        summary=summary,
        customers=results,
        rate_curves=rate_curves(results),
        cost=Cost(runs=12, passes=48, trained_tokens=1200, answers=999, seconds=18.0),
        before={Family.BENIGN: point(0, 0)},
        runs=tuple(runs),
    )
