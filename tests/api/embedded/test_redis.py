"""The real server: private, durable enough for a doorbell, and never stuck on data it cannot read."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from api.embedded import redis as module
from api.embedded.process import EmbeddedError
from api.embedded.redis import EmbeddedRedis, find_program

# Each test starts Redis.
pytestmark = pytest.mark.long


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / 'a folder with spaces, it\'s 100% "awkward"' / ("long-" * 25)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(state: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(state)
    yield server
    server.stop()


def test_it_wants_a_password_and_keeps_its_secret_private(
    server: EmbeddedRedis, state: Path
) -> None:
    url = server.start()
    with redis.Redis.from_url(url) as client:
        assert client.ping()
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
    port = int((state / "redis" / "port").read_text())
    with redis.Redis(port=port, retry=None) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    for name in ("password", "redis.conf"):
        assert stat.S_IMODE((state / "redis" / name).stat().st_mode) == 0o600


def test_what_was_queued_a_second_ago_survives_a_kill(server: EmbeddedRedis) -> None:
    url = server.start()
    with redis.Redis.from_url(url) as client:
        client.rpush("queue", *range(20))
        time.sleep(1.2)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert server.start() == url
    with redis.Redis.from_url(url) as client:
        assert client.llen("queue") == 20


def test_a_new_start_takes_over_from_a_run_that_was_killed(
    state: Path, server: EmbeddedRedis
) -> None:
    url = server.start()
    second = EmbeddedRedis(state)
    try:
        assert second.start() == url
        assert not server.is_running()
    finally:
        second.stop()


def test_data_it_cannot_read_is_put_aside(server: EmbeddedRedis, state: Path) -> None:
    data = state / "redis" / "data"
    data.mkdir(parents=True)
    (data / "appendonly.aof").write_bytes(b"written by a version from the future\n")
    # Newer versions keep a folder of that name's kind; what either cannot read is not in its way.
    (data / "appendonlydir").mkdir()
    (data / "appendonlydir" / "appendonly.aof.manifest").write_bytes(b"not a manifest\n")
    with redis.Redis.from_url(server.start()) as client:
        assert client.dbsize() == 0
    assert (state / "redis" / "data.unreadable" / "appendonly.aof").exists()


def test_a_server_that_does_not_start_is_told_with_its_log(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_program", lambda: Path("/bin/false"))
    with pytest.raises(EmbeddedError, match="Redis does not start"):
        EmbeddedRedis(state).start()


def test_a_missing_program_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert find_program().name == "redis-server"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedError, match="REDIS_URL"):
        find_program()
