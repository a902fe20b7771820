"""Settings: the operators' names, bounds, and nothing misspelt or secret let slip."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from models.settings import CLIENT_VARIABLES, Settings, environment_names


class TestNames:
    @pytest.mark.parametrize("name", ["database_url", "redis_url", "storage_url"])
    def test_the_three_addresses_have_no_prefix(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(name.upper(), "elsewhere://x")
        assert getattr(Settings(), name) == "elsewhere://x"

    def test_all_others_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TITER_LEASE_SECONDS", "33")
        monkeypatch.setenv("TITER_CACHE_DIR", "/a b/c")
        monkeypatch.setenv("LEASE_SECONDS", "44")
        settings = Settings()
        assert settings.lease_seconds == 33
        assert settings.cache_dir == Path("/a b/c")

    def test_every_setting_has_one_variable(self) -> None:
        assert sorted(environment_names().values()) == sorted(Settings.model_fields)

    @pytest.mark.parametrize("name", ["TITER_LEASE_SECOND", "TITER_DATABASE_URL", "TITER_"])
    def test_a_misspelt_variable_is_named(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name, "zebra-7719")
        with pytest.raises(ValidationError, match=f"no setting is called {name}") as caught:
            Settings()
        assert "zebra-7719" not in str(caught.value)

    def test_the_command_line_s_own_variables_are_let_be(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in CLIENT_VARIABLES:
            monkeypatch.setenv(name, "x")
        Settings()

    def test_keywords_are_checked_too(self) -> None:
        assert Settings(database_url="postgresql://x").database_url == "postgresql://x"
        with pytest.raises(ValidationError):
            Settings(leese_seconds=5)  # type: ignore[call-arg]


class TestBounds:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MAX_FILE_BYTES", "0"),
            ("MAX_REQUEST_BYTES", "0"),
            ("LEASE_SECONDS", "3"),
            ("LEASE_SECONDS", "a minute"),
            ("MAX_ATTEMPTS", "0"),
            ("SWEEP_SECONDS", "0"),
            ("SWEEP_SECONDS", "nan"),
            ("VISIBILITY_TIMEOUT_SECONDS", "59"),
            ("LOG_LEVEL", "LOUD"),
            ("ADAPTER_EXPORT", "sometimes"),
            ("SIGNING_KEY", "ab" * 31),
            ("SIGNING_KEY", "AB" * 32),
            ("SIGNING_KEY", "ab" * 32 + "\n"),
            ("LOG_JSON", "perhaps"),
        ],
    )
    def test_nonsense_is_refused_at_the_start(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(f"TITER_{name}", value)
        with pytest.raises(ValidationError):
            Settings()

    def test_cannot_be_changed_later(self) -> None:
        with pytest.raises(ValidationError):
            Settings().lease_seconds = 5  # type: ignore[misc]


def test_secrets_stay_out_of_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "zebra-7719"
    monkeypatch.setenv("DATABASE_URL", f"postgresql://titer:{secret}@db/titer")
    monkeypatch.setenv("REDIS_URL", f"redis://:{secret}@redis/0")
    monkeypatch.setenv("TITER_SERVING_TOKEN", secret)
    monkeypatch.setenv("TITER_SESSION_SECRET", secret)
    monkeypatch.setenv("TITER_SIGNING_KEY", "ab" * 32)
    assert secret not in repr(Settings())
    assert "abab" not in repr(Settings())


SIGN_IN = {
    "TITER_OIDC_ISSUER": "https://sso.example/realms/main",
    "TITER_OIDC_CLIENT_ID": "titer",
    "TITER_OIDC_ROLES": '{"titer-ops": "operator"}',
    "TITER_PUBLIC_URL": "https://titer.example",
}


class TestSignInElsewhere:
    def read(self, monkeypatch: pytest.MonkeyPatch, **changed: str) -> Settings:
        for name, value in {**SIGN_IN, **changed}.items():
            monkeypatch.setenv(name, value)
        return Settings()

    def test_groups_are_mapped_to_roles(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = self.read(monkeypatch, TITER_OIDC_DOMAINS=" Northwind.example, ,other.example")
        assert settings.oidc_roles == {"titer-ops": "operator"}
        assert settings.allowed_domains == {"northwind.example", "other.example"}

    @pytest.mark.parametrize("name", sorted(set(SIGN_IN) - {"TITER_OIDC_ISSUER"}))
    def test_half_of_it_is_refused(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        empty = "{}" if name == "TITER_OIDC_ROLES" else ""
        with pytest.raises(ValidationError, match=f"needs {name} as well"):
            self.read(monkeypatch, **{name: empty})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("TITER_OIDC_ROLES", '{"everybody": "customer"}'),
            ("TITER_OIDC_ROLES", '{"everybody": "admin"}'),
            ("TITER_OIDC_ISSUER", "http://sso.example"),
            ("TITER_OIDC_ISSUER", "ftp://sso.example"),
            ("TITER_PUBLIC_URL", "https://titer.example/path"),
            ("TITER_OIDC_SESSION_SECONDS", "86400"),
        ],
    )
    def test_what_would_not_be_safe_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        with pytest.raises(ValidationError):
            self.read(monkeypatch, **{name: value})

    def test_a_provider_on_this_machine_may_do_without_tls(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.read(monkeypatch, TITER_OIDC_ISSUER="http://127.0.0.1:5556/dex").oidc_issuer
