"""Write a migration: what the tables in `models` have and a freshly migrated database lacks.

`make migration m="add a column"` runs this on a database of its own, so none needs to be at hand.
Read what it wrote before committing it: renames, for one, look like a loss and a gain.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config

from api.embedded.database import upgrade
from api.embedded.postgres import EmbeddedPostgres
from models.session import make_engine

CONFIGURATION = Path(__file__).parent.parent / "alembic.ini"


def write(message: str) -> None:
    """Write the migration that brings the newest known schema to the tables as they are now."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder), is_durable=False)
        try:
            url = server.start()
            upgrade(url)
            config = Config(CONFIGURATION)
            engine = make_engine(url)
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                command.revision(config, message, autogenerate=True)
            engine.dispose()
        finally:
            server.stop()


if __name__ == "__main__":
    write(" ".join(sys.argv[1:]))
