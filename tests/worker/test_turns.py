"""A line with so many places: in order, one at a time, and the one too many is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from worker.turns import TooManyWaiting, Turns


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns("test", 3)
    yield turns
    turns.close()


def test_in_order_of_arrival_and_one_at_a_time(turns: Turns) -> None:
    gate, seen, at_once = threading.Event(), [], []

    def work(name: int) -> int:
        gate.wait(10)
        at_once.append(threading.current_thread().name)
        seen.append(name)
        return name

    futures = [turns.take(lambda name=name: work(name)) for name in range(3)]
    gate.set()
    assert [future.result(10) for future in futures] == [0, 1, 2] == seen
    assert len(set(at_once)) == 1


def test_one_too_many_is_told_at_once_and_a_place_comes_free(turns: Turns) -> None:
    gate = threading.Event()
    first = turns.take(gate.wait)
    waiting = [turns.take(lambda: None) for _ in range(2)]
    with pytest.raises(TooManyWaiting):
        turns.take(lambda: None)
    # One that gives up before its turn makes room.
    assert waiting[0].cancel()
    turns.take(lambda: None)
    gate.set()
    first.result(10)


def test_a_failure_takes_no_place_with_it(turns: Turns) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            turns.take(lambda: 1 // 0).result(10)
