"""Tokens a minute: what a request is expected to take is taken before it is served, and corrected afterwards.

The tokenizer is the inference server's; here a token is four characters of the prompt, as OpenAI reckons. What
is not known afterwards (a stream without its count of tokens, an answer that nobody waited for) stays as estimated.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType

from anyio.to_thread import run_sync
from fastapi import Request

from api.answer_headers import add_headers
from api.deps import Caller
from api.rate_limits import RateLimiter, RateLimitExceeded
from models.errors import Unavailable

CHARACTERS_PER_TOKEN = 4
PREFIX = b"data: "


def estimate(prompts: Iterable[str], *, answers: int, max_tokens: int) -> int:
    """Reckon the tokens of prompts and of as many whole answers."""
    characters = sum(map(len, prompts))
    return math.ceil(characters / CHARACTERS_PER_TOKEN) + answers * max_tokens


def total(answer: Mapping[str, object]) -> int | None:
    """Read how many tokens an answer, or a chunk of one, says that it took."""
    usage = answer.get("usage")
    count = usage.get("total_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count >= 0 else None


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that were taken for a request which is not answered yet."""

    #: None: nothing was taken, for there is no limit or no Redis.
    limiter: RateLimiter | None
    key_id: str
    project_id: str
    tokens: int

    async def __aenter__(self) -> None:
        """Ask the inference server in this block; where it does not answer, nothing was used."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give everything back if the server was away."""
        if isinstance(error, Unavailable):
            await self.settle(0)

    async def settle(self, used: int | None) -> None:
        """Correct the estimate by what was used; None: it is not known."""
        if used is not None and self.limiter is not None:
            await run_sync(self.limiter.put_back, self.key_id, self.project_id, self.tokens - used)


def reserve(request: Request, caller: Caller, tokens: int) -> Reservation:
    """Take so many tokens, and tell on the answer what is left.

    Raises:
        RateLimitExceeded: there are not so many left at the moment.
        RequestTooLarge: there never are.
    """
    limiter: RateLimiter = request.app.state.rate_limiter
    allowance = limiter.take(caller.key.id, caller.project.id, "tokens", tokens)
    if allowance is not None:
        add_headers(request, allowance.headers())
        if allowance.wait_milliseconds > 0:
            raise RateLimitExceeded(allowance)
    return Reservation(limiter if allowance else None, caller.key.id, caller.project.id, tokens)


async def metered(blocks: AsyncIterator[bytes], reservation: Reservation) -> AsyncIterator[bytes]:
    """Pass a stream through, and settle by the count of tokens in it, if there is one."""
    used: int | None = None
    async for block in blocks:
        if b'"usage"' in block:
            used = _used(block) or used
        yield block
    await reservation.settle(used)


def _used(block: bytes) -> int | None:
    for line in block.splitlines():
        if line.startswith(PREFIX) and b'"usage"' in line:
            try:
                chunk = json.loads(line.removeprefix(PREFIX))
            except ValueError:
                continue
            if isinstance(chunk, dict) and (used := total(chunk)) is not None:
                return used
    return None
