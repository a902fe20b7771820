"""Completions out of chat completions: one chat for each prompt, one after another, shown in the old form.

A prompt becomes a user's turn and passes through the model's chat template, as the rows
{"prompt", "completion"} do in training and every prompt does in evaluation. So there is no way around the
template that the model's safety was measured with, and a model tuned on such rows is asked as it was trained.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from itertools import accumulate
from typing import Annotated, Any

import httpx
import structlog
from pydantic import BaseModel, Field, ValidationError

from api.completions.schemas import CompletionRequest
from api.inference import service
from api.inference.metering import Reservation
from api.inference.service import Answer, ServingUnavailable

log = structlog.get_logger(__name__)

PREFIX = b"data: "


class _Weight(BaseModel):
    token: str
    logprob: float


class _Weighed(_Weight):
    top_logprobs: list[_Weight] = []


class _Logprobs(BaseModel):
    content: list[_Weighed] | None = None


class _Text(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    index: int
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    # A whole answer has the one, a chunk the other.
    message: _Text = _Text()
    delta: _Text = _Text()


class _Chat(BaseModel):
    """What is read of a chat completion, or of a chunk of one."""

    choices: list[_Choice]
    usage: dict[str, Annotated[int, Field(ge=0)] | object] | None = None


class Completion:
    """One request on its way: what has been shown and counted of it so far."""

    def __init__(self, asked: CompletionRequest) -> None:
        """Give the response its id and its time."""
        self.asked = asked
        self._id = "cmpl-" + secrets.token_hex(12)
        self._created = int(time.time())
        self._usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        #: How many characters of each choice's tokens have been shown.
        self._offsets: defaultdict[int, int] = defaultdict(int)

    @property
    def tokens(self) -> int | None:
        """How many tokens were counted so far; None where the inference server counts none."""
        return self._usage["total_tokens"] or None

    def body(self, prompt: int) -> dict[str, object]:
        """Give the chat request for a prompt, by its place."""
        return self.asked.to_serving(self.asked.prompts[prompt])

    def choices(self, prompt: int, chat: _Chat) -> list[dict[str, object]]:
        """Show the choices of an answer to a prompt, or of a chunk of it, and count its tokens."""
        for name in self._usage:
            count = (chat.usage or {}).get(name)
            self._usage[name] += count if isinstance(count, int) else 0
        return [self._choice(prompt, choice) for choice in chat.choices]

    def show(self, choices: list[dict[str, object]], *, usage: bool) -> dict[str, object]:
        """Make the response, or a chunk of it."""
        shown = {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self.asked.model,
            "choices": choices,
        }
        return {**shown, "usage": self._usage} if usage else shown

    def echoes(self, prompt: int) -> list[dict[str, object]]:
        """Show the prompt as the beginning of each of its choices."""
        first = prompt * self.asked.choices
        text = self.asked.prompts[prompt]
        return [
            {"index": first + i, "text": text, "finish_reason": None, "logprobs": None}
            for i in range(self.asked.choices)
        ]

    def _choice(self, prompt: int, choice: _Choice) -> dict[str, object]:
        index = prompt * self.asked.choices + choice.index
        tokens = (choice.logprobs and choice.logprobs.content) or []
        return {
            "index": index,
            "text": choice.message.content or choice.delta.content or "",
            "finish_reason": choice.finish_reason,
            "logprobs": self._logprobs(index, tokens),
        }

    def _logprobs(self, index: int, tokens: list[_Weighed]) -> dict[str, object] | None:
        if self.asked.logprobs is None:
            return None
        starts = list(accumulate((len(t.token) for t in tokens), initial=self._offsets[index]))
        self._offsets[index] = starts[-1]
        tops = [{top.token: top.logprob for top in token.top_logprobs} for token in tokens]
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": tops if self.asked.logprobs else None,
            "text_offset": starts[:-1],
        }


async def whole(client: httpx.AsyncClient, completion: Completion) -> Answer:
    """Answer every prompt; the first that is refused ends it.

    Raises:
        ServingUnavailable: the inference server does not answer, or not in its form.
    """
    choices: list[dict[str, object]] = []
    for prompt in range(len(completion.asked.prompts)):
        response = await service.ask(client, completion.body(prompt))
        answer = await service.whole(response)
        if answer.status != 200:
            return answer
        found = completion.choices(prompt, _read(answer.body))
        if completion.asked.echo:
            for choice in found:
                choice["text"] = completion.asked.prompts[prompt] + str(choice["text"])
        choices += found
    return Answer(200, completion.show(choices, usage=True))


async def stream(
    client: httpx.AsyncClient,
    completion: Completion,
    first: httpx.Response,
    reservation: Reservation,
) -> AsyncIterator[bytes]:
    """Stream every prompt's answer after the other's. What breaks off or is refused ends in an error.

    Args:
        client: reaches the inference server.
        completion: the request.
        first: the response to the first prompt, which has begun well.
        reservation: what was taken for all prompts; settled when they are answered.
    """
    response = first
    try:
        for prompt in range(len(completion.asked.prompts)):
            if prompt:
                response = await service.ask(client, completion.body(prompt))
            if response.status_code != 200:
                answer = await service.whole(response)
                yield service.server_sent(answer.body)
                return
            if completion.asked.echo:
                yield service.server_sent(completion.show(completion.echoes(prompt), usage=False))
            async for event in _events(response):
                if "error" in event:
                    yield service.server_sent(service.told(event["error"]))
                    return
                choices = completion.choices(prompt, _read(event))
                shown = [choice for choice in choices if _says_something(choice)]
                if shown:
                    yield service.server_sent(completion.show(shown, usage=False))
        if completion.asked.wants_usage:
            yield service.server_sent(completion.show([], usage=True))
        await reservation.settle(completion.tokens)
        yield service.DONE + b"\n\n"
    except (httpx.HTTPError, ServingUnavailable) as error:
        log.warning("serving_broke_off", kind=type(error).__name__)
        yield service.broke_off()
    finally:
        await response.aclose()


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Give the events of a stream; one that ends without its last word is broken."""
    async for block in service.blocks(response):
        for line in block.splitlines():
            if line.strip() == service.DONE:
                return
            if line.startswith(PREFIX):
                yield _object(line.removeprefix(PREFIX))
    raise ServingUnavailable


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ServingUnavailable from error
    if not isinstance(value, dict):
        raise ServingUnavailable
    return value


def _read(body: Mapping[str, object]) -> _Chat:
    try:
        return _Chat.model_validate(body)
    except ValidationError as error:
        raise ServingUnavailable from error


def _says_something(choice: Mapping[str, object]) -> bool:
    logprobs = choice["logprobs"]
    has_tokens = isinstance(logprobs, dict) and bool(logprobs["tokens"])
    return bool(choice["text"]) or choice["finish_reason"] is not None or has_tokens
