"""The command line: `titer`, or `python -m api.cli`."""

from __future__ import annotations

from api.cli.main import app

__all__ = ["app"]
