"""Brings a database up to date. Works from any folder: the scripts are found as the package they are."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations
from models.session import make_engine


def upgrade(url: str) -> None:
    """Run every migration that the database has not seen, in one transaction."""
    config = Config()
    scripts = Path(str(migrations.__file__)).parent
    # The configuration expands percent signs, which a folder's name may hold.
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    engine = make_engine(url)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()
