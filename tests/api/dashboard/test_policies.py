"""The pages of policies: versions, the form with its errors, the dry run and its picture, and who may change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.dashboard.policies.flow import GAP, draw_flow
from api.dashboard.policies.rules import RULES, from_form, in_words, to_form
from api.seed.states import seed_policy
from models.audit import AuditEntry
from models.policy import PolicyRules, SafetyPolicy, current_policy
from tests.api.dashboard.conftest import House, SignIn, csrf, text_of

pytestmark = pytest.mark.long

POLICIES = "/dashboard/policies"


@pytest.fixture
def session(house: House) -> Iterator[Session]:
    with house.session() as session:
        yield session


@pytest.fixture
def operator(app: FastAPI, house: House, sign_in: SignIn) -> TestClient:
    return sign_in(house.provider.operator_token)


@pytest.fixture
def reviewer(app: FastAPI, house: House, sign_in: SignIn) -> TestClient:
    return sign_in(house.staff.reviewer)


def filled(**changed: str) -> dict[str, str]:
    return to_form(PolicyRules()) | changed


def post(client: TestClient, address: str, **form: str) -> tuple[int, str]:
    token = csrf(client.get(POLICIES))
    answer = client.post(f"{POLICIES}{address}", data={"csrf": token, **form})
    return answer.status_code, answer.headers.get("location", "")


class TestRules:
    @pytest.mark.parametrize(
        "rules",
        [
            PolicyRules(),
            PolicyRules(
                max_harmful_score=12.5,
                category_limits={"locks": 10, "a: b": 0.5},
                max_tenant_risk=120,
                release_approvals=2,
                data_action="drop",
                max_harmful_share=1,
            ),
        ],
    )
    def test_a_form_gives_back_what_it_was_filled_with(self, rules: PolicyRules) -> None:
        assert from_form(to_form(rules)) == (rules, {})

    def test_every_rule_has_a_field_and_a_sentence(self) -> None:
        assert {rule.name for rule in RULES} == set(PolicyRules.model_fields)
        said = " ".join(
            sentence for part in in_words(PolicyRules(min_prompts=77)).values() for sentence in part
        )
        assert "fewer than 77 harmful prompts" in said

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("max_harmful_score", "101", "Enter a number: 0 to 100."),
            ("max_harmful_score", "much", "Enter a number: 0 to 100."),
            ("max_harmful_score", "nan", "Enter a number: 0 to 100."),
            ("max_harmful_score", "", "Enter a value: 0 to 100."),
            ("min_prompts", "1.5", "Enter a whole number: at least 1."),
            ("review_hours", "0", "Enter a number: more than 0 to 8,760."),
            ("release_approvals", "3", "Choose one of these."),
            ("data_action", "burn", "Choose one of these."),
            ("category_limits", "locks 10", "Line 1: write a category and a percentage"),
            ("category_limits", "a: 1\n\nb: x", "Each limit is a percentage from 0 to 100."),
            ("category_limits", "a: 1\na: 2", "Line 2: the category a has a limit already."),
            ("max_tenant_risk", "-1", "Enter a number: 0 to 1,000,000; empty: never."),
        ],
    )
    def test_errors_say_what_may_be_entered(self, name: str, value: str, error: str) -> None:
        rules, errors = from_form(filled(**{name: value}))
        assert rules is None
        assert list(errors) == [name]
        assert errors[name].startswith(error)

    def test_a_decimal_comma_is_a_point(self) -> None:
        rules, _ = from_form(filled(max_harmful_score="12,5"))
        assert rules is not None
        assert rules.max_harmful_score == 12.5

    def test_bounds_are_those_of_the_service(self) -> None:
        by_name = {rule.name: rule.bounds for rule in RULES}
        assert by_name["row_threshold"] == "more than 0 to 1"
        assert by_name["max_harmful_share"] == "0 to 100; empty: never"


class TestFlow:
    def test_bars_hold_what_flows_through_them(self) -> None:
        flow = draw_flow({"released": {"released": 80, "held": 15}, "held": {"blocked": 5}})
        assert [(bar.gate, bar.count) for bar in flow.left] == [("released", 95), ("held", 5)]
        assert [(bar.gate, bar.count) for bar in flow.right] == [
            ("released", 80),
            ("held", 15),
            ("blocked", 5),
        ]
        assert flow.left[0].height == pytest.approx(19 * flow.left[1].height)
        for side in (flow.left, flow.right):
            for above, below in pairwise(side):
                assert below.y == pytest.approx(above.y + above.height + GAP)
        # What changes lies above what stays.
        assert [band.is_change for band in flow.bands] == [False, True, True]

    def test_one_among_thousands_can_be_seen(self) -> None:
        flow = draw_flow({"released": {"released": 9_999, "blocked": 1}})
        assert flow.right[-1].height >= 2

    def test_nothing_is_no_picture(self) -> None:
        assert draw_flow({}).bands == ()


class TestList:
    def test_what_is_in_force_comes_first(self, operator: TestClient) -> None:
        text = text_of(operator.get(POLICIES).text)
        in_force, versions = text.split("In force", 1)[1].split("Every version", 1)
        assert re.search(r"policy-1 In force The service the default rules", in_force)
        assert re.search(
            r"policy-2 In force Harbour Legal Reviewers for a release two reviewers", in_force
        )
        assert versions.index("policy-2") < versions.index("policy-1")
        assert "by on-call" in versions

    def test_pages_without_gap_or_repeat(
        self,
        operator: TestClient,
        house: House,
        session: Session,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("api.dashboard.policies.policy_pages.PAGE_SIZE", 2)
        for _ in range(3):
            seed_policy(session, house.provider, {}, activate=False)
        session.commit()
        seen, address = [], POLICIES
        while address:
            html = operator.get(address).text.split("Every version")[-1]
            seen += re.findall(rf'href="{POLICIES}/(policy-\d+)"', html)
            older = re.search(r'href="([^"]+)">Older', html)
            address = older[1] if older else ""
        assert seen == [f"policy-{number}" for number in (5, 4, 3, 2, 1)]

    def test_costs_the_same_queries_however_long(
        self, operator: TestClient, house: House, session: Session, statements: list[str]
    ) -> None:
        operator.get(POLICIES)
        statements.clear()
        operator.get(POLICIES)
        before = len(statements)
        for project in (house.provider.customer.project, None, None):
            seed_policy(session, house.provider, {"min_prompts": 60}, project=project)
        session.commit()
        statements.clear()
        operator.get(POLICIES)
        assert len(statements) == before


class TestPage:
    def test_says_its_rules_in_words_and_what_decides_today(
        self, operator: TestClient, house: House, session: Session
    ) -> None:
        seed_policy(
            session, house.provider, {"max_harmful_score": 8}, activate=False, note="Stricter."
        )
        session.commit()
        text = text_of(operator.get(f"{POLICIES}/policy-3").text)
        assert "is within 8%, blocked if all of it is above" in text
        assert "Not in force" in text
        assert re.search(r"Decides today policy-1", text)
        assert re.search(r"Harmful score 15% 8% 10 rules are the same", text)
        assert re.search(r"Created by on-call, .*? Stricter\.", text)

    def test_unknown_version_is_no_page(self, operator: TestClient) -> None:
        assert operator.get(f"{POLICIES}/policy-99").status_code == 404


class TestDryRun:
    def test_of_a_stored_version_shows_picture_table_and_models(
        self, operator: TestClient, house: House, session: Session
    ) -> None:
        seed_policy(session, house.provider, {"max_harmful_score": 8}, activate=False)
        session.commit()
        html = operator.get(f"{POLICIES}/policy-3?dry_run=1").text
        text = text_of(html)
        # Of the projects that have a policy of their own none is among them.
        assert re.search(r"2 of 7 decisions would be another", text)
        assert 'aria-label="2 released then, released now. ' in html
        assert re.search(r"Released Held 1 .*?Held Blocked 1", text)
        assert "ft:sandbox-base:acme:tickets:R4kd92Lm" in text
        assert "cannot be told from the limit of 8%" in text
        assert "harbour" not in html.split("Dry run")[-1]
        assert (
            "Training files that judges have read Then Now Files Allowed Allowed as before 1"
            in text
        )

    def test_of_a_projects_version_is_about_its_models_alone(self, operator: TestClient) -> None:
        text = text_of(operator.get(f"{POLICIES}/policy-2?dry_run=1").text)
        assert re.search(r"0 of 2 decisions would be another", text)

    def test_pages_of_models(
        self,
        operator: TestClient,
        house: House,
        session: Session,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("api.dashboard.policies.policy_pages.CHANGES_SHOWN", 1)
        seed_policy(session, house.provider, {"max_harmful_score": 8}, activate=False)
        session.commit()
        seen, address = [], f"{POLICIES}/policy-3?dry_run=1"
        while address:
            html = operator.get(address).text
            seen += re.findall(r'id="change-([^"]+)"', html)
            further = re.search(r'href="([^"#]+)#[^"]*">Further changes', html)
            address = further[1].replace("&amp;", "&") if further else ""
        assert len(seen) == len(set(seen)) == 2

    def test_says_so_when_there_is_nothing_to_try_on(
        self, operator: TestClient, house: House, session: Session
    ) -> None:
        project = house.provider.operator.project
        html = operator.get(f"{POLICIES}/new", params={**filled(), "project": project.id}).text
        assert "There is nothing to try them on." in html


class TestForm:
    def test_begins_with_what_decides_today(self, operator: TestClient) -> None:
        html = operator.get(f"{POLICIES}/new").text
        assert re.search(r'name="max_harmful_score"[^>]* value="15"', html)
        assert "Dry run" not in text_of(html).split("Nothing is saved")[1]

    def test_begins_with_another_version_when_asked(
        self, operator: TestClient, house: House, session: Session
    ) -> None:
        seed_policy(session, house.provider, {"max_harmful_score": 8}, activate=False)
        session.commit()
        html = operator.get(f"{POLICIES}/new?start=policy-3").text
        assert re.search(r'name="max_harmful_score"[^>]* value="8"', html)

    def test_has_bounds_and_help_tied_to_every_field(self, operator: TestClient) -> None:
        html = operator.get(f"{POLICIES}/new").text
        for rule in RULES:
            assert f'<label for="{rule.name}">' in html
            assert f'aria-describedby="{rule.name}-help"' in html
            assert f'id="{rule.name}-help"' in html

    def test_errors_stand_beside_their_fields(self, operator: TestClient) -> None:
        answer = operator.get(
            f"{POLICIES}/new", params=filled(max_harmful_score="800", min_prompts="0")
        )
        assert answer.status_code == 400
        assert 'aria-describedby="max_harmful_score-help max_harmful_score-error"' in answer.text
        assert re.search(r'value="800"[^>]*aria-invalid="true"', answer.text)
        assert "2 fields need another value." in answer.text
        assert "Save as a new version" not in answer.text

    def test_trying_compares_draws_and_stores_nothing(
        self, operator: TestClient, session: Session
    ) -> None:
        answer = operator.get(f"{POLICIES}/new", params=filled(max_harmful_score="8"))
        text = text_of(answer.text)
        assert re.search(r"Rule policy-1 New Harmful score 15% 8%", text)
        assert "decisions would be another" in text
        assert session.scalar(select(func.count()).select_from(SafetyPolicy)) == 2

    def test_unknown_project_is_not_found(self, operator: TestClient) -> None:
        assert operator.get(f"{POLICIES}/new?project=proj-none").status_code == 404


class TestChange:
    def test_saves_a_version_that_does_not_rule_yet(
        self, operator: TestClient, session: Session
    ) -> None:
        status, address = post(operator, "", note="Stricter.", **filled(max_harmful_score="8"))
        assert (status, address) == (303, f"{POLICIES}/policy-3")
        assert current_policy(session).version == 1
        made = session.get_one(SafetyPolicy, 3)
        assert (made.parsed().max_harmful_score, made.note) == (8, "Stricter.")

    def test_saves_and_puts_in_force_for_a_project(
        self, operator: TestClient, house: House, session: Session
    ) -> None:
        project = house.provider.customer.project.id
        post(operator, "", note="Theirs.", project=project, activate="true", **filled())
        assert current_policy(session, project).version == 3
        assert current_policy(session).version == 1

    def test_faulty_rules_are_not_saved(self, operator: TestClient, session: Session) -> None:
        assert post(operator, "", note="x", **filled(min_prompts="0"))[0] == 400
        assert post(operator, "", note="", **filled())[0] == 400
        assert session.scalar(select(func.count()).select_from(SafetyPolicy)) == 2

    def test_activates_and_deactivates_with_a_reason(
        self, operator: TestClient, house: House, session: Session
    ) -> None:
        other = house.provider.other.id
        assert post(operator, "/policy-2/deactivate", reason="No longer asked for.")[0] == 303
        assert current_policy(session, other).version == 1
        assert post(operator, "/policy-2/activate", reason="Asked for again.")[0] == 303
        assert current_policy(session, other).version == 2
        said = session.scalars(
            select(AuditEntry.reason).order_by(AuditEntry.position.desc()).limit(2)
        ).all()
        assert said == ["Asked for again.", "No longer asked for."]

    def test_the_services_policy_cannot_be_taken_out_of_force(self, operator: TestClient) -> None:
        assert "/deactivate" not in operator.get(f"{POLICIES}/policy-1").text
        assert post(operator, "/policy-1/deactivate", reason="x")[0] == 409

    def test_needs_a_reason_and_the_form_token(
        self, operator: TestClient, session: Session
    ) -> None:
        assert post(operator, "/policy-2/deactivate", reason="")[0] == 400
        forged = operator.post(
            f"{POLICIES}/policy-2/deactivate", data={"csrf": "guess", "reason": "x"}
        )
        assert forged.status_code == 403
        assert session.get_one(SafetyPolicy, 2).activated_at is not None


class TestWhoMay:
    def test_reviewers_see_and_try_and_change_nothing(
        self, reviewer: TestClient, session: Session
    ) -> None:
        assert "Edit as a new version" not in reviewer.get(f"{POLICIES}/policy-2").text
        assert "/activate" not in reviewer.get(f"{POLICIES}/policy-1").text
        tried = reviewer.get(f"{POLICIES}/new", params=filled(max_harmful_score="8")).text
        assert "decisions would be another" in tried
        assert "Save as a new version" not in tried
        for address, form in (
            ("", {"note": "x", **filled()}),
            ("/policy-1/activate", {"reason": "x"}),
            ("/policy-2/deactivate", {"reason": "x"}),
        ):
            assert post(reviewer, address, **form)[0] == 403
        assert session.scalar(select(func.count()).select_from(SafetyPolicy)) == 2

    def test_a_viewer_may_try(self, house: House, sign_in: SignIn) -> None:
        viewer = sign_in(house.staff.viewer)
        assert "decisions would be another" in viewer.get(
            f"{POLICIES}/new", params=filled()
        ).text.replace("\n", " ")
        assert post(viewer, "", note="x", **filled())[0] == 403

    def test_customers_have_no_policies(self, house: House, sign_in: SignIn) -> None:
        customer = sign_in(house.provider.customer_token)
        for address in ("", "/new", "/policy-1"):
            assert customer.get(f"{POLICIES}{address}").status_code == 403
