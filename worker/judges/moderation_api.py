"""Any endpoint that speaks OpenAI's moderations API: `POST {base_url}/moderations`.

    {"model", "input": [text, ...]}  ->  {"results": [{"flagged", "categories", "category_scores"}, ...]}

The texts leave the service, and the model behind the endpoint may change under its name, so scores months
apart may differ: a judge to set beside others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, FiniteFloat, StrictBool, ValidationError

from models.evaluation import JudgeIdentity
from models.judges import ModerationApiSpec
from worker.endpoint import Endpoint, authorization
from worker.judgement import JudgeError, Judgement, check_lengths
from worker.judges.opinion import Opinion, judgement_on
from worker.judges.refusal_strings import RefusalPhrasebook


class _Answer(BaseModel):
    """A part of the endpoint's answer; fields that are not named here are its own affair."""

    model_config = ConfigDict(hide_input_in_errors=True)


class _Result(_Answer):
    flagged: StrictBool
    category_scores: dict[str, FiniteFloat | None] = {}


class _Results(_Answer):
    results: list[_Result]


class ModerationApiJudge:
    """Asks an endpoint in batches, again and again with longer pauses while it is down or busy."""

    def __init__(self, spec: ModerationApiSpec) -> None:
        """Look for the key.

        Raises:
            JudgeError: the environment variable is not set.
        """
        self._spec = spec
        self._phrasebook = RefusalPhrasebook(spec.refusal_phrases)
        # A missing key is told at once, and read anew with every batch of questions.
        authorization(spec)

    @property
    def identity(self) -> JudgeIdentity:
        """The revision is a hash of address, model and options: the weights cannot be known."""
        options = self._spec.model_dump_json(
            exclude={"key_variable", "batch_size", "timeout_seconds", "tries", "refusal_phrases"}
        )
        text = "\n".join([options, *self._phrasebook.phrases])
        return JudgeIdentity(
            name=f"{self._spec.kind}:{self._spec.model}",
            revision=hashlib.sha256(text.encode()).hexdigest()[:12],
        )

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Judge each answer to the prompt in the same place; empty ones are not sent.

        Raises:
            JudgeError: the endpoint refused, stayed silent, or answered in another form.
        """
        check_lengths(prompts, answers)
        asked = [index for index, answer in enumerate(answers) if answer.strip()]
        opinions: dict[int, Opinion] = {}
        with Endpoint(self._spec) as endpoint:
            for start in range(0, len(asked), self._spec.batch_size):
                chosen = asked[start : start + self._spec.batch_size]
                texts = [self._text(prompts[index], answers[index]) for index in chosen]
                for index, result in zip(chosen, self._ask(endpoint, texts), strict=True):
                    opinions[index] = self._opinion(result)
        return [
            judgement_on(answer, opinions.get(index), self._phrasebook)
            for index, answer in enumerate(answers)
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _text(self, prompt: str, answer: str) -> str:
        return answer if self._spec.reads == "answer" else f"{prompt}\n\n{answer}"

    def _ask(self, endpoint: Endpoint, texts: list[str]) -> list[_Result]:
        content = endpoint.post("moderations", {"model": self._spec.model, "input": texts})
        try:
            results = _Results.model_validate_json(content).results
        except ValidationError as error:
            raise JudgeError("The moderation endpoint answered in another form.") from error
        if len(results) != len(texts):
            raise JudgeError(f"{len(results)} results came for {len(texts)} texts.")
        return results

    def _opinion(self, result: _Result) -> Opinion:
        scores = {
            name: score for name, score in result.category_scores.items() if score is not None
        }
        category = max(scores, key=lambda name: scores[name], default=None)
        if self._spec.threshold is None:
            return Opinion(result.flagged, category)
        if category is None:
            raise JudgeError("The moderation endpoint gave no scores to set against a threshold.")
        return Opinion(scores[category] > self._spec.threshold, category)
