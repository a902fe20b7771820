"""Any endpoint that speaks OpenAI's moderations API: `POST {base_url}/moderations`.

    {"model", "input": [text, ...]}  ->  {"results": [{"flagged", "categories", "category_scores"}, ...]}

The texts leave the service, and the model behind the endpoint may change under its name, so scores months
apart may differ: a judge to set beside others. The key is read from the environment variable that the
safety set names; neither it nor any text stands in an error.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence

import httpx
from pydantic import BaseModel, ConfigDict, FiniteFloat, StrictBool, ValidationError

from models.evaluation import JudgeIdentity
from models.judges import ModerationApiSpec
from worker.judgement import JudgeError, Judgement, check_lengths
from worker.judges.opinion import Opinion, judgement_on
from worker.judges.refusal_strings import RefusalPhrasebook

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MAX_RESPONSE_BYTES = 4 * 1024 * 1024


class _Answer(BaseModel):
    """A part of the endpoint's answer; fields that are not named here are its own affair."""

    model_config = ConfigDict(hide_input_in_errors=True)


class _Result(_Answer):
    flagged: StrictBool
    category_scores: dict[str, FiniteFloat | None] = {}


class _Results(_Answer):
    results: list[_Result]


class _TryAgain(Exception):
    """The request may succeed later."""

    def __init__(self, wait_seconds: float = 0.0) -> None:
        self.wait_seconds = wait_seconds
        super().__init__()


class ModerationApiJudge:
    """Asks an endpoint in batches, again and again with longer pauses while it is down or busy."""

    def __init__(self, spec: ModerationApiSpec) -> None:
        """Look for the key.

        Raises:
            JudgeError: the environment variable is not set.
        """
        self._spec = spec
        self._phrasebook = RefusalPhrasebook(spec.refusal_phrases)
        self._headers()

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
        with httpx.Client(headers=self._headers(), timeout=self._spec.timeout_seconds) as client:
            for start in range(0, len(asked), self._spec.batch_size):
                chosen = asked[start : start + self._spec.batch_size]
                texts = [self._text(prompts[index], answers[index]) for index in chosen]
                for index, result in zip(chosen, self._ask(client, texts), strict=True):
                    opinions[index] = self._opinion(result)
        return [
            judgement_on(answer, opinions.get(index), self._phrasebook)
            for index, answer in enumerate(answers)
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _headers(self) -> dict[str, str]:
        name = self._spec.key_variable
        if name is None:
            return {}
        key = os.environ.get(name)
        if not key:
            raise JudgeError(f"The environment variable {name} is not set.")
        return {"Authorization": f"Bearer {key}"}

    def _text(self, prompt: str, answer: str) -> str:
        return answer if self._spec.reads == "answer" else f"{prompt}\n\n{answer}"

    def _ask(self, client: httpx.Client, texts: list[str]) -> list[_Result]:
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, self._spec.tries + 1):
            try:
                return self._try(client, texts)
            except _TryAgain as again:
                if attempt < self._spec.tries:
                    time.sleep(min(max(pause, again.wait_seconds), LONGEST_PAUSE_SECONDS))
                    pause *= 2
        raise JudgeError(
            f"The moderation endpoint was down or busy at each of {self._spec.tries} tries."
        )

    def _try(self, client: httpx.Client, texts: list[str]) -> list[_Result]:
        request = {"model": self._spec.model, "input": texts}
        try:
            with client.stream(
                "POST", f"{self._spec.base_url}/moderations", json=request
            ) as response:
                if response.status_code == 429 or response.status_code >= 500:
                    raise _TryAgain(_seconds(response.headers.get("retry-after", "")))
                if response.status_code != 200:
                    raise JudgeError(f"The moderation endpoint answered {response.status_code}.")
                content = self._read(response)
        except httpx.RequestError:
            # Not as a cause: a complaint about a header would quote the key.
            raise _TryAgain from None
        try:
            results = _Results.model_validate_json(content).results
        except ValidationError as error:
            raise JudgeError("The moderation endpoint answered in another form.") from error
        if len(results) != len(texts):
            raise JudgeError(f"{len(results)} results came for {len(texts)} texts.")
        return results

    def _read(self, response: httpx.Response) -> bytes:
        deadline = time.monotonic() + self._spec.timeout_seconds
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MAX_RESPONSE_BYTES:
                raise JudgeError("The moderation endpoint's answer is too large.")
            if time.monotonic() > deadline:
                raise _TryAgain
        return bytes(content)

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


def _seconds(header: str) -> float:
    """Read `Retry-After` in seconds; its other form, a date, counts as none."""
    return float(header) if header.isdecimal() else 0.0
