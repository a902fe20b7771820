"""Parts of Titer that need packages which not every installation has."""

from __future__ import annotations

import importlib
from types import ModuleType

from api.cli.connection import fail


def optional(module: str, *, extra: str) -> ModuleType:
    """Import a module of ours; when a package is missing, say what to install and end the command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        fail(f"The package {error.name!r} is missing: pip install 'titer[{extra}]'.")
