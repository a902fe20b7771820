"""Runs the command line where no `titer` script is on the path."""

from __future__ import annotations

from api.cli.main import app

if __name__ == "__main__":
    app(prog_name="titer")
