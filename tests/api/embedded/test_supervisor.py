"""Parts that die are started again; a part that keeps dying ends the whole, with its name and its log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from api.embedded import supervisor as module
from api.embedded.process import EmbeddedError
from api.embedded.supervisor import Supervisor


class FakePart:
    """A part whose life the test decides."""

    def __init__(self, name: str, log: Path, journal: list[str]) -> None:
        self.name = name
        self.log = log
        self.is_alive = False
        self.dies_at_once = False
        self.refuses = False
        self._journal = journal

    def start(self) -> str:
        self._journal.append(f"start {self.name}")
        if self.refuses:
            raise EmbeddedError(f"{self.name} refuses")
        self.is_alive = not self.dies_at_once
        return f"address of {self.name}"

    def is_running(self) -> bool:
        return self.is_alive

    def stop(self) -> None:
        self.is_alive = False
        self._journal.append(f"stop {self.name}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEND_SECONDS", 0.005)
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.005)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def test_parts_stop_in_the_reverse_of_their_starting_order(tmp_path: Path) -> None:
    journal: list[str] = []
    supervisor = Supervisor()
    for name in ("database", "api"):
        given = supervisor.start(FakePart(name, tmp_path / name, journal))
        assert given == f"address of {name}"
    supervisor.stop()
    supervisor.stop()
    assert journal == ["start database", "start api", "stop api", "stop database"]


def test_a_part_that_died_is_started_again_and_told(tmp_path: Path) -> None:
    journal: list[str] = []
    told: list[str] = []
    part = FakePart("worker", tmp_path / "worker.log", journal)
    supervisor = Supervisor(notify=told.append)
    supervisor.start(part)
    supervisor.tend()
    part.is_alive = False
    wait_for(lambda: part.is_alive)
    supervisor.stop()
    assert journal == ["start worker", "start worker", "stop worker"]
    assert "worker ended by itself" in told[0]
    assert not supervisor.failed.is_set()


@pytest.mark.parametrize("attribute", ["dies_at_once", "refuses"])
def test_five_quick_deaths_are_the_end(tmp_path: Path, attribute: str) -> None:
    journal: list[str] = []
    part = FakePart("worker", tmp_path / "worker.log", journal)
    part.log.write_text("out of memory\n")
    supervisor = Supervisor()
    supervisor.start(part)
    setattr(part, attribute, True)
    part.is_alive = False
    supervisor.tend()
    assert supervisor.failed.wait(5)
    assert journal.count("start worker") == 5
    assert supervisor.failure is not None
    assert "worker" in supervisor.failure
    assert "out of memory" in supervisor.failure
    supervisor.stop()


def test_a_death_after_a_long_life_counts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUICK_SECONDS", 0.0)
    journal: list[str] = []
    part = FakePart("worker", tmp_path / "worker.log", journal)
    supervisor = Supervisor()
    supervisor.start(part)
    part.dies_at_once = True
    part.is_alive = False
    supervisor.tend()
    wait_for(lambda: len(journal) > 8)
    assert not supervisor.failed.is_set()
    supervisor.stop()


def test_check_names_a_part_that_died_during_the_start(tmp_path: Path) -> None:
    part = FakePart("api", tmp_path / "api.log", [])
    part.log.write_text("no such module\n")
    supervisor = Supervisor()
    supervisor.start(part)
    supervisor.check()
    part.is_alive = False
    with pytest.raises(EmbeddedError, match=r"(?s)api ended by itself.*no such module"):
        supervisor.check()


def test_an_interrupted_start_is_stopped_too(tmp_path: Path) -> None:
    journal: list[str] = []
    part = FakePart("api", tmp_path / "api.log", journal)
    part.refuses = True
    supervisor = Supervisor()
    with pytest.raises(EmbeddedError):
        supervisor.start(part)
    supervisor.stop()
    assert journal == ["start api", "stop api"]
