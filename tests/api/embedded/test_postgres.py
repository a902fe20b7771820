"""The real server: as whom it runs, what survives, and what it says when it cannot run."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from api.embedded import postgres_programs
from api.embedded.postgres import EmbeddedPostgres
from api.embedded.postgres_programs import choose_confinement, find_programs
from api.embedded.process import Confinement, EmbeddedError, started_at

# Each test starts PostgreSQL.
pytestmark = pytest.mark.long

# Deeper than a Unix socket's path may be, with what shells and configuration files trip over.
AWKWARD = Path('a folder with spaces, it\'s 100% "awkward"') / ("long-" * 25)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cluster for all tests here, since making one takes longest."""
    folder = tmp_path_factory.mktemp("embedded") / AWKWARD
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(state: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(state)
    yield server
    server.stop()


def connect(url: str) -> psycopg.Connection:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=5)


def test_it_speaks_utf8_on_the_loopback_address_with_a_password(server: EmbeddedPostgres) -> None:
    url = server.start()
    with connect(url) as connection:
        settings = {
            name: connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            for name in ("server_encoding", "listen_addresses", "unix_socket_directories", "fsync")
        }
        assert settings == {
            "server_encoding": ("UTF8",),
            "listen_addresses": ("127.0.0.1",),
            "unix_socket_directories": ("",),
            "fsync": ("on",),
        }
    wrong = make_url(url).set(password="wrong").render_as_string(hide_password=False)
    with pytest.raises(psycopg.OperationalError, match="password"):
        connect(wrong)


def test_its_files_are_private(server: EmbeddedPostgres, state: Path) -> None:
    server.start()
    assert stat.S_IMODE((state / "postgres" / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE((state / "postgres" / "data").stat().st_mode) == 0o700
    assert sorted(path.name for path in (state / "postgres").iterdir()) == [
        "data",
        "password",
        "port",
    ]


def test_the_next_start_has_the_same_url_and_data(server: EmbeddedPostgres) -> None:
    url = server.start()
    with connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    server.stop()
    assert server.start() == url
    with connect(url) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (7,)


def test_committed_rows_survive_a_kill_and_the_stale_lock_is_no_hindrance(
    state: Path, server: EmbeddedPostgres
) -> None:
    url = server.start()
    with connect(url) as connection:
        connection.execute("CREATE TABLE survivors AS SELECT generate_series(1, 100) AS value")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    # A rival's number in the lock file, as after a reboot: a living process that is no PostgreSQL.
    lock = state / "postgres" / "data" / "postmaster.pid"
    lock.write_text(lock.read_text().replace(str(server.pid), str(os.getppid()), 1))
    with connect(EmbeddedPostgres.start(server)) as connection:
        assert connection.execute("SELECT count(*) FROM survivors").fetchone() == (100,)


def test_a_new_start_takes_over_from_a_run_that_was_killed(
    state: Path, server: EmbeddedPostgres
) -> None:
    # The old server still runs, as it does for a moment after its supervisor was killed.
    server.start()
    first = server.pid
    assert first is not None
    second = EmbeddedPostgres(state)
    try:
        with connect(second.start()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert started_at(first) is None
    finally:
        second.stop()


def test_a_taken_port_is_changed(state: Path, server: EmbeddedPostgres) -> None:
    url = server.start()
    port = make_url(url).port
    assert port is not None
    server.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert make_url(server.start()).port != port


def test_stop_does_not_wait_for_clients(server: EmbeddedPostgres) -> None:
    with connect(server.start()) as connection:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_data_of_another_version_is_refused_with_both_named(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match=r"PostgreSQL 9, and \d+ is installed"):
        EmbeddedPostgres(tmp_path).start()


def test_an_interrupted_making_is_begun_anew(tmp_path: Path) -> None:
    partial = tmp_path / "postgres" / "data.partial"
    partial.mkdir(parents=True)
    (partial / "PG_VERSION").write_text("half\n")
    server = EmbeddedPostgres(tmp_path, is_durable=False)
    try:
        connect(server.start()).close()
        assert not partial.exists()
    finally:
        server.stop()


def test_an_ordinary_user_runs_it_unconfined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_programs.os, "geteuid", lambda: 1000)
    assert choose_confinement(find_programs(), tmp_path) is Confinement.NONE


def test_root_without_a_namespace_or_an_account_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_programs.os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres_programs, "works", lambda *_: False)
    folder = tmp_path / "state" / "postgres"
    folder.mkdir(parents=True)
    with pytest.raises(EmbeddedError, match="Run Titer as an ordinary user"):
        choose_confinement(find_programs(), folder)


def test_missing_programs_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_programs.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedError, match="DATABASE_URL"):
        find_programs()
