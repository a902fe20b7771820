"""API keys: shown once, kept as a hash, dead when revoked."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from models.api_key import TOKEN_PREFIX, create_key, find_key
from models.base import utc_now
from models.errors import Unauthorized
from models.scope import Scope
from tests.models.factories import make_project

BOTH = frozenset(Scope)


class TestCreateKey:
    def test_only_the_hash_is_kept(self, session: Session) -> None:
        key, token = create_key(session, make_project(session), "laptop", BOTH)
        stored = session.execute(text("select to_jsonb(k)::text from api_keys k")).scalars().all()
        assert len(stored) == 1
        assert token not in stored[0]
        assert token.removeprefix(TOKEN_PREFIX) not in stored[0]
        assert key.token_sha256 in stored[0]
        assert token.endswith(key.hint)
        assert len(key.hint) == 4

    def test_tokens_are_long_and_differ(self, session: Session) -> None:
        project = make_project(session)
        tokens = {create_key(session, project, "k", BOTH)[1] for _ in range(20)}
        assert len(tokens) == 20
        assert all(len(token) >= len(TOKEN_PREFIX) + 43 for token in tokens)

    def test_scopes_read_back_as_words(self, session: Session) -> None:
        key, token = create_key(session, make_project(session), "k", frozenset({Scope.CUSTOMER}))
        session.expire(key)
        assert find_key(session, token).scopes == ["customer"]
        assert Scope.CUSTOMER in key.scopes
        assert Scope.OPERATOR not in key.scopes


class TestFindKey:
    def test_gives_the_key_and_its_project(self, session: Session) -> None:
        project = make_project(session)
        key, token = create_key(session, project, "k", BOTH)
        session.expunge_all()
        found = find_key(session, token)
        assert found.id == key.id
        assert found.project.id == project.id
        assert found.project.organization_id == "org-" + project.id.removeprefix("proj-")

    def test_a_revoked_key_is_dead(self, session: Session) -> None:
        key, token = create_key(session, make_project(session), "k", BOTH)
        key.revoked_at = utc_now()
        with pytest.raises(Unauthorized):
            find_key(session, token)

    def test_nothing_but_the_token_opens(self, session: Session) -> None:
        key, token = create_key(session, make_project(session), "k", BOTH)
        wrong = ["", TOKEN_PREFIX, key.token_sha256, key.id, token[:-1], token + " ", token.upper()]
        for attempt in [*wrong, "\x00", "\ud800", "' or 1=1 --", "k" * 100_000]:
            with pytest.raises(Unauthorized) as caught:
                find_key(session, attempt)
            assert caught.value.status_code == 401
            assert token not in caught.value.message
