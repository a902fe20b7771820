"""The whole service with a stand-in for its own processes: servers, key, lock, ports, signals, kills."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import redis
from sqlalchemy.engine import make_url

from api.embedded.process import EmbeddedError, started_at
from api.embedded.service import PortTaken
from api.embedded.state import AlreadyRunning
from models.api_key import find_key
from models.scope import Scope
from models.session import make_engine, session_factory
from tests.api.embedded.stand_in import DIES, StandIn

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "a state"


@pytest.fixture
def up(state: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start `titer up` as a process and wait until it says that it is up."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.api.embedded.stand_in", str(state), "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("  Logs"):
                return process
        raise AssertionError("it ended before it was up")

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def children_of(state: Path) -> list[int]:
    records = [path.read_text() for path in (state / "run").glob("*.json")]
    return [int(re.findall(r'"pid": (\d+)', record)[0]) for record in records]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(started_at(pid) is not None for pid in pids):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)


def test_everything_is_there_and_the_key_opens_it(state: Path) -> None:
    with StandIn(state) as service:
        assert httpx.get(f"{service.base_url}/healthz", trust_env=False).is_success
        engine = make_engine(service.database_url)
        with session_factory(engine)() as session:
            key = find_key(session, service.api_key)
            assert set(key.scopes) == set(Scope)
        engine.dispose()
        assert len(children_of(state)) == 3
    for secret in ("api_key", "metrics_token"):
        assert stat.S_IMODE((state / secret).stat().st_mode) == 0o600
    assert children_of(state) == []


def test_the_next_start_keeps_key_port_and_data(state: Path) -> None:
    with StandIn(state) as service:
        first = (service.api_key, service.base_url, service.database_url)
    with StandIn(state) as service:
        assert (service.api_key, service.base_url, service.database_url) == first


def test_a_key_that_the_database_does_not_know_is_made_anew(state: Path) -> None:
    (state / "api_key").write_text("titer-of-another-database")
    with StandIn(state) as service:
        assert service.api_key != "titer-of-another-database"
        assert (state / "api_key").read_text() == service.api_key


def test_a_second_start_on_the_same_folder_is_refused(state: Path) -> None:
    with StandIn(state) as service:
        with pytest.raises(AlreadyRunning, match=re.escape(str(state))), StandIn(state):
            pass
        assert httpx.get(f"{service.base_url}/healthz", trust_env=False).is_success


def test_a_taken_port_is_named_before_anything_starts(state: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)), StandIn(state, port=port):
            pass
    assert children_of(state) == []


def test_a_process_that_dies_at_the_start_is_told_with_its_last_words(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "script", DIES)
    with pytest.raises(EmbeddedError, match="nothing works today"), StandIn(state):
        pass
    assert children_of(state) == []


def test_addresses_of_others_replace_the_embedded_servers(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    given = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STORAGE_URL": "s3://bucket/prefix",
    }
    with StandIn(tmp_path, environment=given) as service:
        assert service.database_url == database_url
        assert len(children_of(tmp_path)) == 1
        assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(
    state: Path, up: Callable[[], subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = up()
    pids = children_of(state)
    assert len(pids) == 3
    process.send_signal(number)
    # Impatience does not leave anything behind either.
    process.send_signal(number)
    assert process.wait(20) == 0
    assert [started_at(pid) for pid in pids] == [None] * 3


def test_a_kill_leaves_nothing_behind_and_the_next_start_works(
    state: Path, up: Callable[[], subprocess.Popen[str]]
) -> None:
    process = up()
    pids = children_of(state)
    process.kill()
    process.wait()
    wait_until_gone(pids)
    with StandIn(state) as service:
        assert httpx.get(f"{service.base_url}/healthz", trust_env=False).is_success


def test_servers_that_are_killed_come_back_at_the_same_address(state: Path) -> None:
    told: list[str] = []
    with StandIn(state, notify=told.append) as service:
        for pid in children_of(state):
            os.kill(pid, signal.SIGKILL)
        url = make_url(service.database_url).set(drivername="postgresql")
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(url.render_as_string(hide_password=False)).close()
                with redis.Redis.from_url(service.redis_url, retry=None) as client:
                    client.ping()
                httpx.get(f"{service.base_url}/healthz", trust_env=False)
            except (psycopg.OperationalError, redis.ConnectionError, httpx.TransportError):
                assert time.monotonic() < deadline, "something did not come back"
                time.sleep(0.05)
            else:
                break
    assert sum("ended by itself" in line for line in told) == 3
