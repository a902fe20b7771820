"""Puts the metrics of one api process together, and says who may read them."""

from __future__ import annotations

import secrets

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from api.metrics import counts
from api.metrics.database import DatabaseMetrics
from models.errors import Unauthorized
from models.settings import Settings


class NotAReader(Unauthorized):
    """Whoever reads the metrics sends the service's metrics token as a bearer token, not an API key."""

    code = "invalid_metrics_token"


def make_registry(app: FastAPI) -> CollectorRegistry:
    """Make the registry of an application. Nothing is connected before it is read."""
    registry = CollectorRegistry()
    # The process's own: seconds of processor time, memory, open files.
    ProcessCollector(registry=registry)
    for metric in counts.ALL:
        registry.register(metric)
    registry.register(DatabaseMetrics(lambda: app.state.sessions))
    return registry


def check_reader(settings: Settings, authorization: str) -> None:
    """Let pass who knows the token.

    Raises:
        NotAReader: the header does not hold it.
    """
    expected = f"Bearer {settings.metrics_token.get_secret_value()}"
    if not secrets.compare_digest(authorization.encode(), expected.encode()):
        raise NotAReader


def write_metrics(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Write the metrics in the best format that the reader takes; give it with its media type."""
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
