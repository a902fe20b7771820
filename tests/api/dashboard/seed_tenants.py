"""Tenants in every state, for looking at their pages: near a limit, above it, at risk, archived."""

from __future__ import annotations

import random
from datetime import timedelta

from sqlalchemy.orm import Session

from api.organization.use import count_use
from api.seed.states import Provider, seed_job
from api.seed.tenants import remember_risks
from models.api_key import Project, create_key
from models.base import utc_now
from models.job import JobStatus, Stage
from models.priority import Priority
from models.project import Organization
from models.scope import Scope
from models.webhook import WebhookEndpoint, WebhookEventType

NAMES = (
    "Alder",
    "Birch",
    "Cedar",
    "Douglas",
    "Elm",
    "Fir",
    "Ginkgo",
    "Hazel",
    "Ironwood",
    "Juniper",
)
KINDS = ("Health", "Robotics", "Retail", "Bank")


def seed_tenants(session: Session, provider: Provider, *, months: int = 8) -> None:
    """Give the customer a past, keys, webhooks and limits, and add other tenants."""
    acme = provider.customer.project
    _add_past(session, acme, months)
    acme.quota_jobs_running, acme.quota_jobs_queued = 4, 20
    acme.quota_bytes_stored = 5_000_000
    acme.quota_training_tokens_month = 20_000_000
    acme.quota_gpu_seconds_month = 40_000
    acme.priority = Priority.HIGH
    create_key(session, acme, "notebook", frozenset({Scope.CUSTOMER}), user_name="ada@acme.example")
    old, _ = create_key(session, acme, "laptop", frozenset({Scope.CUSTOMER}), user_name="grace")
    old.revoked_at = utc_now() - timedelta(days=2)
    provider.customer.last_used_at = utc_now() - timedelta(minutes=4)
    for name, given_up in (("deploy hook", 0), ("chat room", 3)):
        session.add(
            WebhookEndpoint(
                project_id=acme.id,
                name=name,
                url="https://hooks.acme.example/titer",
                event_types=[WebhookEventType.FINETUNE_SUCCEEDED, WebhookEventType.MODEL_HELD],
                sealed_secret="sealed",
                secret_hint="9xQ2",
                given_up_in_a_row=given_up,
                disabled_at=utc_now() if given_up else None,
                disabled_reason="Three deliveries in a row were given up." if given_up else None,
            )
        )
    organization = Organization(name="Grove Group")
    chance = random.Random(3)
    for index, name in enumerate(f"{tree} {kind}" for tree in NAMES for kind in KINDS):
        project = Project(name=name, **({"organization": organization} if index % 4 == 0 else {}))
        project.created_at = utc_now() - timedelta(days=40, hours=7 * index)
        project.priority = chance.choice(list(Priority))
        session.add(project)
    ended = Project(name="Old Pilot", archived_at=utc_now() - timedelta(days=9))
    session.add(ended)
    session.flush()
    remember_risks(session, acme)
    remember_risks(session, provider.other)
    count_use(session)


def _add_past(session: Session, project: Project, months: int) -> None:
    chance = random.Random(5)
    for month in range(months):
        for number in range(2 + (months - month) % 5):
            job = seed_job(
                session,
                project,
                name=f"ft:sandbox-base:acme:past{month}n{number}:Past{month}{number}",
                model="sandbox-booster",
                status=JobStatus.SUCCEEDED,
                stage=Stage.GATE,
                minutes_ago=(30.4 * month + chance.random() * 3 + 1) * 1440,
            )
            job.trained_tokens = 400_000 + chance.randrange(900_000)
            job.gpu_seconds = 900 + chance.randrange(4000)
            job.finished_at = job.created_at + timedelta(hours=1)
    session.flush()
