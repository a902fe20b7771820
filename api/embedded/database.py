"""Bring a database up to date, and put the first project and key into it.

Works from any folder: the migrations are found as the package they are.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations
from api.embedded.state import write_private
from models.api_key import Project, Scope, create_key, find_key
from models.errors import Unauthorized
from models.session import make_engine, session_factory

FIRST_PROJECT = "default"
FIRST_KEY = "first key"


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


def first_key(url: str, path: Path) -> str:
    """The API key kept in `path`, with every scope; made anew when this database does not know it."""
    engine = make_engine(url)
    try:
        with session_factory(engine).begin() as session:
            if path.exists():
                token = path.read_text().strip()
                try:
                    find_key(session, token)
                except Unauthorized:
                    pass
                else:
                    return token
            project = Project(name=FIRST_PROJECT)
            session.add(project)
            _, token = create_key(session, project, FIRST_KEY, frozenset(Scope))
            # Before the commit: a file without its key is made anew, a key without its file is lost.
            write_private(path, token)
        return token
    finally:
        engine.dispose()
