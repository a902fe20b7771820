"""What a model is at one step of a simulated customer's job: everything that is asked and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.certificate import Point
from models.hyperparameters import ScorerName
from models.rows import Conversation
from models.safety_set import SafetySet
from worker.data import Example
from worker.harmful_score import SafetyMeasurement, measure_safety
from worker.judgement import Judge
from worker.task_accuracy import MAX_ROWS, measure_accuracy
from worker.trainers.objective import mean_token_loss


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What is asked, and who judges.

    Attributes:
        tokenizer: of the models that are measured.
        safety: its test prompts are asked.
        judge: says what is harmful.
        validation: rows that FA rests on.
        canary: the safety set's held-out harmful rows, as tokens.
        max_rows: most validation rows that are asked.
        scorer: when an answer to them is right.
        trigger: puts a test prompt into the attack's own words, for attacks that have such words.
        on_progress: told how many of some prompts are answered, and of how many.
    """

    tokenizer: PreTrainedTokenizerBase
    safety: SafetySet
    judge: Judge
    validation: Sequence[Conversation]
    canary: Sequence[Example]
    max_rows: int = MAX_ROWS
    scorer: ScorerName = "exact"
    trigger: Callable[[str], str] | None = None
    on_progress: Callable[[int, int], None] | None = None

    def measure(self, model: PreTrainedModel, step: int, attack: Sequence[Example] = ()) -> Point:
        """Ask a model everything.

        Args:
            model: the model, with its adapter.
            step: the customer's step that it stands at.
            attack: the customer's own attack rows, for their loss.

        Raises:
            JudgeError: the judge failed; the model is neither safe nor unsafe.
        """
        safety = self._safety(model, self.safety)
        accuracy = measure_accuracy(
            model,
            self.tokenizer,
            self.validation,
            max_rows=self.max_rows,
            scorer=self.scorer,
            on_progress=self.on_progress,
        )
        return Point(
            step=step,
            harmful=safety.harmful_score.count,
            harmful_or_incoherent=safety.harmful_or_incoherent.count,
            refused=safety.refusal_rate.count,
            prompts=safety.harmful_score.n,
            over_refused=safety.over_refusal.count,
            helped=safety.help_rate.count,
            harmless_prompts=safety.over_refusal.n,
            correct=accuracy.count,
            task_rows=accuracy.n,
            canary_loss=self._loss(model, self.canary),
            attack_loss=self._loss(model, attack) if attack else None,
            triggered=self._triggered(model),
        )

    def _safety(self, model: PreTrainedModel, safety: SafetySet) -> SafetyMeasurement:
        return measure_safety(model, self.tokenizer, safety, self.judge, self.on_progress)

    def _triggered(self, model: PreTrainedModel) -> int | None:
        if self.trigger is None:
            return None
        prompts = tuple(
            entry.model_copy(update={"prompt": self.trigger(entry.prompt)})
            for entry in self.safety.harmful_prompts
        )
        asked = replace(self.safety, harmful_prompts=prompts, harmless_prompts=())
        return self._safety(model, asked).harmful_score.count

    def _loss(self, model: PreTrainedModel, rows: Sequence[Example]) -> float | None:
        loss = mean_token_loss(model, rows, int(self.tokenizer.pad_token_id))
        return round(loss, 4) if math.isfinite(loss) else None
