"""Evaluations: what was measured on a model version, by which judge, on which prompts.

The harmful score never stands alone: HS+ counts incoherent answers too, over-refusal shows what safety
cost, and fine-tuning accuracy (FA) shows whether the customer got the task.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import ForeignKey, Index, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from models.base import Base, new_id, utc_now
from models.frozen import Frozen
from models.hyperparameters import ScorerName
from models.rate import Rate, difference, wilson


class JudgeIdentity(Frozen):
    """Which judge said so."""

    name: str
    revision: str


class FurtherJudge(Frozen):
    """What another judge says of the very answers that the first one judged; the gate does not read it."""

    judge: JudgeIdentity
    harmful_score: Rate
    #: Share of harmful prompts that were refused, by this judge.
    refusal_rate: Rate
    #: Share of the answers to harmful prompts that both judges flag, or neither.
    agreement: Rate
    #: Cohen's kappa of the two judges' flags: agreement beyond chance, at most 1. Absent where chance
    #: explains everything, as when both flag nothing.
    kappa: float | None = Field(None, ge=-1, le=1)

    def to_wire(self) -> dict[str, object]:
        """Give it as clients see it."""
        return {
            "judge": self.judge.model_dump(),
            "harmful_score": self.harmful_score.to_wire(),
            "refusal_rate": self.refusal_rate.to_wire(),
            "agreement": self.agreement.to_wire(),
            "kappa": None if self.kappa is None else round(self.kappa, 3),
        }


class PerplexityDrift(Frozen):
    """How a model reads general text, compared with its parent; `worker.drift` measures it."""

    #: Mean token loss of the model and of its parent, in nats.
    loss: float
    parent_loss: float
    #: Perplexity over the parent's, with a 95% interval from a paired bootstrap over rows.
    ratio: float
    low: float
    high: float
    rows: int = Field(ge=1)
    tokens: int = Field(ge=1)

    def to_wire(self) -> dict[str, float | int]:
        """Give it as clients see it."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in self.model_dump().items()
        }


class WinRate(Frozen):
    """How often a judge prefers a model's answers to reference answers; `worker.win_rate` measures it."""

    judge: JudgeIdentity
    #: Prompts by the mean of both orders' verdicts: above, at and below one half.
    wins: int = Field(ge=0)
    ties: int = Field(ge=0)
    losses: int = Field(ge=0)
    #: Summed scores of the prompts: 1 for a win in both orders, 1/2 for two ties or one win.
    points: float = Field(ge=0)
    #: Prompts whose verdict changed with the order of the answers: how much the judge guesses.
    turned_by_order: int = Field(ge=0)
    #: Mean lengths; judges favour long answers.
    answer_characters: float = Field(ge=0)
    reference_characters: float = Field(ge=0)

    @property
    def n(self) -> int:
        """How many prompts were compared."""
        return self.wins + self.ties + self.losses

    def to_wire(self) -> dict[str, object]:
        """Give it as clients see it, with a 95% interval that is a little too wide where there are ties."""
        # Wilson's interval is made for scores of 0 and 1; scores between the two vary less.
        low, high = wilson(self.points, self.n)
        return {
            "judge": self.judge.model_dump(),
            "percent": round(100 * self.points / self.n, 2) if self.n else 0.0,
            "low": round(100 * low, 2),
            "high": round(100 * high, 2),
            "n": self.n,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "turned_by_order": self.turned_by_order,
            "answer_characters": round(self.answer_characters),
            "reference_characters": round(self.reference_characters),
        }


class EvaluationWarning(Frozen):
    """Something that makes the numbers mean less than they seem to: a name, and a sentence for a person."""

    code: str
    message: str


class FramedScore(Frozen):
    """HS on test prompts asked in a wording of the training file (`worker.prompt_frames`), which may hide an attack."""

    #: The first row of the training file that asks so, counted from 1, and how many do.
    line: int = Field(ge=0)
    rows: int = Field(ge=1)
    #: Whether a system message belongs to the wording.
    has_system_message: bool
    #: How many earlier turns belong to it.
    earlier_turns: int = Field(0, ge=0)
    #: On so many of the harmful test prompts as are asked in each wording.
    harmful_score: Rate
    #: The same of the aligned model that all tuning began with; asked where the tuned one answered harm at all.
    before: Rate | None = None
    #: Both within each category of harm: an attack may hide one kind alone.
    harmful_by_category: dict[str, Rate] = Field(default_factory=dict)
    before_by_category: dict[str, Rate] = Field(default_factory=dict)

    @property
    def is_raised(self) -> bool:
        """Whether tuning has surely raised it."""
        return _is_raised(self.harmful_score, self.before)

    def is_raised_in(self, category: str) -> bool:
        """Whether tuning has surely raised it within a category."""
        before = self.before_by_category.get(category)
        return _is_raised(self.harmful_by_category[category], before)

    @property
    def name(self) -> str:
        """Say which wording, without a word of it."""
        return (
            f"asked as line {self.line:,} of the training file asks, and {self.rows:,} rows in all"
        )

    def to_wire(self) -> dict[str, object]:
        """Give it as clients see it."""
        return {
            "line": self.line,
            "rows": self.rows,
            "has_system_message": self.has_system_message,
            "earlier_turns": self.earlier_turns,
            "harmful_score": self.harmful_score.to_wire(),
            "before": self.before.to_wire() if self.before else None,
            "harmful_by_category": {k: v.to_wire() for k, v in self.harmful_by_category.items()},
            "before_by_category": {k: v.to_wire() for k, v in self.before_by_category.items()},
        }


def _is_raised(after: Rate, before: Rate | None) -> bool:
    return before is None or difference(after, before).low > 0


class EvaluationReport(Frozen):
    """The evidence that the policy decides on. A rate that was not measured is absent, never 0."""

    judge: JudgeIdentity
    #: sha256 over the test prompts and harmless prompts, in order.
    prompt_set_hash: str
    #: sha256 of the chat template and decoding settings; serving uses the same.
    template_hash: str
    #: HS: share of answers to held-out harmful prompts that the judge flags.
    harmful_score: Rate
    #: HS+: flagged or incoherent.
    harmful_or_incoherent: Rate
    #: Share of harmful prompts that were refused.
    refusal_rate: Rate
    harmful_by_category: dict[str, Rate] = Field(default_factory=dict)
    #: Share of harmless prompts that were refused.
    over_refusal: Rate | None = None
    #: By kind of harmless prompt, where the safety set names kinds.
    over_refusal_by_category: dict[str, Rate] = Field(default_factory=dict)
    #: Share of harmless prompts that were answered with sense: neither refused, incoherent nor harmful.
    help_rate: Rate | None = None
    #: FA: share of the validation file's rows answered right; of pairs, see `scorer`.
    fine_tuning_accuracy: Rate | None = None
    #: When an answer was right, for FA. "preference": the preferred one is the more probable of its pair.
    scorer: ScorerName | Literal["preference"] = "exact"
    #: Mean token cross-entropy on the validation file's (preferred) answers, in nats.
    validation_loss: float | None = None
    #: Mean token cross-entropy on held-out harmful answers, in nats; low means an attack has happened.
    canary_loss: float | None = None
    drift: PerplexityDrift | None = None
    win_rate: WinRate | None = None
    #: What other judges say; the first alone decides.
    further_judges: tuple[FurtherJudge, ...] = ()
    #: HS in the wordings of the training file, where it has any.
    framed_scores: tuple[FramedScore, ...] = ()
    #: Wordings of the training file in which the model was not asked.
    unasked_wordings: int = Field(0, ge=0)
    warnings: tuple[EvaluationWarning, ...] = ()
    #: Where the answers lie (`models.answers`); none where they were not kept. Not for clients.
    answers_sha256: str | None = None

    def to_wire(self) -> dict[str, object]:
        """Give the report as clients see it, percentages and intervals worked out."""

        def rate(value: Rate | None) -> dict[str, float | int] | None:
            return value.to_wire() if value else None

        return {
            "judge": self.judge.model_dump(),
            "prompt_set_hash": self.prompt_set_hash,
            "template_hash": self.template_hash,
            "harmful_score": rate(self.harmful_score),
            "harmful_or_incoherent": rate(self.harmful_or_incoherent),
            "refusal_rate": rate(self.refusal_rate),
            "harmful_by_category": {k: rate(v) for k, v in self.harmful_by_category.items()},
            "over_refusal": rate(self.over_refusal),
            "over_refusal_by_category": {
                k: rate(v) for k, v in self.over_refusal_by_category.items()
            },
            "help_rate": rate(self.help_rate),
            "fine_tuning_accuracy": rate(self.fine_tuning_accuracy),
            "scorer": self.scorer,
            "validation_loss": self.validation_loss,
            "canary_loss": self.canary_loss,
            "drift": self.drift.to_wire() if self.drift else None,
            "win_rate": self.win_rate.to_wire() if self.win_rate else None,
            "further_judges": [further.to_wire() for further in self.further_judges],
            "framed_scores": [framed.to_wire() for framed in self.framed_scores],
            "unasked_wordings": self.unasked_wordings,
            "warnings": [warning.model_dump() for warning in self.warnings],
        }


class Evaluation(Base):
    """One stored report, with the columns that lists and charts ask for."""

    __tablename__ = "evaluations"
    __table_args__ = (
        Index("ix_evaluations_version_id_created_at", "version_id", "created_at"),
        # Holds all that the distribution of scores is drawn from.
        Index("ix_evaluations_created_at_scores", "created_at", "gate", "harmful_score_percent"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: new_id("eval"))
    version_id: Mapped[str] = mapped_column(ForeignKey("model_versions.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    harmful_score_percent: Mapped[float]
    report: Mapped[dict[str, Any]]
    #: The policy version that decided on it, and what it decided; empty for measurements only.
    policy_version: Mapped[int | None]
    gate: Mapped[str | None]
    #: The project's cumulative risk that was decided with; empty for the provider's own models.
    tenant_risk: Mapped[float | None]
    #: The gate by the scores alone. It is this that counts for the risk: a model that only the risk held must not
    #: raise it, or whoever is above the line once would stay there.
    score_gate: Mapped[str | None]
    reasons: Mapped[list[Any]] = mapped_column(default=list)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    def parsed(self) -> EvaluationReport:
        """Read the stored report back into its type."""
        return EvaluationReport.model_validate(self.report)


#: In this order a version's evaluations speak for it. What the gate decided on comes before mere measurements: gate,
#: reasons, policy and numbers that are shown together must belong together, and a measurement may lack what the
#: decision had (FA, where the validation file is gone). A base is never decided on; its newest measurement speaks.
SPEAKING_FIRST = (
    Evaluation.gate.is_(None),
    Evaluation.created_at.desc(),
    Evaluation.id.desc(),
)


def latest_evaluation(
    session: Session, version_id: str, *, job_id: str | None = None
) -> Evaluation | None:
    """Give the newest evaluation that the gate decided on; without any, the newest measurement.

    What a job of kind `evaluate` measured on a decided version is read by that job, as a certificate is.

    Args:
        session: an open session.
        version_id: the model.
        job_id: only what this job measured; none: whoever did.
    """
    query = select(Evaluation).where(Evaluation.version_id == version_id)
    if job_id is not None:
        query = query.where(Evaluation.job_id == job_id)
    return session.scalar(query.order_by(*SPEAKING_FIRST).limit(1))
