"""`titer up` delivers: from a cancel through the stock client to a receiver on the same machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from openai import OpenAI

from api.embedded.process import ChildProcess
from api.embedded.service import EmbeddedService
from models.api_key import find_key
from models.model_version import VersionKind
from models.session import make_engine, session_factory
from models.storage import Storage
from tests.api.conftest import Place
from tests.api.embedded.stand_in import StandIn
from tests.api.webhooks.receiver import receiving

pytestmark = pytest.mark.processes


class WithoutTensors(EmbeddedService):
    """The embedded service without the processes that load torch: no job is run here."""

    def _children(self) -> list[ChildProcess]:
        return [child for child in super()._children() if child.name in ("api", "sweeper")]


def test_the_end_of_a_job_reaches_a_receiver(tmp_path: Path, storage: Storage) -> None:
    with receiving() as receiver, WithoutTensors(tmp_path / "state") as service:
        engine = make_engine(service.database_url)
        with session_factory(engine).begin() as session:
            place = Place(session, storage)
            base = place.version("tiny", VersionKind.BASE)
            model = place.version("aligned", VersionKind.ALIGNED, parent=base)
            job = place.job(find_key(session, service.api_key).project, model)
        engine.dispose()
        with OpenAI(
            base_url=f"{service.base_url}/v1",
            api_key=service.api_key,
            _strict_response_validation=True,
        ) as client:
            hook = client.webhooks.create(
                name="x", url=receiver.url, event_types=["fine_tuning.job.cancelled"]
            )
            client.fine_tuning.jobs.cancel(job.id)
        deadline = time.monotonic() + 30
        while not receiver.received:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    event = receiver.received[0].unwrap(hook.signing_secret)
    assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job.id)


def test_private_addresses_are_for_a_service_that_nobody_else_reaches(tmp_path: Path) -> None:
    keys = []
    for host, allowed in (("127.0.0.1", "true"), ("0.0.0.0", None)):
        with StandIn(tmp_path / "state", host=host) as service:
            assert service._environment.get("TITER_WEBHOOK_ALLOW_PRIVATE") == allowed
            keys.append(service._environment["TITER_WEBHOOK_KEY"])
    # Another one would make every endpoint's secret unreadable.
    assert keys[0] == keys[1]
