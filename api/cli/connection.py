"""Talks to the service over HTTP, and turns its refusals into words. The CLI knows no other way in."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import httpx
import typer

#: An object of the API, as it came.
Json = dict[str, Any]

DEFAULT_URL = "http://127.0.0.1:8000"
#: What `titer up` leaves in its state folder.
KEY_FILE, URL_FILE = "api_key", "url"
# Objects on one page of a list that is read to its end.
PAGE = 500
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
# Registering a base hashes all its files; a first chat loads a model.
PATIENT = httpx.Timeout(900.0, connect=5.0)


def fail(message: str) -> NoReturn:
    """End the command with one sentence for a person and a status for a script."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


@dataclass(frozen=True)
class Connection:
    """Where the service is, and the key to it."""

    url: str
    api_key: str

    @classmethod
    def find(cls, url: str | None, api_key: str | None, state: Path) -> Connection:
        """Take what was given, else what `titer up` left in the state folder."""
        found_url = url or _read(state / URL_FILE) or DEFAULT_URL
        found_key = api_key or _read(state / KEY_FILE)
        if not found_key:
            fail(
                "No API key: give --api-key, set TITER_API_KEY, or run this where `titer up` runs "
                f"(there is none in {state})."
            )
        return cls(found_url.rstrip("/").removesuffix("/v1"), found_key)

    def get(self, path: str, **params: str | int | None) -> Json:
        """Read an object."""
        given = {name: value for name, value in params.items() if value is not None}
        return self._ask("GET", path, params=given)

    def every(self, path: str, **params: str | int | None) -> Json:
        """Read a whole list, page by page."""
        answer = self.get(path, limit=PAGE, **params)
        while answer["has_more"]:
            following = self.get(path, limit=PAGE, after=answer["data"][-1]["id"], **params)
            answer = {**following, "data": answer["data"] + following["data"]}
        return answer

    def download(self, path: str, **params: str | None) -> bytes:
        """Read a file."""
        given = {name: value for name, value in params.items() if value is not None}
        response = self._send("GET", path, params=given)
        if response.is_error:
            _explain(response)
        return response.content

    def chunks(self, path: str) -> Iterator[bytes]:
        """Read a large file a part at a time; a stream that was cut short ends the command."""
        with self._client(PATIENT) as client:
            try:
                with client.stream("GET", path) as response:
                    if response.is_error:
                        response.read()
                        _explain(response)
                    yield from response.iter_bytes()
            except httpx.HTTPError as error:
                self._unreachable(error)

    def has(self, path: str) -> bool:
        """Say whether there is such an object for this key."""
        return self._send("GET", path).is_success

    def post(self, path: str, body: Json | None = None) -> Json:
        """Make or change an object; fields without a value are left out."""
        kept = {name: value for name, value in (body or {}).items() if value is not None}
        return self._ask("POST", path, json=kept if body is not None else None, timeout=PATIENT)

    def delete(self, path: str) -> Json:
        """Remove an object."""
        return self._ask("DELETE", path)

    def upload(self, path: Path, purpose: str, *, life_seconds: int | None = None) -> Json:
        """Send a file; after so many seconds it expires, never when they are absent."""
        fields = {"purpose": purpose}
        if life_seconds is not None:
            fields["expires_after[anchor]"] = "created_at"
            fields["expires_after[seconds]"] = str(life_seconds)
        try:
            with path.open("rb") as content:
                return self._ask(
                    "POST",
                    "/files",
                    data=fields,
                    files={"file": (path.name, content)},
                    timeout=PATIENT,
                )
        except OSError as error:
            fail(f"{path} cannot be read: {error.strerror}.")

    def stream(self, path: str, body: Json) -> Iterator[Json]:
        """Ask for server-sent events and give each one's object."""
        with self._client(PATIENT) as client:
            try:
                with client.stream("POST", path, json=body) as response:
                    if response.is_error:
                        response.read()
                        _explain(response)
                    for line in response.iter_lines():
                        if not line.startswith("data: ") or line == "data: [DONE]":
                            continue
                        event: Json = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            fail(str(event["error"]["message"]))
                        yield event
            except httpx.HTTPError as error:
                self._unreachable(error)

    def _client(self, timeout: httpx.Timeout) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.url}/v1",
            headers={"authorization": f"Bearer {self.api_key}"},
            timeout=timeout,
            verify=_trusted(),
        )

    def _ask(
        self, method: str, path: str, *, timeout: httpx.Timeout = TIMEOUT, **content: Any
    ) -> Json:
        response = self._send(method, path, timeout=timeout, **content)
        if response.is_error:
            _explain(response)
        try:
            answer: Json = response.json()
        except ValueError:
            fail(f"{self.url} answered with something that is not JSON. Is that address Titer's?")
        return answer

    def _send(
        self, method: str, path: str, *, timeout: httpx.Timeout = TIMEOUT, **content: Any
    ) -> httpx.Response:
        with self._client(timeout) as client:
            try:
                return client.request(method, path, **content)
            except httpx.HTTPError as error:
                self._unreachable(error)

    def _unreachable(self, error: httpx.HTTPError) -> NoReturn:
        if isinstance(error, httpx.ConnectError):
            fail(f"Nothing answers at {self.url}. Is the service running (titer up)?")
        fail(f"The connection to {self.url} broke ({type(error).__name__}).")


@cache
def _trusted() -> ssl.SSLContext:
    # Read once: for every client anew it costs more than most requests.
    return httpx.create_ssl_context()


def connected(context: typer.Context) -> Connection:
    """Give a command its connection. Only now is a key asked for: `--help` needs none."""
    find: Callable[[], Connection] = context.obj
    return find()


def quoted(model: str) -> str:
    """Put a model's name into a path: its slashes escaped, as the stock client sends them."""
    return model.replace("%", "%25").replace("/", "%2F").replace("?", "%3F").replace("#", "%23")


def _explain(response: httpx.Response) -> NoReturn:
    try:
        error: Json = response.json()["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        fail(f"The service answered {response.status_code}, without saying why.")
    faults = error.get("faults") or []
    if not faults:
        fail(message)
    count = error.get("faulty_rows", len(faults))
    typer.echo(f"{count} faulty {'row' if count == 1 else 'rows'}:", err=True)
    for fault in faults:
        where = f"line {fault['line']}" + (f", {fault['field']}" if fault.get("field") else "")
        typer.echo(f"  {where}: {fault['reason']}", err=True)
    if count > len(faults):
        typer.echo(f"  and {count - len(faults)} more", err=True)
    raise typer.Exit(1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
