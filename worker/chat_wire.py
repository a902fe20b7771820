"""The chat completion as it travels between the api and the built-in server: OpenAI's objects, in and out."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from models.errors import DomainError
from models.rows import Message
from worker.completion import Asked, Event, Finished, Said
from worker.decoding import Sampling
from worker.transcript import UNFINISHED, Weighed


class ChatMessage(BaseModel):
    """One turn, as the api passes it on."""

    role: Literal["system", "user", "assistant"]
    content: str


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The part of OpenAI's request that the built-in server carries out; the api checks the rest."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    # Greedy unless asked otherwise, as in every evaluation: the served model is the measured one.
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=8)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: list[str] | str | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    stream: bool = False
    stream_options: StreamOptions | None = None

    def asked(self) -> Asked:
        """Give what the model is asked for, free of the wire's spellings."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Asked(
            messages=tuple(Message(m.role, m.content) for m in self.messages),
            sampling=Sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=tuple(self.logit_bias.items()),
            ),
            choices=self.n,
            max_new_tokens=self.max_completion_tokens or self.max_tokens,
            stop=tuple(word for word in stop if word),
            top_logprobs=self.top_logprobs if self.logprobs else None,
        )


class Shown:
    """The response to one request, whole or in chunks."""

    def __init__(self, request: ChatRequest) -> None:
        """Give the response its id and its time."""
        self._id = "chatcmpl-" + secrets.token_hex(12)
        self._created = int(time.time())
        self._request = request

    def whole(self, events: Sequence[Event]) -> dict[str, object]:
        """Make the response from all that was told."""
        finished = next(event for event in events if isinstance(event, Finished))
        pieces = [
            [e.piece for e in events if isinstance(e, Said) and e.choice == choice]
            for choice in range(self._request.n)
        ]
        choices = [
            {
                "index": choice,
                "message": {
                    "role": "assistant",
                    "content": "".join(piece.text for piece in pieces[choice]),
                    "refusal": None,
                },
                "finish_reason": reason,
                "logprobs": self._logprobs([t for piece in pieces[choice] for t in piece.tokens]),
            }
            for choice, reason in enumerate(finished.reasons)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": _usage(finished)}

    def openings(self) -> Iterator[dict[str, object]]:
        """Give the chunk that each choice begins with."""
        for choice in range(self._request.n):
            yield self._chunk(choice, {"role": "assistant", "content": ""})

    def chunks(self, event: Event) -> Iterator[dict[str, object]]:
        """Give the chunks that an event is told by."""
        if isinstance(event, Said):
            yield self._chunk(event.choice, {"content": event.piece.text}, event.piece.tokens)
        if isinstance(event, Finished):
            for choice, reason in enumerate(event.reasons):
                yield self._chunk(choice, {}, finish_reason=reason)
            options = self._request.stream_options
            if options is not None and options.include_usage:
                head = self._head("chat.completion.chunk")
                yield {**head, "choices": [], "usage": _usage(event)}

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
        }

    def _chunk(
        self,
        choice: int,
        delta: dict[str, str],
        tokens: Sequence[Weighed] = (),
        finish_reason: str | None = None,
    ) -> dict[str, object]:
        shown = {
            "index": choice,
            "delta": delta,
            "finish_reason": finish_reason,
            "logprobs": self._logprobs(tokens) if tokens else None,
        }
        return {**self._head("chat.completion.chunk"), "choices": [shown]}

    def _logprobs(self, tokens: Sequence[Weighed]) -> dict[str, object] | None:
        if not self._request.logprobs:
            return None
        content = [
            {
                **_weight(weighed.token, weighed.logprob),
                "top_logprobs": [_weight(*rival) for rival in weighed.top],
            }
            for weighed in tokens
        ]
        return {"content": content, "refusal": None}


def server_sent(value: object) -> str:
    """Make a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def envelope(error: DomainError) -> dict[str, object]:
    """Make what stands under `error`."""
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


def _usage(finished: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.new_tokens,
        "total_tokens": finished.prompt_tokens + finished.new_tokens,
    }


def _weight(token: str, logprob: float) -> dict[str, object]:
    # A token may be a part of a character; its bytes cannot be told from its text then.
    bytes_ = None if UNFINISHED in token else list(token.encode())
    # JSON has no infinity, which a token that is impossible to the model has.
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": bytes_}
