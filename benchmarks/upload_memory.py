"""What files cost the api in memory: uploaded in one request, uploaded in parts, downloaded.

A real uvicorn process on a real PostgreSQL is sent data sets of growing size by the stock client, while its
resident memory is read every 20 ms. If files stream, what it grows by does not grow with the file.

    python -m benchmarks.upload_memory --megabytes 20 200 500 --out benchmarks/results/upload_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil
from openai import OpenAI

from api.embedded.database import upgrade
from api.embedded.postgres import EmbeddedPostgres
from models.api_key import Project, create_key
from models.scope import Scope
from models.session import make_engine, session_factory

MEGABYTE = 1_000_000
ROW_CHARACTERS = 1_500
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Measure:
    """One transfer: how long it took, and what the process's resident memory grew by at most."""

    way: str
    megabytes: int
    seconds: float
    growth_megabytes: float
    growth_to_file: float


def write_rows(path: Path, megabytes: int) -> None:
    """Write a data set of about so many megabytes."""
    with path.open("w") as handle:
        while handle.tell() < megabytes * MEGABYTE:
            for number in range(100):
                handle.write(
                    json.dumps(
                        {
                            "prompt": f"Question {number}?",
                            "completion": "word " * (ROW_CHARACTERS // 5),
                        }
                    )
                )
                handle.write("\n")


def make_token(url: str) -> str:
    """Make a customer's key."""
    engine = make_engine(url)
    with session_factory(engine).begin() as session:
        project = Project(name="benchmark")
        session.add(project)
        session.flush()
        token = create_key(session, project, "benchmark", frozenset({Scope.CUSTOMER}))[1]
    engine.dispose()
    return token


@contextmanager
def api_process(url: str, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Run the api as it is deployed; give its process and its address once it answers."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "DATABASE_URL": url,
        "STORAGE_URL": (folder / "storage").as_uri(),
        "TITER_LOG_LEVEL": "WARNING",
    }
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "api.app:create_app",
        "--port",
        str(port),
    ]
    with subprocess.Popen([*command, "--no-access-log"], env=environment) as process:
        try:
            while True:
                try:
                    httpx.get(f"{address}/openapi.json").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield psutil.Process(process.pid), address
        finally:
            process.terminate()


def free_port() -> int:
    """Find a port that nobody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def stock_client(address: str, token: str) -> OpenAI:
    """Give the client that customers have."""
    return OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0)


def measure(
    process: psutil.Process, way: str, megabytes: int, act: Callable[[], object]
) -> Measure:
    """Do something, and tell what the process's memory did meanwhile."""
    before = peak = process.memory_info().rss
    has_ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not has_ended.wait(SAMPLE_SECONDS):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    act()
    seconds = time.perf_counter() - started
    has_ended.set()
    watcher.join()
    growth = (peak - before) / MEGABYTE
    return Measure(
        way, megabytes, round(seconds, 1), round(growth, 1), round(growth / megabytes, 4)
    )


def transfers(client: OpenAI, path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Give each way that a file takes, with the action that sends it along."""
    files: list[str] = []

    def create() -> None:
        files.append(client.files.create(file=path, purpose="fine-tune").id)

    def download() -> None:
        with client.files.with_streaming_response.content(files[0]) as response:
            assert sum(map(len, response.iter_bytes())) == path.stat().st_size

    def in_parts() -> None:
        # Other bytes, so that nothing is there already.
        with path.open("a") as handle:
            handle.write("\n")
        client.uploads.upload_file_chunked(file=path, mime_type="text/jsonl", purpose="fine-tune")

    yield "POST /v1/files", create
    yield "GET /v1/files/{id}/content", download
    yield "/v1/uploads, parts of 64 MiB", in_parts


def main() -> None:
    """Measure every way with every size, print a line each, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 200, 500])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "postgres", is_durable=False)
        url = server.start()
        try:
            upgrade(url)
            token = make_token(url)
            for megabytes in args.megabytes:
                path = folder / "rows.jsonl"
                write_rows(path, megabytes)
                # A process of its own for each size: memory that a first transfer left would hide the next one's.
                with (
                    api_process(url, folder) as (process, address),
                    stock_client(address, token) as client,
                ):
                    list(client.files.list(limit=1))
                    for way, act in transfers(client, path):
                        measures.append(measure(process, way, megabytes, act))
                        print(measures[-1])
        finally:
            server.stop()
    if args.out is not None:
        args.out.write_text(json.dumps([asdict(m) for m in measures], indent=1) + "\n")


if __name__ == "__main__":
    main()
