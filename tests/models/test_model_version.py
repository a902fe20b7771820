"""Model versions: who may know of which, and what the table refuses."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.base import utc_now
from models.model_version import Gate, ModelNotFound, ModelVersion, VersionKind, get_version
from tests.models.factories import make_project, make_version


class TestGetVersion:
    def test_everyone_knows_the_provider_s_versions(self, session: Session) -> None:
        aligned = make_version(session)
        for project_id in (None, make_project(session).id):
            assert get_version(session, aligned.id, project_id=project_id) is aligned

    def test_a_tuned_version_is_its_project_s_own(self, session: Session) -> None:
        owner, stranger = make_project(session), make_project(session)
        tuned = make_version(session, owner)
        assert get_version(session, tuned.id, project_id=owner.id) is tuned
        with pytest.raises(ModelNotFound) as caught:
            get_version(session, tuned.id, project_id=stranger.id)
        assert caught.value.status_code == 404

    def test_a_stranger_s_version_reads_like_an_absent_one(self, session: Session) -> None:
        tuned = make_version(session, make_project(session))
        stranger = make_project(session)
        with pytest.raises(ModelNotFound) as hidden:
            get_version(session, tuned.id, project_id=stranger.id)
        session.delete(tuned)
        session.flush()
        with pytest.raises(ModelNotFound) as absent:
            get_version(session, tuned.id, project_id=stranger.id)
        assert hidden.value.message == absent.value.message

    def test_an_operator_sees_every_project_s(self, session: Session) -> None:
        tuned = make_version(session, make_project(session))
        assert get_version(session, tuned.id, project_id=None) is tuned

    def test_a_deleted_version_is_gone_for_all(self, session: Session) -> None:
        owner = make_project(session)
        tuned = make_version(session, owner)
        tuned.deleted_at = utc_now()
        for project_id in (None, owner.id):
            with pytest.raises(ModelNotFound):
                get_version(session, tuned.id, project_id=project_id)

    def test_the_gate_does_not_hide_a_version_from_its_owner(self, session: Session) -> None:
        owner = make_project(session)
        for gate in Gate:
            version = make_version(session, owner, gate=gate)
            assert get_version(session, version.id, project_id=owner.id).is_released == (
                gate == Gate.RELEASED
            )

    def test_a_long_name_is_not_echoed_whole(self, session: Session) -> None:
        with pytest.raises(ModelNotFound) as caught:
            get_version(session, "m" * 10_000, project_id=None)
        assert len(caught.value.message) < 200


class TestTable:
    def test_a_new_version_is_pending(self, session: Session) -> None:
        version = ModelVersion(
            id="b", kind=VersionKind.BASE, root_id="b", source={}, safety_prefix="s"
        )
        session.add(version)
        session.flush()
        assert version.gate == Gate.PENDING
        assert not version.is_released

    @pytest.mark.parametrize(
        ("kind", "has_owner"),
        [(VersionKind.TUNED, False), (VersionKind.ALIGNED, True), (VersionKind.BASE, True)],
    )
    def test_tuned_versions_and_no_others_have_an_owner(
        self, session: Session, kind: VersionKind, has_owner: bool
    ) -> None:
        owner = make_project(session) if has_owner else None
        with pytest.raises(IntegrityError, match="ck_model_versions_owner"):
            make_version(session, owner, kind=kind)

    def test_unknown_gates_are_refused(self, session: Session) -> None:
        version = make_version(session)
        version.gate = "open"
        with pytest.raises(IntegrityError, match="ck_model_versions_gate"):
            session.flush()
