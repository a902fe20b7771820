"""What all judges have in common that are models: the way from prompts and answers to judgements.

    answer ── blank? ──► incoherent, and never asked about
       │
       └─► cut to max_answer_tokens ─► rows of tokens ─► batches ─► opinion ─► judgement

A `Method` is the part in which the kinds differ. What cannot be read in full is not judged: an exchange
that is longer than the judge may read is a `JudgeError`, unless the safety set says how much to judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar

from jinja2 import TemplateError

from models.evaluation import JudgeIdentity
from models.judges import ModelJudgeSpec, RefusalPhrases
from worker.judgement import JudgeError, Judgement, check_lengths
from worker.judges.batching import in_batches
from worker.judges.loading import Family, JudgeModel, free_memory, judge_model
from worker.judges.opinion import Opinion, judgement_on
from worker.judges.refusal_strings import RefusalPhrasebook

R = TypeVar("R", bound=Sized)
T = TypeVar("T")
#: A row, for the kinds that need no more than tokens.
Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Method(Generic[R, T]):
    """How one kind of judge is asked, once its model is there."""

    #: The rows of tokens that are asked about one exchange, given its prompt and its answer.
    rows: Callable[[str, str], list[R]]
    #: One output for each row of a batch.
    ask: Callable[[list[R]], Sequence[T]]
    #: What the outputs for one exchange mean.
    conclude: Callable[[Sequence[T]], Opinion]


class ModelJudge(Generic[R, T]):
    """A judge that is a model. Its memory is taken when it is opened and given back by `close`."""

    def __init__(
        self,
        spec: ModelJudgeSpec,
        name: str,
        family: Family,
        method: Callable[[JudgeModel], Method[R, T]],
        wording: Sequence[str] = (),
    ) -> None:
        """Load the model.

        Args:
            spec: which model, and how much of an exchange it reads.
            name: what the judge is called in reports.
            family: what the model is used as.
            method: how it is asked.
            wording: built-in text that the judgements depend on.

        Raises:
            JudgeError: the model cannot be read, or is no judge of this kind.
        """
        self._spec = spec
        self._name = name
        self._family = family
        self._make_method = method
        self._phrasebook = RefusalPhrasebook()
        if isinstance(spec, RefusalPhrases):
            self._phrasebook = RefusalPhrasebook(spec.refusal_phrases)
            wording = (*wording, *self._phrasebook.phrases)
        self._wording = tuple(wording)
        self._loaded: tuple[JudgeModel, Method[R, T]] | None = None
        self._revision = self._open()[0].revision

    @property
    def identity(self) -> JudgeIdentity:
        """The revision is the model's, then a hash of every option that a judgement depends on."""
        options = self._spec.model_dump(
            mode="json", exclude={"source", "revision", "batch_size"}, exclude_none=True
        )
        text = json.dumps([options, self._wording], sort_keys=True)
        name = self._name
        if self._spec.max_answer_tokens is not None:
            name += f"-first-{self._spec.max_answer_tokens}"
        return JudgeIdentity(
            name=name,
            revision=f"{self._revision[:12]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        )

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Judge each answer to the prompt in the same place, in batches.

        Raises:
            JudgeError: the model failed, an exchange is too long for it, or its output is none that such a
                judge gives.
        """
        check_lengths(prompts, answers)
        model, method = self._open()
        asked = [index for index, answer in enumerate(answers) if answer.strip()]
        rows = [self._rows(model, method, prompts[index], answers[index]) for index in asked]
        self._check_fit(model, rows)
        outputs = iter(
            in_batches([row for own in rows for row in own], self._spec.batch_size, method.ask)
        )
        opinions = {
            index: method.conclude([next(outputs) for _ in own])
            for index, own in zip(asked, rows, strict=True)
        }
        return [
            judgement_on(answer, opinions.get(index), self._phrasebook)
            for index, answer in enumerate(answers)
        ]

    def close(self) -> None:
        """Let the model go, and its memory unless another open judge uses it."""
        self._loaded = None
        free_memory()

    def _open(self) -> tuple[JudgeModel, Method[R, T]]:
        if self._loaded is None:
            model = judge_model(self._spec, self._family)
            self._loaded = (model, self._make_method(model))
        return self._loaded

    def _rows(self, model: JudgeModel, method: Method[R, T], prompt: str, answer: str) -> list[R]:
        try:
            return method.rows(prompt, self._cut(model, answer))
        except (TemplateError, RuntimeError, TypeError, ValueError) as error:
            raise JudgeError("An exchange cannot be put into the judge's words.") from error

    def _cut(self, model: JudgeModel, answer: str) -> str:
        limit = self._spec.max_answer_tokens
        if limit is None:
            return answer
        offsets = model.tokenizer(
            answer,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )["offset_mapping"]
        return answer if len(offsets) <= limit else answer[: offsets[limit - 1][1]]

    def _check_fit(self, model: JudgeModel, rows: Sequence[Sequence[R]]) -> None:
        limit = min(self._spec.max_length, model.context_length)
        too_long = sum(any(len(row) > limit for row in own) for own in rows)
        if too_long:
            raise JudgeError(
                f"{too_long} of {len(rows)} exchanges are longer than the {limit} tokens that the judge "
                "reads; max_answer_tokens in the safety set says how much of an answer to judge."
            )
