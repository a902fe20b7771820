"""Everything that is known of the installation, gathered."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

import migrations
from api.queue import Doorbell
from api.safety.service import signer
from api.system.parts import Part, PartState, check_parts
from models.settings import Settings
from models.storage import Storage
from models.webhook import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from models.worker import Worker

#: What the api is made of, that is worth a look when something is odd.
LIBRARIES = (
    "fastapi",
    "starlette",
    "pydantic",
    "sqlalchemy",
    "psycopg",
    "alembic",
    "celery",
    "redis",
    "obstore",
    "httpx",
    "uvicorn",
    "cryptography",
)
MAX_WORKERS = 100
#: Deliveries that wait are counted up to here.
MAX_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Migrations:
    """Which revision the database is at, and which one this code wants."""

    current: str | None
    head: str

    @property
    def is_current(self) -> bool:
        """Whether they are the same."""
        return self.current == self.head


@dataclass(frozen=True, slots=True)
class WebhookBacklog:
    """What is still to be told to receivers. `pending` stops at `MAX_COUNTED`."""

    is_on: bool
    pending: int
    oldest_due_at: datetime | None
    endpoints: int
    #: Endpoints whose last deliveries were given up, and those that are sent nothing more for it.
    failing: int
    disabled: int


@dataclass(frozen=True, slots=True)
class System:
    """All of it."""

    versions: dict[str, str]
    migrations: Migrations
    parts: tuple[Part, ...]
    workers: tuple[Worker, ...]
    signing_key_id: str | None
    webhooks: WebhookBacklog

    @property
    def is_well(self) -> bool:
        """Whether nothing needs a look."""
        return self.migrations.is_current and all(p.state == PartState.OK for p in self.parts)


def read_system(
    session: Session, settings: Settings, storage: Storage, doorbell: Doorbell
) -> System:
    """Ask and gather."""
    parts = tuple(check_parts(session, settings, storage, doorbell))
    servers = {"PostgreSQL": "database", "Redis": "redis"}
    found = {part.name: part.version for part in parts}
    signing = signer(settings)
    return System(
        versions={
            "Titer": version("titer"),
            "Python": platform.python_version(),
            **{shown: found[name] or "unknown" for shown, name in servers.items()},
            **_library_versions(),
        },
        migrations=read_migrations(session),
        parts=parts,
        workers=tuple(
            session.scalars(select(Worker).order_by(Worker.host, Worker.id).limit(MAX_WORKERS))
        ),
        signing_key_id=signing.verifying_key.id if signing is not None else None,
        webhooks=_read_backlog(session, settings),
    )


def read_migrations(session: Session) -> Migrations:
    """Compare the database's revision with the one that this code was written for."""
    is_there = session.scalar(text("select to_regclass('alembic_version') is not null"))
    current = session.scalar(text("select version_num from alembic_version")) if is_there else None
    return Migrations(current=current, head=_head())


@cache
def _head() -> str:
    config = Config()
    scripts = Path(str(migrations.__file__)).parent
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    return str(ScriptDirectory.from_config(config).get_current_head())


@cache
def _library_versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _read_backlog(session: Session, settings: Settings) -> WebhookBacklog:
    due = (
        select(WebhookDelivery.next_attempt_at)
        .where(WebhookDelivery.status == DeliveryStatus.PENDING)
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(MAX_COUNTED)
        .subquery()
    )
    pending, oldest = session.execute(
        select(func.count(), func.min(due.c.next_attempt_at)).select_from(due)
    ).one()
    disabled = WebhookEndpoint.disabled_at.is_not(None)
    endpoints, failing, given_up = session.execute(
        select(
            func.count(),
            func.count().filter(~disabled, WebhookEndpoint.given_up_in_a_row > 0),
            func.count().filter(disabled),
        ).select_from(WebhookEndpoint)
    ).one()
    return WebhookBacklog(
        is_on=bool(settings.webhook_key),
        pending=pending,
        oldest_due_at=oldest,
        endpoints=endpoints,
        failing=failing,
        disabled=given_up,
    )
