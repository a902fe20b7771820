"""Whether a folder holds the files that a safety report is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.digest import sha256_of

REPORT_FILE = "safety_report.json"


def folder_faults(report: Mapping[str, Any], folder: Path) -> list[str]:
    """Give a sentence for each file that is absent, another one, or not in the report. None: all is as measured.

    The report itself may lie beside the files.

    Raises:
        OSError: a file cannot be read.
    """
    named: dict[str, str] = {
        str(name): str(facts["sha256"]) for name, facts in report["weights"]["files"].items()
    }
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    faults = []
    for name, sha256 in sorted(named.items()):
        if name not in found:
            faults.append(f"{name} is missing.")
        elif sha256_of(folder / name) != sha256:
            faults.append(f"{name} is not the file that was measured.")
    # What the report does not name could be loaded in place of what it does.
    faults += [f"{name} is not in the report." for name in sorted(found - {*named, REPORT_FILE})]
    return faults
