"""Children end with us, however we end, and nobody else is ever ended in their place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from api.embedded.process import (
    ChildProcess,
    Command,
    EmbeddedError,
    end_leftovers,
    program_of,
    started_at,
    tail,
)

SLEEP = (sys.executable, "-I", "-S", "-c", "import time; print('up', flush=True); time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-I",
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print('up', flush=True); time.sleep(60)",
)
# Starts a child and prints its number, then sleeps: the process that the tests kill.
PARENT = """
import sys, time
from pathlib import Path
from api.embedded.process import ChildProcess, Command
child = ChildProcess(Command("sleeper", ("sleep", "60")), Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def started_child(command: Command, state: Path) -> ChildProcess:
    child = ChildProcess(command, state)
    child.start()
    wait_for(lambda: "up" in tail(child.log))
    return child


def test_stop_ends_the_child_and_forgets_it(tmp_path: Path) -> None:
    child = started_child(Command("one", SLEEP), tmp_path)
    pid = child.pid
    assert pid is not None
    child.stop()
    child.stop()
    assert started_at(pid) is None
    assert not list((tmp_path / "run").iterdir())


def test_a_child_that_ignores_the_signal_is_ended_by_force(tmp_path: Path) -> None:
    child = started_child(Command("deaf", STUBBORN, stop_seconds=0.2), tmp_path)
    pid = child.pid
    assert pid is not None
    child.stop()
    assert started_at(pid) is None


def test_children_of_a_child_are_ended_with_it(tmp_path: Path) -> None:
    script = "sleep 60 & echo $! up; wait"
    child = started_child(Command("shell", ("/bin/sh", "-c", script)), tmp_path)
    grandchild = int(tail(child.log).split()[0])
    child.stop()
    wait_for(lambda: started_at(grandchild) is None)


def test_a_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert started_at(pid) is not None
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: started_at(pid) is None)


def test_the_next_start_ends_what_a_killed_run_left(tmp_path: Path) -> None:
    forgotten = started_child(Command("one", SLEEP), tmp_path)
    record = (tmp_path / "run" / "one.json").read_text()
    pid = forgotten.pid
    assert pid is not None
    assert json.loads(record)["pid"] == pid
    try:
        # Our child stays a zombie until it is waited for, and a zombie counts as gone.
        assert end_leftovers(tmp_path) == ["one"]
        assert started_at(pid) is None
        assert end_leftovers(tmp_path) == []
    finally:
        forgotten.stop()


def test_a_stranger_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (tmp_path / "run").mkdir()
        record = {"pid": stranger.pid, "started": "another", "stop_signal": 9, "stop_seconds": 1}
        (tmp_path / "run" / "one.json").write_text(json.dumps(record))
        assert end_leftovers(tmp_path) == []
        assert stranger.poll() is None
        assert not list((tmp_path / "run").iterdir())
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"pid": "x"}'])
def test_an_unreadable_record_is_forgotten(tmp_path: Path, record: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "one.json").write_text(record)
    assert end_leftovers(tmp_path) == []
    assert not list((tmp_path / "run").iterdir())


def test_a_program_that_is_not_there_ends_at_once_and_says_so(tmp_path: Path) -> None:
    child = ChildProcess(Command("absent", ("/nowhere/at all",)), tmp_path)
    child.start()
    wait_for(lambda: not child.is_running())
    assert child.exit_code() != 0
    assert "FileNotFoundError" in tail(child.log)
    child.stop()


def test_started_at_tells_lives_apart() -> None:
    assert started_at(os.getpid()) == started_at(os.getpid())
    time.sleep(0.05)  # longer than the clock tick in which starts are told
    other = subprocess.Popen(["sleep", "60"])
    assert started_at(other.pid) != started_at(os.getpid())
    other.kill()
    other.wait()
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert started_at(dead.pid) is None
    assert program_of(dead.pid) is None


def test_a_leftover_that_cannot_be_ended_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = started_child(Command("one", SLEEP, stop_seconds=0.1), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("api.embedded.process.os.kill", lambda *_: None)
        patched.setattr("api.embedded.process.os.killpg", lambda *_: None)
        patched.setattr("api.embedded.process.FORCE_SECONDS", 0.1)
        with pytest.raises(EmbeddedError, match="one of an earlier run"):
            end_leftovers(tmp_path)
    child.stop()


def test_a_signal_of_the_terminal_does_not_reach_children(tmp_path: Path) -> None:
    child = started_child(Command("one", SLEEP), tmp_path)
    assert child.pid is not None
    assert os.getpgid(child.pid) != os.getpgid(0)
    child.stop()


def test_a_child_hears_signals_to_which_its_parent_is_deaf(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        child = started_child(Command("one", SLEEP, stop_signal=signal.SIGQUIT), tmp_path)
    finally:
        signal.signal(signal.SIGQUIT, before)
    began = time.monotonic()
    child.stop()
    assert time.monotonic() - began < 5


def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.embedded.process.MAX_LOG_BYTES", 3)
    child = ChildProcess(Command("one", ("true",), stop_signal=signal.SIGTERM), tmp_path)
    child.log.parent.mkdir()
    child.log.write_text("long line\n")
    child.start()
    child.stop()
    assert (tmp_path / "logs" / "one.log.1").read_text() == "long line\n"
