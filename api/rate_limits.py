"""Requests a minute, and tokens of inference a minute, of one key and of a whole project, counted in Redis.

A bucket for each: it holds what a minute allows and fills up steadily, so a burst is served and what follows it is
slowed down. How many tokens a request takes is estimated before it is served and corrected afterwards, for
which a bucket may be overdrawn. Redis may be lost at any time; then requests pass uncounted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from api.metrics.counts import RATE_LIMITED, UNCOUNTED
from models.errors import TooManyRequests
from models.settings import Settings

log = structlog.get_logger(__name__)

# A Redis that is down must not make every request wait; after a failure it is left alone for a while.
TIMEOUT_SECONDS = 0.25
REST_SECONDS = 5.0
WARN_EVERY_SECONDS = 60.0

# KEYS: one bucket each. ARGV: how much to take, then each bucket's size. Takes it from all of them, or from none.
# Gives of the emptiest bucket: size, left, milliseconds until it is full, milliseconds until it has so much.
TAKE = """
local amount = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local buckets, wait = {}, 0
for i, name in ipairs(KEYS) do
  local size = tonumber(ARGV[i + 1])
  local kept = redis.call('HMGET', name, 'left', 'at')
  local left, at = tonumber(kept[1]) or size, tonumber(kept[2]) or now
  left = math.min(size, left + math.max(0, now - at) * size / 60000)
  if left < amount then
    wait = math.max(wait, math.ceil((amount - left) * 60000 / size))
  end
  buckets[i] = {size, left}
end
local emptiest = nil
for i, name in ipairs(KEYS) do
  local size, left = buckets[i][1], buckets[i][2]
  if wait == 0 then
    left = left - amount
  end
  redis.call('HSET', name, 'left', left, 'at', now)
  redis.call('PEXPIRE', name, 120000)
  if emptiest == nil or left < emptiest[2] then
    emptiest = {size, left}
  end
end
local size, left = emptiest[1], emptiest[2]
return {size, math.floor(left), math.ceil((size - left) * 60000 / size), wait}
"""
# ARGV: how much to put back into each of the buckets; a negative amount takes more out, if need be below nothing.
# One that has not been taken from for two minutes is full, and stays so.
PUT_BACK = """
for _, name in ipairs(KEYS) do
  if redis.call('EXISTS', name) == 1 then
    redis.call('HINCRBYFLOAT', name, 'left', ARGV[1])
  end
end
"""
Unit = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of the scarcer of the two limits."""

    unit: Unit
    limit: int
    remaining: int
    #: Until nothing of it is used any more.
    reset_milliseconds: int
    #: Until this request can be served; 0 when it is.
    wait_milliseconds: int

    def headers(self) -> dict[str, str]:
        """Say it as OpenAI does."""
        return {
            f"x-ratelimit-limit-{self.unit}": str(self.limit),
            f"x-ratelimit-remaining-{self.unit}": str(self.remaining),
            f"x-ratelimit-reset-{self.unit}": f"{self.reset_milliseconds}ms",
        }


class RateLimitExceeded(TooManyRequests):
    """More requests were sent, or tokens asked for, than the service answers in a minute."""

    code = "rate_limit_exceeded"

    def __init__(self, allowance: Allowance) -> None:
        """Say how many are answered, and when the next will be."""
        self._seconds = math.ceil(allowance.wait_milliseconds / 1000)
        verb = "sent" if allowance.unit == "requests" else "asked for"
        super().__init__(
            f"More than {allowance.limit} {allowance.unit} were {verb} within a minute. "
            f"Try again in {self._seconds} seconds."
        )

    def headers(self) -> Mapping[str, str]:
        """Tell the client how long to wait; the stock client does."""
        return {"retry-after": str(self._seconds)}


class RequestTooLarge(TooManyRequests):
    """The request needs more tokens than the service answers in a minute."""

    code = "rate_limit_exceeded"

    def __init__(self, asked: int, limit: int) -> None:
        """Say how many tokens it needs, and how many there are."""
        super().__init__(
            f"The request needs about {asked} tokens, and at most {limit} are answered in a minute. "
            "Send a shorter prompt or a smaller max_tokens."
        )

    def headers(self) -> Mapping[str, str]:
        """Keep the stock client from sending it again."""
        return {"x-should-retry": "false"}


class RateLimiter:
    """Counts requests and tokens in Redis."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the address; nothing is connected yet."""
        self._limits: Mapping[Unit, tuple[int, int]] = {
            "requests": (settings.key_requests_per_minute, settings.project_requests_per_minute),
            "tokens": (settings.key_tokens_per_minute, settings.project_tokens_per_minute),
        }
        self._redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            # By default a request would be tried again and again.
            retry=Retry(NoBackoff(), 0),
        )
        self._take = self._redis.register_script(TAKE)
        self._put_back = self._redis.register_script(PUT_BACK)
        self._rests_until = self._warned_at = -math.inf

    def take(
        self, key_id: str, project_id: str, unit: Unit = "requests", amount: int = 1
    ) -> Allowance | None:
        """Count one request, or some tokens; None when nothing is limited, or Redis is down.

        Raises:
            RequestTooLarge: so many are more than a minute's.
        """
        limits = self._buckets(key_id, project_id, unit)
        if not limits:
            return None
        if time.monotonic() < self._rests_until:
            UNCOUNTED.labels(unit).inc()
            return None
        if amount > min(limits.values()):
            raise RequestTooLarge(amount, min(limits.values()))
        try:
            answer = self._take(keys=list(limits), args=[amount, *limits.values()])
        except (RedisError, OSError) as error:
            self._rest(error)
            UNCOUNTED.labels(unit).inc()
            return None
        size, left, reset, wait = cast(list[int], answer)
        if wait > 0:
            RATE_LIMITED.labels(unit).inc()
        return Allowance(unit, size, max(left, 0), reset, wait)

    def put_back(self, key_id: str, project_id: str, tokens: int) -> None:
        """Correct an estimate: give back what was not needed, or (below 0) take what was needed besides."""
        limits = self._buckets(key_id, project_id, "tokens")
        if not limits or not tokens or time.monotonic() < self._rests_until:
            return
        try:
            self._put_back(keys=list(limits), args=[tokens])
        except (RedisError, OSError) as error:
            self._rest(error)

    def _buckets(self, key_id: str, project_id: str, unit: Unit) -> dict[str, int]:
        # The braces keep both buckets on one node of a cluster.
        project = f"titer:{unit}:{{{project_id}}}"
        per_key, per_project = self._limits[unit]
        limits = {f"{project}:{key_id}": per_key, project: per_project}
        return {name: limit for name, limit in limits.items() if limit > 0}

    def close(self) -> None:
        """Let the connections go."""
        self._redis.close()

    def _rest(self, error: Exception) -> None:
        now = time.monotonic()
        self._rests_until = now + REST_SECONDS
        if now - self._warned_at >= WARN_EVERY_SECONDS:
            self._warned_at = now
            log.warning("rate_limits_not_counted", kind=type(error).__name__)
