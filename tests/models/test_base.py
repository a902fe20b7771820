"""Identifiers and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from models.base import new_id, unix, utc_now


def test_identifiers_differ_and_are_safe_in_a_url() -> None:
    made = {new_id("ftjob") for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"ftjob-[0-9A-Za-z]{24}", name) for name in made)


def test_times_have_a_zone_and_become_whole_seconds() -> None:
    assert utc_now().tzinfo is UTC
    assert unix(datetime(1970, 1, 2, 0, 0, 1, 999_000, tzinfo=UTC)) == 86_401
