"""A stand-in for an MLflow tracking server: the calls of its REST API that are used, on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

API = "/api/2.0/mlflow/"


class Tracker:
    """What clients have written."""

    def __init__(self) -> None:
        self.url = ""
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, object]] = {}
        self.metrics: dict[str, list[dict[str, object]]] = {}
        self.parameters: dict[str, dict[str, str]] = {}
        self.authorizations: set[str | None] = set()
        self.calls = 0
        self.broken_after: int | None = None

    def answer(self, call: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        self.calls += 1
        if self.broken_after is not None and self.calls > self.broken_after:
            return 500, {"error_code": "INTERNAL_ERROR"}
        match call:
            case "experiments/get-by-name":
                name = str(body["experiment_name"])
                if name not in self.experiments:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
                return 200, {"experiment": {"experiment_id": self.experiments[name]}}
            case "experiments/create":
                identifier = str(len(self.experiments) + 1)
                self.experiments[str(body["name"])] = identifier
                return 200, {"experiment_id": identifier}
            case "runs/search":
                found = [
                    {"info": {"run_id": run_id}}
                    for run_id, run in self.runs.items()
                    for tag in run["tags"]  # type: ignore[attr-defined]
                    if body["filter"] == f"tags.`{tag['key']}` = '{tag['value']}'"
                ]
                return 200, {"runs": found} if found else {}
            case "runs/create":
                run_id = f"run{len(self.runs)}"
                self.runs[run_id] = {**body, "status": "RUNNING"}
                return 200, {"run": {"info": {"run_id": run_id}}}
            case "runs/update":
                self.runs[str(body["run_id"])].update(body)
                return 200, {"run_info": {}}
            case "runs/log-batch":
                run_id = str(body["run_id"])
                self.metrics.setdefault(run_id, []).extend(body.get("metrics", []))  # type: ignore[arg-type]
                for parameter in body.get("params", []):  # type: ignore[attr-defined]
                    self.parameters.setdefault(run_id, {})[parameter["key"]] = parameter["value"]
                return 200, {}
        return 404, {"error_code": "ENDPOINT_NOT_FOUND"}

    def curve(self, run_id: str, name: str) -> list[tuple[int, float]]:
        return [
            (int(str(m["step"])), float(str(m["value"])))
            for m in self.metrics[run_id]
            if m["key"] == name
        ]


@contextmanager
def mlflow_server() -> Iterator[Tracker]:
    tracker = Tracker()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            self.reply(address.path, dict(query))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.reply(self.path, json.loads(body))

        def reply(self, path: str, body: dict[str, object]) -> None:
            tracker.authorizations.add(self.headers["authorization"])
            status, answer = tracker.answer(path.removeprefix(API), body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    tracker.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield tracker
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
