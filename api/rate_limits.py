"""Requests a minute, of one key and of a whole project, counted in Redis.

A token bucket for each: it holds a minute's requests and fills up steadily, so a burst is served and what
follows it is slowed down. Redis may be lost at any time; then requests pass uncounted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from models.errors import TooManyRequests
from models.settings import Settings

log = structlog.get_logger(__name__)

# A Redis that is down must not make every request wait; after a failure it is left alone for a while.
TIMEOUT_SECONDS = 0.25
REST_SECONDS = 5.0
WARN_EVERY_SECONDS = 60.0

# KEYS: one bucket each. ARGV: its size, in requests. Takes one request from all of them, or from none.
# Gives of the emptiest bucket: size, left, milliseconds until it is full, milliseconds until it has one.
TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local buckets, wait = {}, 0
for i, name in ipairs(KEYS) do
  local size = tonumber(ARGV[i])
  local kept = redis.call('HMGET', name, 'left', 'at')
  local left, at = tonumber(kept[1]) or size, tonumber(kept[2]) or now
  left = math.min(size, left + math.max(0, now - at) * size / 60000)
  if left < 1 then
    wait = math.max(wait, math.ceil((1 - left) * 60000 / size))
  end
  buckets[i] = {size, left}
end
local emptiest = nil
for i, name in ipairs(KEYS) do
  local size, left = buckets[i][1], buckets[i][2]
  if wait == 0 then
    left = left - 1
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


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of the scarcer of the two limits."""

    limit: int
    remaining: int
    #: Until nothing of it is used any more.
    reset_milliseconds: int
    #: Until another request is served; 0 when this one is.
    wait_milliseconds: int

    def headers(self) -> dict[str, str]:
        """Say it as OpenAI does."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_milliseconds}ms",
        }


class RateLimitExceeded(TooManyRequests):
    """More requests were sent than the service answers in a minute."""

    code = "rate_limit_exceeded"

    def __init__(self, allowance: Allowance) -> None:
        """Say how many are answered, and when the next will be."""
        self._seconds = math.ceil(allowance.wait_milliseconds / 1000)
        super().__init__(
            f"More than {allowance.limit} requests were sent within a minute. "
            f"Try again in {self._seconds} seconds."
        )

    def headers(self) -> Mapping[str, str]:
        """Tell the client how long to wait; the stock client does."""
        return {"retry-after": str(self._seconds)}


class RateLimiter:
    """Counts requests in Redis."""

    def __init__(self, settings: Settings) -> None:
        """Prepare the address; nothing is connected yet."""
        self._per_key = settings.key_requests_per_minute
        self._per_project = settings.project_requests_per_minute
        self._redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            # By default a request would be tried again and again.
            retry=Retry(NoBackoff(), 0),
        )
        self._take = self._redis.register_script(TAKE)
        self._rests_until = self._warned_at = -math.inf

    def take(self, key_id: str, project_id: str) -> Allowance | None:
        """Count one request; None when nothing is limited, or Redis is down."""
        # The braces keep both buckets on one node of a cluster.
        limits = {
            f"titer:requests:{{{project_id}}}:{key_id}": self._per_key,
            f"titer:requests:{{{project_id}}}": self._per_project,
        }
        limits = {name: limit for name, limit in limits.items() if limit > 0}
        if not limits or time.monotonic() < self._rests_until:
            return None
        try:
            answer = self._take(keys=list(limits), args=list(limits.values()))
        except (RedisError, OSError) as error:
            self._rest(error)
            return None
        size, left, reset, wait = cast(list[int], answer)
        return Allowance(size, max(left, 0), reset, wait)

    def close(self) -> None:
        """Let the connections go."""
        self._redis.close()

    def _rest(self, error: Exception) -> None:
        now = time.monotonic()
        self._rests_until = now + REST_SECONDS
        if now - self._warned_at >= WARN_EVERY_SECONDS:
            self._warned_at = now
            log.warning("rate_limits_not_counted", kind=type(error).__name__)
