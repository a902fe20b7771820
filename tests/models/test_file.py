"""Files: each project sees its own, and rows with the same bytes share them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from models.base import utc_now
from models.file import FileNotFound, get_file, get_held_file
from tests.models.factories import make_file, make_project


def test_a_file_is_its_project_s_own(session: Session) -> None:
    owner, stranger = make_project(session), make_project(session)
    file = make_file(session, owner)
    assert get_file(session, owner.id, file.id) is file
    with pytest.raises(FileNotFound):
        get_file(session, stranger.id, file.id)


def test_a_deleted_file_is_gone(session: Session) -> None:
    owner = make_project(session)
    file = make_file(session, owner, deleted_at=utc_now())
    with pytest.raises(FileNotFound):
        get_file(session, owner.id, file.id)


def test_an_expired_file_is_gone_but_for_the_job_that_holds_it(session: Session) -> None:
    owner, stranger = make_project(session), make_project(session)
    file = make_file(session, owner, expires_at=utc_now() + timedelta(minutes=1))
    assert get_file(session, owner.id, file.id) is file
    file.expires_at = utc_now()
    session.flush()
    with pytest.raises(FileNotFound):
        get_file(session, owner.id, file.id)
    assert get_held_file(session, owner.id, file.id) is file
    with pytest.raises(FileNotFound):
        get_held_file(session, stranger.id, file.id)
    file.deleted_at = utc_now()
    session.flush()
    with pytest.raises(FileNotFound):
        get_held_file(session, owner.id, file.id)


def test_equal_bytes_have_one_place(session: Session) -> None:
    one, two = (make_file(session, make_project(session)) for _ in range(2))
    assert one.id != two.id
    assert one.storage_key == two.storage_key == f"files/ab/{'ab' * 32}"


def test_a_file_larger_than_32_bits_can_count(session: Session) -> None:
    owner = make_project(session)
    file = make_file(session, owner, bytes=5 * 2**30)
    session.expire(file)
    assert get_file(session, owner.id, file.id).bytes == 5 * 2**30
