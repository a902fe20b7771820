"""`titer models export`, `titer models report`, `titer jobs risk` and `titer verify`: evidence, and checking it."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.connection import Connection, Json, connected, fail, quoted
from api.cli.output import (
    AsJson,
    console,
    moment,
    print_facts,
    print_json,
    print_table,
    safety_facts,
    share,
)
from api.safety.adapter_check import REPORT_FILE, folder_faults
from api.safety.signature import MAX_REPORT_BYTES, InvalidReport, VerifyingKey, verify

Model = Annotated[str, typer.Argument(help="A released model's name.")]
#: What an export may hold; anything else in the stream is refused.
EXPORTED = frozenset({"adapter_config.json", "adapter_model.safetensors", REPORT_FILE})
JOBS = "/fine_tuning/jobs"


def risk(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(help="A fine-tuning job.")],
    is_all: Annotated[
        bool, typer.Option("--all", help="Every row, not the flagged alone.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="The last line seen.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many rows.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show what the judges found in a job's training file, by line."""
    connection = connected(context)
    flagged = None if is_all else "true"
    answer = connection.get(
        f"{JOBS}/{quoted(job_id)}/data_risk", after=after, limit=limit, flagged=flagged
    )
    if as_json:
        print_json(answer)
        return
    summary = answer["summary"]
    if summary is None:
        console().print("The rows are still being judged.")
    else:
        _print_risk(summary)
    print_table(
        ("LINE", "SCORE", "CATEGORY", "FLAGGED"),
        (
            (
                str(row["line"]),
                f"{row['score']:g}",
                row["category"] or "",
                "yes" if row["flagged"] else "",
            )
            for row in answer["data"]
        ),
    )
    if answer["has_more"]:
        typer.echo(f"There are more: --after {answer['data'][-1]['line']}", err=True)


def report(
    context: typer.Context,
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Write the signed report to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a released model's safety report, or write it as it was signed."""
    connection = connected(context)
    content = connection.download(f"/models/{quoted(model)}/safety_report")
    if out is not None:
        try:
            out.write_bytes(content)
        except OSError as error:
            fail(f"{out} cannot be written: {error.strerror}.")
        typer.echo(f"The report is in {out}.", err=True)
    signed = json.loads(content)
    if as_json:
        print_json(signed)
    elif out is None:
        _print_report(signed["report"], str(signed["signature"]["key"]))


def export(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
) -> None:
    """Download a released model's adapter as a PEFT folder, and check it against its signed report."""
    connection = connected(context)
    if out.exists():
        fail(f"{out} is there already.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            folder = Path(scratch) / "adapter"
            folder.mkdir()
            _unpack(connection.chunks(f"/models/{quoted(model)}/export"), folder)
            signed = folder / REPORT_FILE
            if signed.is_file():
                _check(signed.read_bytes(), _served_keys(connection), folder)
            shutil.move(folder, out)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}.")
    is_signed = (out / REPORT_FILE).is_file()
    checked = "with the signature and hashes checked" if is_signed else "without a signed report"
    typer.echo(f"The adapter is in {out}, {checked}.", err=True)


def check(
    context: typer.Context,
    report: Annotated[Path, typer.Argument(help="A signed safety report.")],
    adapter: Annotated[
        Path | None, typer.Option(help="The folder whose files it must be about.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The signer's public key, PEM or JSON; else the service is asked."),
    ] = None,
) -> None:
    """Check a safety report's signature and, with --adapter, that the files are those that were measured."""
    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            fail(f"{report} is too large for a safety report.")
        content = report.read_bytes()
    except OSError as error:
        fail(f"{report} cannot be read: {error.strerror}.")
    keys = _read_keys(key) if key is not None else _served_keys(connected(context))
    if adapter is not None and not adapter.is_dir():
        fail(f"There is no folder {adapter}.")
    found = _check(content, keys, adapter)
    _print_report(found, str(json.loads(content)["signature"]["key"]))
    console().print("The signature is good.", style="green")
    if adapter is not None:
        console().print(f"{adapter} holds the files that were measured.", style="green")


def _check(content: bytes, keys: dict[str, VerifyingKey], folder: Path | None) -> Json:
    try:
        found = verify(content, keys)
        faults = folder_faults(found, folder) if folder is not None else []
    except InvalidReport as error:
        fail(f"NOT VALID. {error}")
    except (KeyError, TypeError, AttributeError):
        fail("NOT VALID. The report names no files.")
    except OSError as error:
        fail(f"{folder} cannot be read: {error.strerror}.")
    if faults:
        fail(f"NOT VALID. {' '.join(faults)}")
    return found


def _served_keys(connection: Connection) -> dict[str, VerifyingKey]:
    return _keys(connection.get("/safety/keys"))


def _read_keys(path: Path) -> dict[str, VerifyingKey]:
    try:
        content = path.read_bytes()
        if content.lstrip().startswith(b"{"):
            return _keys(json.loads(content))
        key = VerifyingKey.from_pem(content)
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}.")
    except (ValueError, KeyError, TypeError):
        fail(f"{path} holds no Ed25519 public key, neither as PEM nor as /v1/safety/keys gives it.")
    return {key.id: key}


def _keys(listing: dict[str, Any]) -> dict[str, VerifyingKey]:
    keys = [VerifyingKey.from_pem(str(entry["pem"]).encode()) for entry in listing["data"]]
    return {key.id: key for key in keys}


def _unpack(chunks: Iterator[bytes], folder: Path) -> None:
    """Write the files of a tar stream, each as it comes, and none of any other name or kind."""
    try:
        with tarfile.open(fileobj=_Stream(chunks), mode="r|") as archive:
            for member in archive:
                source = archive.extractfile(member)
                if not member.isreg() or member.name not in EXPORTED or source is None:
                    fail("The export holds something that is no part of an adapter.")
                with (folder / member.name).open("xb") as file:
                    shutil.copyfileobj(source, file)
    except tarfile.TarError:
        fail("The export broke off.")


class _Stream(io.RawIOBase):
    """What is downloaded, as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        given, self._rest = self._rest[:size], self._rest[size:]
        return given


def _print_risk(summary: Json) -> None:
    expected, review = summary["expected"], summary["review"] or {}
    print_facts(
        [
            ("flagged", share(summary["harmful_share"])),
            (
                "kinds",
                ", ".join(
                    f"{name} {rate['count']}" for name, rate in summary["by_category"].items()
                ),
            ),
            ("outcome", summary["outcome"]),
            ("review", review.get("status")),
            ("reason", review.get("reason")),
            ("dropped", str(summary["dropped"]) if summary["dropped"] else None),
            (
                "judges",
                ", ".join(f"{judge['name']} {judge['revision']}" for judge in summary["judges"]),
            ),
            (
                "HS to expect",
                f"{expected['percent']:.1f}% ({expected['low']:.1f} to {expected['high']:.1f}), "
                f"certificate {expected['certificate']}"
                if expected
                else None,
            ),
        ]
    )
    console().print()


def _print_report(found: Json, key: str) -> None:
    model, safety = found["model"], found["safety"] or {}
    delta = (safety.get("delta") or {}).get("harmful_score")
    policy = found["policy"] or {}
    print_facts(
        [
            ("model", model["id"]),
            ("lineage", " on ".join([model["id"], *(entry["id"] for entry in found["lineage"])])),
            ("created", moment(model["created_at"])),
            ("weights", f"{found['weights']['form']} {found['weights']['sha256'][:12]}"),
            *safety_facts(safety),
            (
                "HS, change by tuning",
                f"{delta['points']:+.1f} points ({delta['low']:+.1f} to {delta['high']:+.1f})"
                if delta
                else None,
            ),
            (
                "judge",
                f"{safety['judge']['name']} {safety['judge']['revision']}" if safety else None,
            ),
            ("policy", f"version {policy['version']}: {policy['gate']}" if policy else None),
            ("reviews", ", ".join(str(review["decision"]) for review in found["reviews"])),
            ("signed by", key),
        ]
    )
