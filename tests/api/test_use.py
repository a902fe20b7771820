"""Use of quotas over all projects: the count agrees with each quota's own measure, and finds who is near a limit."""

from __future__ import annotations

import threading
from datetime import timedelta

from sqlalchemy import update
from sqlalchemy.orm import sessionmaker

from api import sweeper
from api.organization.quotas import show_use
from api.organization.use import (
    SWEEPER_GONE_AFTER,
    Use,
    count_use,
    last_count,
    most_stored,
    nearest_limits,
)
from models.base import utc_now
from models.job import JobStatus
from models.model_version import ModelVersion
from models.project import Project, Quotas
from models.project_use import ProjectUse
from models.session import make_engine
from models.settings import Settings
from models.storage import Storage
from tests.api.conftest import NOWHERE, Place
from tests.models.factories import make_file, make_project


def near(place: Place, **defaults: int) -> list[Use]:
    return nearest_limits(place.session, Quotas(**defaults), from_percent=80, at_most=10)


class TestCount:
    def test_is_what_each_quota_measures(self, place: Place, aligned: ModelVersion) -> None:
        busy, idle = place.project("busy"), place.project("idle")
        now = utc_now()
        place.job(busy, aligned, trained_tokens=700)
        place.job(
            busy,
            aligned,
            status=JobStatus.RUNNING,
            lease_expires_at=now + timedelta(minutes=1),
            claimed_at=now - timedelta(minutes=5),
        )
        place.job(busy, aligned, status=JobStatus.SUCCEEDED, finished_at=now, gpu_seconds=90.0)
        last_year = now - timedelta(days=400)
        place.job(
            busy, aligned, status=JobStatus.SUCCEEDED, finished_at=last_year, trained_tokens=9
        )
        make_file(place.session, busy, bytes=5_000_000_000)
        make_file(place.session, busy, bytes=7, deleted_at=now)
        assert count_use(place.session) >= 2
        for project in (busy, idle):
            counted = place.session.get_one(ProjectUse, project.id)
            measured = show_use(place.session, project.id)
            # The running job's seconds go on between the two.
            assert abs(counted.gpu_seconds_month - measured.pop("gpu_seconds_month")) <= 1
            assert {quota: getattr(counted, quota) for quota in measured} == measured
        assert place.session.get_one(ProjectUse, busy.id).bytes_stored == 5_000_000_000
        assert place.session.get_one(ProjectUse, busy.id).gpu_seconds_month >= 390

    def test_again_replaces_the_earlier_one(self, place: Place) -> None:
        project = place.project()
        file = make_file(place.session, project, bytes=10)
        count_use(place.session)
        file.deleted_at = utc_now()
        place.session.flush()
        count_use(place.session)
        counted = place.session.get_one(ProjectUse, project.id, populate_existing=True)
        assert counted.bytes_stored == 0

    def test_is_made_by_the_sweeper_which_so_shows_that_it_lives(
        self, database_url: str, storage: Storage
    ) -> None:
        engine = make_engine(database_url)
        sessions = sessionmaker(engine)
        with sessions.begin() as session:
            make_project(session)
            assert last_count(session) is None
        settings = NOWHERE.model_copy(
            update={"database_url": database_url, "storage_url": storage.url, "sweep_seconds": 0.01}
        )
        stop = threading.Event()
        thread = threading.Thread(
            target=sweeper.run, args=(Settings.model_validate(settings), stop)
        )
        thread.start()
        try:
            for _ in range(500):
                with sessions() as session:
                    counted = last_count(session)
                if counted is not None or stop.wait(0.02):
                    break
        finally:
            stop.set()
            thread.join()
        engine.dispose()
        assert counted is not None
        assert utc_now() - counted < SWEEPER_GONE_AFTER


class TestNearestLimits:
    def test_own_limit_stands_before_the_default(self, place: Place) -> None:
        own = Project(name="own", quota_bytes_stored=1_000)
        place.session.add(own)
        other, unlimited = place.project("other"), Project(name="free", quota_bytes_stored=0)
        place.session.add(unlimited)
        place.session.flush()
        for project, size in ((own, 900), (other, 85), (unlimited, 10**9)):
            make_file(place.session, project, bytes=size)
        count_use(place.session)
        assert near(place, bytes_stored=100) == [
            Use(own.id, "own", "bytes_stored", 900, 1_000),
            Use(other.id, "other", "bytes_stored", 85, 100),
        ]
        assert near(place) == [Use(own.id, "own", "bytes_stored", 900, 1_000)]

    def test_leaves_out_what_has_room_and_whoever_is_archived(self, place: Place) -> None:
        small, gone = place.project("small"), place.project("gone")
        make_file(place.session, small, bytes=79)
        make_file(place.session, gone, bytes=100)
        gone.archived_at = utc_now()
        count_use(place.session)
        assert near(place, bytes_stored=100) == []

    def test_more_than_the_limit_is_more_than_all(self, place: Place) -> None:
        project = place.project()
        make_file(place.session, project, bytes=150)
        count_use(place.session)
        assert [use.percent for use in near(place, bytes_stored=100)] == [150.0]

    def test_a_default_may_be_large(self, place: Place) -> None:
        project = place.project()
        make_file(place.session, project, bytes=90 * 10**9)
        count_use(place.session)
        assert [use.percent for use in near(place, bytes_stored=100 * 10**9)] == [90.0]

    def test_running_jobs_are_no_pressure(self, place: Place) -> None:
        project = place.project()
        count_use(place.session)
        place.session.execute(
            update(ProjectUse).where(ProjectUse.project_id == project.id).values(jobs_running=2)
        )
        assert near(place, jobs_running=2) == []


def test_most_stored_comes_first(place: Place) -> None:
    for name, size in (("a", 10), ("b", 30), ("c", 20), ("none", 0)):
        make_file(place.session, place.project(name), bytes=size)
    count_use(place.session)
    found = most_stored(place.session, Quotas(bytes_stored=40), at_most=2)
    assert [(use.project_name, use.used, use.percent) for use in found] == [
        ("b", 30, 75.0),
        ("c", 20, 50.0),
    ]
