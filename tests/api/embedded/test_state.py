"""The state folder: who holds it, what is private in it, which ports it keeps."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from api.embedded.process import EmbeddedError
from api.embedded.state import (
    AlreadyRunning,
    StateLock,
    is_free,
    kept_port,
    kept_secret,
    kept_signing_key,
    prepare,
    write_private,
)
from models.settings import Settings


def test_a_second_service_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with (
        StateLock(tmp_path),
        pytest.raises(AlreadyRunning, match=f"already running on .* \\(process {os.getpid()}\\)"),
        StateLock(tmp_path),
    ):
        pass


def test_the_lock_is_free_after_a_stop_and_after_a_kill(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        pass
    script = (
        "import os, sys; from pathlib import Path; from api.embedded.state import StateLock;"
        "StateLock(Path(sys.argv[1])).__enter__(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    with StateLock(tmp_path):
        pass


def test_prepare_closes_the_folder_to_others(tmp_path: Path) -> None:
    state = prepare(tmp_path / "a folder" / "state")
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_prepare_says_why_a_folder_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="cannot be used"):
        prepare(tmp_path / "file")


def test_secrets_are_kept_and_private(tmp_path: Path) -> None:
    path = tmp_path / "part" / "password"
    secret = kept_secret(path)
    assert kept_secret(path) == secret
    assert len(secret) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept_secret(tmp_path / "other") != secret


def test_write_private_replaces_an_open_file_with_a_closed_one(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_port_is_kept_while_it_is_free_and_changed_when_it_is_not(tmp_path: Path) -> None:
    port = kept_port(tmp_path / "port")
    assert kept_port(tmp_path / "port") == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_free(port)
        assert kept_port(tmp_path / "port") != port


@pytest.mark.parametrize("text", ["", "nonsense", "0", "70000", "-1"])
def test_a_damaged_port_file_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "port").write_text(text)
    assert 0 < kept_port(tmp_path / "port") < 65536


def test_a_signing_key_is_made_once_in_the_form_that_the_settings_take(tmp_path: Path) -> None:
    key = kept_signing_key(tmp_path / "signing_key")
    assert kept_signing_key(tmp_path / "signing_key") == key
    assert Settings(signing_key=SecretStr(key)).signing_key.get_secret_value() == key
    assert (tmp_path / "signing_key").stat().st_mode & 0o777 == 0o600
