"""How numbers and times read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from api.dashboard.wording import NOTHING, ago, duration, moment, number, short, size, words

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, NOTHING),
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3_599, "59 min 59 s"),
        (3_660, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (-3, "0 s"),
    ],
)
def test_duration(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "just now"),
        (-90, "2 min ago"),
        (-7_200, "2 h ago"),
        (-200_000, "2 d ago"),
        (10, "in a moment"),
        (60, "in 1 min"),
        (259_200, "in 3 d"),
    ],
)
def test_ago(seconds: float, shown: str) -> None:
    with time_machine.travel(NOW, tick=False):
        assert ago(NOW + timedelta(seconds=seconds)) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0002, "0.0002"),
        (1500, "1,500"),
        (True, "yes"),
        (None, NOTHING),
        ("sft", "sft"),
        (16.0, "16"),
    ],
)
def test_number(value: object, shown: str) -> None:
    assert number(value) == shown


def test_words() -> None:
    assert words("validating_files") == "Validating files"


def test_moment_names_its_zone() -> None:
    assert moment(NOW) == "2026-11-23 12:00:00 UTC"


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (9_999, "9,999"), (18_400, "18.4 k"), (2_310_000, "2.31 M"), (7e9, "7 G")],
)
def test_short(count: float, shown: str) -> None:
    assert short(count) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (12_400_000, "12.4 MB"), (5e15, "5,000 TB")],
)
def test_size(count: float, shown: str) -> None:
    assert size(count) == shown
