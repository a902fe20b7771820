"""An evaluation as rows of a chart: each rate with its interval, its limit and what it means."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from models.evaluation import Evaluation, EvaluationReport
from models.policy import PolicyRules, SafetyPolicy, current_policy
from models.rate import Rate


@dataclass(frozen=True, slots=True)
class Measure:
    """One row. `limit` is the policy's, in percent; above it is bad."""

    label: str
    meaning: str
    rate: Rate
    limit: float | None = None
    #: A comparison row, drawn quietly.
    is_reference: bool = False

    @property
    def standing(self) -> str:
        """Where the whole interval lies: `within`, `above` or `across` the limit; empty without one."""
        if self.limit is None:
            return ""
        if self.rate.high_percent <= self.limit:
            return "within"
        return "above" if self.rate.low_percent > self.limit else "across"


@dataclass(frozen=True, slots=True)
class Evidence:
    """An evaluation made ready for a page."""

    evaluation: Evaluation
    report: EvaluationReport
    rules: PolicyRules
    measures: tuple[Measure, ...]
    categories: tuple[Measure, ...]
    #: Over-refusal by kind of harmless prompt.
    kinds: tuple[Measure, ...]


def harmful_score(evaluation: Evaluation, rules: PolicyRules) -> Measure:
    """Give the harmful score alone, for lists."""
    return Measure(
        "Harmful score",
        "Answers to held-out harmful prompts that the judge flags",
        evaluation.parsed().harmful_score,
        rules.max_harmful_score,
    )


def read_evidence(session: Session, evaluation: Evaluation, parent: Evaluation | None) -> Evidence:
    """Make an evaluation ready, beside that of the version it was tuned from.

    The limits are those of the policy that decided, so that an old page tells of its own time.
    """
    policy = (
        session.get(SafetyPolicy, evaluation.policy_version) if evaluation.policy_version else None
    )
    rules = (policy or current_policy(session)).parsed()
    report = evaluation.parsed()
    measures = [harmful_score(evaluation, rules)]
    if parent is not None:
        measures.append(
            Measure(
                "Harmful score before",
                "The same measurement on the version that training started from",
                parent.parsed().harmful_score,
                is_reference=True,
            )
        )
    measures += [
        Measure(
            f"Harmful score by {further.judge.name}",
            f"Another judge on the same answers; the two agree on {further.agreement.percent:.1f}%"
            + ("" if further.kappa is None else f", kappa {further.kappa:.2f}"),
            further.harmful_score,
            is_reference=True,
        )
        for further in report.further_judges
    ]
    measures += [
        Measure(
            f"Harmful score, asked as line {framed.line:,} asks",
            f"Test prompts in the wording of {framed.rows:,} rows of the training file"
            + (", its system message included" if framed.has_system_message else "")
            + (f", behind {framed.earlier_turns} earlier turns" if framed.earlier_turns else "")
            + (f". The aligned model: {framed.before.percent:.1f}%" if framed.before else ""),
            framed.harmful_score,
            rules.max_harmful_score,
        )
        for framed in report.framed_scores
    ]
    measures += [
        Measure(
            "Harmful or incoherent (HS+)",
            "Also counts answers that make no sense",
            report.harmful_or_incoherent,
        ),
        Measure("Refusals", "Harmful prompts that were refused", report.refusal_rate),
    ]
    if report.over_refusal is not None:
        measures.append(
            Measure(
                "Over-refusal",
                "Harmless prompts that were refused: what safety costs",
                report.over_refusal,
                rules.max_over_refusal,
            )
        )
    if report.fine_tuning_accuracy is not None:
        measures.append(
            Measure(
                "Fine-tuning accuracy (FA)",
                _accuracy_meaning(report),
                report.fine_tuning_accuracy,
            )
        )
    categories = tuple(
        Measure(name, "Harmful score in this category", rate, rules.category_limit(name))
        for name, rate in sorted(
            report.harmful_by_category.items(), key=lambda item: -item[1].percent
        )
    )
    kinds = tuple(
        Measure(name, "Over-refusal of this kind of harmless prompt", rate)
        for name, rate in sorted(
            report.over_refusal_by_category.items(), key=lambda item: -item[1].percent
        )
    )
    return Evidence(evaluation, report, rules, tuple(measures), categories, kinds)


def _accuracy_meaning(report: EvaluationReport) -> str:
    if report.scorer == "preference":
        return "Validation pairs whose preferred answer the model finds the more probable one"
    how = "exactly" if report.scorer == "exact" else f"right, by the rule of {report.scorer}"
    return f"Validation rows answered {how}: whether the task was learnt"
