"""Moderation: which judge is asked, and that nothing but its judgements becomes a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.moderations.schemas import CATEGORIES
from models.model_version import ModelVersion, VersionKind
from models.settings import Settings
from tests.api.conftest import Place, Tenant

MODERATIONS = "/v1/moderations"
JUDGE = {"name": "toy", "revision": "1"}


class Judges:
    """Stands where the judges are; keeps what it was asked, and where."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.urls: list[str] = []
        self.answer: Callable[[], httpx.Response] = lambda: judged(None)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.content))
        self.urls.append(str(request.url))
        return self.answer()


def judged(*categories: str | None, harmful: object = None) -> httpx.Response:
    judgements = [
        {"is_harmful": bool(c) if harmful is None else harmful, "category": c} for c in categories
    ]
    return httpx.Response(200, json={"judge": JUDGE, "judgements": judgements})


@pytest.fixture
def judges(app: FastAPI) -> Judges:
    judges = Judges()
    app.state.serving = httpx.AsyncClient(
        transport=httpx.MockTransport(judges), base_url="http://serving"
    )
    return judges


def moderate(tenant: Tenant, given: object = "text", **facts: object) -> httpx.Response:
    response: httpx.Response = tenant.client.post(MODERATIONS, json={"input": given, **facts})
    return response


class TestWhichJudge:
    def test_anonymous_is_asked_for_a_key(self, anonymous: TestClient, judges: Judges) -> None:
        assert anonymous.post(MODERATIONS, json={"input": "x"}).status_code == 401
        assert judges.asked == []

    def test_the_only_base_s_when_nothing_is_set(
        self, customer: Tenant, aligned: ModelVersion, judges: Judges
    ) -> None:
        assert moderate(customer).status_code == 200
        exchange = {"prompt": "", "answer": "text"}
        assert judges.asked == [{"model": aligned.root_id, "exchanges": [exchange]}]
        assert judges.urls == ["http://serving/judgements"]

    def test_none_when_there_is_no_base_or_more_than_one(
        self, customer: Tenant, place: Place, judges: Judges
    ) -> None:
        for names in ([], ["a", "b"]):
            for name in names:
                place.version(name, VersionKind.BASE)
            place.session.commit()
            response = moderate(customer, model="omni-moderation-latest")
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "no_default_judge"
        assert moderate(customer, model="b").status_code == 200
        assert [asked["model"] for asked in judges.asked] == ["b"]

    def test_the_one_that_is_set(
        self,
        app: FastAPI,
        settings: Settings,
        customer: Tenant,
        aligned: ModelVersion,
        judges: Judges,
    ) -> None:
        app.state.settings = settings.model_copy(
            update={"moderation_model": aligned.id, "moderation_url": "http://judges:1/"}
        )
        assert moderate(customer).status_code == 200
        assert judges.asked[0]["model"] == aligned.id
        assert judges.urls == ["http://judges:1/judgements"]
        app.state.settings = settings.model_copy(update={"moderation_model": "gone"})
        response = moderate(customer)
        assert (response.status_code, response.json()["error"]["code"]) == (
            503,
            "judge_misconfigured",
        )

    def test_another_tenant_s_model_is_not_found(
        self,
        customer: Tenant,
        stranger: Tenant,
        aligned: ModelVersion,
        place: Place,
        judges: Judges,
    ) -> None:
        place.version("ft:a/b::c", VersionKind.TUNED, parent=aligned, project=customer.project)
        place.session.commit()
        assert moderate(customer, model="ft:a/b::c").status_code == 200
        response = moderate(stranger, model="ft:a/b::c")
        assert response.json()["error"]["code"] == "model_not_found"
        assert len(judges.asked) == 1


class TestResult:
    @pytest.mark.parametrize(
        ("category", "flagged", "further"),
        [
            (None, set(), set()),
            ("violence", {"violence"}, set()),
            ("break-ins", {"break-ins"}, {"break-ins"}),
        ],
    )
    def test_all_categories_and_the_judge_s_own(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        judges: Judges,
        category: str | None,
        flagged: set[str],
        further: set[str],
    ) -> None:
        judges.answer = lambda: judged(category)
        body = moderate(customer).json()
        (result,) = body["results"]
        assert result["flagged"] is bool(flagged)
        assert set(result["categories"]) == {*CATEGORIES, *further}
        assert {name for name, is_so in result["categories"].items() if is_so} == flagged
        assert {name for name, score in result["category_scores"].items() if score} == flagged
        assert set(result["category_applied_input_types"]) == set(result["categories"])
        assert (body["model"], body["judge"]) == ("toy", JUDGE)

    def test_harm_without_a_name_is_flagged_too(
        self, customer: Tenant, aligned: ModelVersion, judges: Judges
    ) -> None:
        judges.answer = lambda: judged(None, harmful=True)
        (result,) = moderate(customer).json()["results"]
        assert (result["flagged"], result["categories"]["harmful"]) == (True, True)

    def test_what_was_asked_about_is_not_harm(
        self, customer: Tenant, aligned: ModelVersion, judges: Judges
    ) -> None:
        judges.answer = lambda: judged("violence", harmful=False)
        (result,) = moderate(customer).json()["results"]
        assert result["flagged"] is False
        assert not any(result["categories"].values())

    @pytest.mark.parametrize(
        "answer",
        [
            lambda: judged(),
            lambda: judged(None, None),
            lambda: judged(None, harmful="no"),
            lambda: httpx.Response(200, json={"judgements": [{"is_harmful": False}]}),
            lambda: httpx.Response(200, json={}),
            lambda: httpx.Response(200, content=b"<html>"),
            lambda: httpx.Response(404, json={"error": {"message": "m", "code": "x"}}),
            lambda: httpx.Response(
                404, json={"judge": JUDGE, "judgements": [{"is_harmful": False, "category": None}]}
            ),
            lambda: httpx.Response(500, json={"error": {}}),
        ],
    )
    def test_anything_else_is_an_error_and_no_verdict(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        judges: Judges,
        answer: Callable[[], httpx.Response],
    ) -> None:
        judges.answer = answer
        response = moderate(customer)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "serving_unavailable"

    def test_a_judge_that_failed_is_told(
        self, customer: Tenant, aligned: ModelVersion, judges: Judges
    ) -> None:
        fault = {"message": "m", "type": "server_error", "param": None, "code": "judge_failed"}
        judges.answer = lambda: httpx.Response(503, json={"error": fault})
        response = moderate(customer)
        assert (response.status_code, response.json()["error"]) == (503, fault)


class TestInput:
    @pytest.mark.parametrize(
        ("given", "facts", "param"),
        [
            ([], {}, "input"),
            (["x"] * 129, {}, "input"),
            ("x" * 100_001, {}, "input"),
            (None, {}, "input"),
            ([1], {}, "input[0]"),
            ([{"type": "text", "text": "x"}, "y"], {}, "input[0]"),
            (["x", "y"], {"prompts": ["a"]}, "prompts"),
            ("x", {"misspelt": 1}, "misspelt"),
            ("x", {"model": ""}, "model"),
        ],
    )
    def test_a_faulty_field_is_named(
        self,
        app: FastAPI,
        customer: Tenant,
        aligned: ModelVersion,
        judges: Judges,
        given: object,
        facts: dict[str, object],
        param: str,
    ) -> None:
        response = moderate(customer, given, **facts)
        assert response.status_code in (400, 413)
        if response.status_code == 400:
            assert (response.json()["error"]["param"] or "").startswith(param[:5])
        assert judges.asked == []

    def test_prompts_make_exchanges(
        self, customer: Tenant, aligned: ModelVersion, judges: Judges
    ) -> None:
        judges.answer = lambda: judged(None, None)
        assert moderate(customer, ["a", "b"], prompts=["p", "q"]).status_code == 200
        assert judges.asked[0]["exchanges"] == [
            {"prompt": "p", "answer": "a"},
            {"prompt": "q", "answer": "b"},
        ]
