"""Live events over a real socket: order, resuming, heartbeats, the end, bounds, and no connection held."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI
from sqlalchemy import Engine

from api.app import create_app
from api.event_stream import service
from api.event_stream.service import Slots, TooManyStreams
from models.job import JobKind, JobStatus, append_event, lock_job, succeed
from models.model_version import ModelVersion, VersionKind
from models.scope import Scope
from models.settings import Settings
from models.storage import Storage
from tests.api.conftest import Place
from tests.api.server import serve

# Streams are waited for.
pytestmark = pytest.mark.long


class Live:
    """An app on a database of its own, with a job that goes on while others look."""

    def __init__(self, place: Place, app: FastAPI, address: str) -> None:
        self.place = place
        self.app = app
        self.address = address
        project = place.project()
        self.token = place.key(project, Scope.CUSTOMER)
        base = place.version("tiny", VersionKind.BASE)
        self.model: ModelVersion = place.version("aligned", VersionKind.ALIGNED, parent=base)
        self.job = place.job(project, self.model, status=JobStatus.RUNNING)
        self.path = f"/v1/fine_tuning/jobs/{self.job.id}/events"
        place.session.commit()
        self.client = self.as_(self.token)

    def as_(self, token: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=10)

    def tell(self, message: str) -> None:
        session = self.place.session
        append_event(session, lock_job(session, self.job.id), message)
        session.commit()

    def succeed(self) -> None:
        session = self.place.session
        succeed(session, lock_job(session, self.job.id))
        session.commit()

    @property
    def engine(self) -> Engine:
        bind: Engine = self.app.state.sessions.kw["bind"]
        return bind


@pytest.fixture
def live(
    database_url: str,
    settings: Settings,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Live]:
    monkeypatch.setattr(service, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(service, "LOOK_AGAIN_SECONDS", 0.02)
    app = create_app(
        settings.model_copy(update={"database_url": database_url, "max_event_streams": 20})
    )
    with serve(app) as address, app.state.sessions() as session:
        live = Live(Place(session, storage), app, address)
        yield live
        live.client.close()


def frames(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Read server-sent events; comments come as {"comment": ...}."""
    frame: dict[str, str] = {}
    for line in lines:
        if not line:
            if frame:
                yield frame
            frame = {}
        elif line.startswith(":"):
            yield {"comment": line[1:].strip()}
        else:
            name, _, value = line.partition(": ")
            frame[name] = value


def events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    return (frame for frame in frames(lines) if "comment" not in frame)


class TestFollowing:
    def test_what_was_then_what_comes_then_the_end(self, live: Live) -> None:
        with live.client.stream("GET", live.path + "/stream") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            coming = events(response.iter_lines())
            first = next(coming)
            live.tell("one \u2028 línea")
            second = next(coming)
            live.succeed()
            third, done = next(coming), next(coming)
            assert list(coming) == []
        polled = {event["id"]: event for event in live.client.get(live.path).json()["data"]}
        for frame in (first, second, third):
            assert json.loads(frame["data"]) == polled[frame["id"]]
            assert frame["event"] == "message"
        assert json.loads(second["data"])["message"] == "one \u2028 línea"
        assert (done["event"], "id" in done) == ("done", False)
        job = live.client.get(f"/v1/fine_tuning/jobs/{live.job.id}").json()
        assert json.loads(done["data"]) == job
        assert job["status"] == "succeeded"

    def test_it_goes_on_after_the_last_event_that_was_seen(self, live: Live) -> None:
        live.tell("one")
        live.tell("two")
        live.succeed()
        whole = list(events(live.client.get(live.path + "/stream").iter_lines()))
        assert len(whole) == 5
        for number, frame in enumerate(whole[:-1]):
            headers = {"last-event-id": frame["id"]}
            rest = live.client.get(live.path + "/stream", headers=headers)
            assert list(events(rest.iter_lines())) == whole[number + 1 :]

    def test_a_long_log_comes_whole(self, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "MAX_EVENTS", 2)
        for number in range(6):
            live.tell(str(number))
        live.succeed()
        whole = list(events(live.client.get(live.path + "/stream").iter_lines()))
        told = [json.loads(frame["data"])["message"] for frame in whole[1:-2]]
        assert told == [str(number) for number in range(6)]
        assert whole[-1]["event"] == "done"

    def test_the_stock_client_can_read_it(self, live: Live) -> None:
        live.succeed()
        with OpenAI(base_url=f"{live.address}/v1", api_key=live.token, max_retries=0) as client:
            stream = client.get(
                live.path.removeprefix("/v1") + "/stream",
                cast_to=dict[str, object],
                stream=True,
                stream_cls=openai.Stream[dict[str, object]],
            )
            read = [item["object"] for item in stream]
        assert read == ["fine_tuning.job.event"] * 2 + ["fine_tuning.job"]

    def test_heartbeats_while_nothing_happens(
        self, live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "HEARTBEAT_SECONDS", 0.05)
        with live.client.stream("GET", live.path + "/stream") as response:
            coming = frames(response.iter_lines())
            comments = [frame for _, frame in zip(range(5), coming, strict=False)]
        assert [frame.get("comment") for frame in comments] == [
            "connected",
            None,
            *["still here"] * 3,
        ]

    def test_it_ends_after_a_while_even_if_the_job_does_not(
        self, live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "LONGEST_SECONDS", 0.1)
        answer = live.client.get(live.path + "/stream")
        assert [frame["event"] for frame in events(answer.iter_lines())] == ["message"]

    @pytest.mark.parametrize(
        ("kind", "path"),
        [
            (JobKind.ALIGN, "alignment"),
            (JobKind.CERTIFY, "certification"),
            (JobKind.EVALUATE, "evaluation"),
        ],
    )
    def test_jobs_of_other_kinds_for_the_provider(
        self, live: Live, kind: JobKind, path: str
    ) -> None:
        place = live.place
        job = place.job(place.project("provider"), live.model, kind=kind)
        token = place.key(place.project("staff"), Scope.PROVIDER)
        place.session.commit()
        address = f"/v1/{path}/jobs/{job.id}/events/stream"
        assert live.client.get(address).status_code == 403
        with live.as_(token) as client, client.stream("GET", address) as response:
            assert next(events(response.iter_lines()))["event"] == "message"
            assert (
                client.get(live.path + "/stream", headers={"last-event-id": "x"}).status_code == 400
            )


class TestRefusals:
    def test_strangers_and_the_nameless(self, live: Live) -> None:
        place = live.place
        token = place.key(place.project("globex"), Scope.CUSTOMER)
        place.session.commit()
        with live.as_(token) as client:
            refused = client.get(live.path + "/stream")
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "job_not_found"
        with live.as_("wrong") as client:
            assert client.get(live.path + "/stream").status_code == 401

    @pytest.mark.parametrize("id", ["ftevent-x", "x" * 10_000])
    def test_an_event_that_is_not_the_jobs(self, live: Live, id: str) -> None:
        refused = live.client.get(live.path + "/stream", headers={"last-event-id": id})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "Last-Event-ID"


class TestBounds:
    def test_one_project_has_a_share_and_gets_it_back(self, live: Live) -> None:
        # A tenth of twenty.
        with (
            live.client.stream("GET", live.path + "/stream") as one,
            live.client.stream("GET", live.path + "/stream") as two,
        ):
            # Kept, for a reader that is forgotten closes its connection.
            readers = [one.iter_lines(), two.iter_lines()]
            assert [next(reader) for reader in readers] == [": connected"] * 2
            refused = live.client.get(live.path + "/stream")
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "too_many_streams"
        live.succeed()
        deadline = time.monotonic() + 5
        while live.client.get(live.path + "/stream").status_code == 429:
            assert time.monotonic() < deadline, "a stream whose reader has gone keeps its place"
            time.sleep(0.02)

    def test_all_together_have_a_limit(self) -> None:
        slots = Slots(2)
        with (
            slots.taken("a"),
            slots.taken("b"),
            pytest.raises(TooManyStreams),
            slots.taken("c"),
        ):
            pass
        with slots.taken("c"):
            pass

    def test_no_connection_is_held_while_it_waits(
        self, live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "POLL_SECONDS", 5.0)
        monkeypatch.setattr(service, "LOOK_AGAIN_SECONDS", 5.0)
        before = live.engine.pool.checkedout()  # type: ignore[attr-defined]
        with live.client.stream("GET", live.path + "/stream") as response:
            coming = events(response.iter_lines())
            next(coming)
            time.sleep(0.1)
            assert live.engine.pool.checkedout() == before  # type: ignore[attr-defined]

    def test_an_outage_ends_it_without_a_sound(
        self, live: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, looks = service.look_up, []

        def broken(*arguments: object) -> object:
            looks.append(threading.current_thread())
            if len(looks) > 1:
                raise service.SQLAlchemyError
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(service, "look_up", broken)
        monkeypatch.setattr(service, "LOOK_ANYWAY_SECONDS", 0.02)
        answer = live.client.get(live.path + "/stream")
        assert len(list(events(answer.iter_lines()))) == 1
        assert threading.main_thread() not in looks
