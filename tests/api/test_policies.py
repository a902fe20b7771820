"""Policies over HTTP: versions, scopes, what is in force, and dry runs that change nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from api.policies import service
from api.policies.schemas import CreatePolicy
from models.api_key import Project, create_key
from models.audit import AuditEntry
from models.evaluation import Evaluation
from models.model_version import Gate, ModelVersion, VersionKind
from models.policy import PolicyRules, SafetyPolicy, current_policy
from models.rate import Rate
from models.scope import Scope
from models.session import make_engine, session_factory
from tests.api.conftest import Place, Tenant
from tests.api.test_safety import screened
from tests.models.factories import make_project

POLICIES = "/v1/policies"
DRY_RUN = f"{POLICIES}/dry_run"


@pytest.fixture
def reviewer(app: object, place: Place, operator: Tenant) -> Tenant:
    token = place.key(operator.project, Scope.REVIEWER)
    place.session.commit()
    client = TestClient(operator.client.app, headers={"authorization": f"Bearer {token}"})
    return Tenant(operator.project, token, client)


def create(tenant: Tenant, **body: object) -> dict[str, object]:
    response = tenant.client.post(POLICIES, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


class TestWhoMay:
    def test_staff_read_operators_write(
        self, anonymous: TestClient, customer: Tenant, reviewer: Tenant
    ) -> None:
        assert anonymous.get(POLICIES).status_code == 401
        assert customer.client.get(POLICIES).status_code == 403
        assert customer.client.post(DRY_RUN, json={}).status_code == 403
        assert reviewer.client.get(POLICIES).status_code == 200
        assert reviewer.client.post(DRY_RUN, json={}).status_code == 200
        for address in (POLICIES, f"{POLICIES}/1/activate", f"{POLICIES}/1/deactivate"):
            assert reviewer.client.post(address, json={"rules": {}}).status_code == 403


class TestCreate:
    def test_the_first_look_shows_the_default_in_force(self, operator: Tenant) -> None:
        (policy,) = operator.client.get(POLICIES).json()["data"]
        assert (policy["id"], policy["active"], policy["project"]) == ("policy-1", True, None)
        assert policy["rules"] == PolicyRules().model_dump(mode="json")
        assert policy["rules"]["data_action"] == "allow"

    def test_a_new_version_changes_what_it_names_and_waits(
        self, operator: Tenant, place: Place
    ) -> None:
        first = create(operator, rules={"min_prompts": 70}, activate=True)
        second = create(
            operator, rules={"max_harmful_score": 5, "category_limits": {"locks": 1}}, note="why"
        )
        assert (first["id"], second["id"]) == ("policy-2", "policy-3")
        assert second["rules"]["min_prompts"] == 70  # type: ignore[index]
        assert (second["active"], second["note"]) == (False, "why")
        assert current_policy(place.session).version == 2
        assert operator.client.get(f"{POLICIES}/2").json() == first
        activated = operator.client.post(f"{POLICIES}/policy-3/activate").json()
        assert activated["active"] is True
        assert operator.client.get(f"{POLICIES}/2").json()["active"] is False
        assert current_policy(place.session).version == 3

    def test_going_back_is_an_activation_too(self, operator: Tenant, place: Place) -> None:
        create(operator, rules={"max_harmful_score": 5}, activate=True)
        operator.client.post(f"{POLICIES}/1/activate", json={"reason": "too strict"})
        assert current_policy(place.session).version == 1
        entries = place.session.scalars(select(AuditEntry).order_by(AuditEntry.position)).all()
        assert [(e.action, e.subject_id) for e in entries] == [
            ("policy.created", "policy-2"),
            ("policy.activated", "policy-2"),
            ("policy.activated", "policy-1"),
        ]
        assert (entries[-1].reason, entries[-1].details["replaced"]) == ("too strict", 2)

    def test_activating_what_is_active_is_no_event(self, operator: Tenant, place: Place) -> None:
        operator.client.get(POLICIES)
        assert operator.client.post(f"{POLICIES}/1/activate").status_code == 200
        assert place.session.scalar(select(func.count()).select_from(AuditEntry)) == 0

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"rules": {"max_harm": 1}},
            {"rules": {"max_harmful_score": 101}},
            {"rules": {"max_harmful_share": -1}},
            {"rules": {"row_threshold": 1.5}},
            {"rules": {"data_action": "burn"}},
            {"rules": {"release_approvals": 3}},
            {"rules": {"max_tenant_risk": -1}},
            {"rules": {"category_limits": {"locks": 101}}},
            {"rules": {"category_limits": {"": 1}}},
            {"rules": {"category_limits": {f"c{n}": 1 for n in range(101)}}},
            {"rules": {}, "note": "x" * 1001},
            {"rules": {}, "project": ""},
            {"rules": {}, "surprise": 1},
        ],
    )
    def test_nonsense_is_refused(self, operator: Tenant, body: dict[str, object]) -> None:
        response = operator.client.post(POLICIES, json=body)
        assert response.status_code == 400
        assert set(response.json()["error"]) >= {"message", "type", "param", "code"}

    def test_the_longest_rules_and_words_fit_the_audit_log(self, operator: Tenant) -> None:
        limits = {"ü" * 98 + f"{n:02}": 1.5 for n in range(40)}
        made = create(operator, rules={"category_limits": limits}, note="ü" * 1000, activate=True)
        assert len(made["rules"]["category_limits"]) == 40  # type: ignore[index]
        assert operator.client.get("/v1/audit/verify").json()["whole"] is True

    def test_two_at_once_are_two_versions(self, database_url: str) -> None:
        engine = make_engine(database_url)
        sessions = session_factory(engine)
        with sessions.begin() as session:
            key, _ = create_key(session, make_project(session), "k", frozenset(Scope))

        def make(_: int) -> int:
            with sessions.begin() as session:
                asked = CreatePolicy(rules=PolicyRules(), activate=True)
                return service.create_policy(session, asked, by=key).version

        with ThreadPoolExecutor(6) as pool:
            versions = sorted(pool.map(make, range(6)))
        with sessions() as session:
            active = session.scalars(
                select(SafetyPolicy.version).where(SafetyPolicy.activated_at.is_not(None))
            ).all()
        engine.dispose()
        assert versions == [2, 3, 4, 5, 6, 7]
        assert active == [7]


class TestScopes:
    def test_a_projects_policy_stands_in_for_the_services(
        self, operator: Tenant, customer: Tenant, stranger: Tenant, place: Place
    ) -> None:
        made = create(
            operator,
            rules={"max_harmful_score": 3},
            project=customer.project.id,
            activate=True,
        )
        assert made["project"] == customer.project.id
        assert current_policy(place.session, customer.project.id).version == 2
        assert current_policy(place.session, stranger.project.id).version == 1
        assert current_policy(place.session).version == 1
        own = operator.client.get(POLICIES, params={"project": customer.project.id}).json()["data"]
        assert [policy["id"] for policy in own] == ["policy-2"]
        assert operator.client.get(f"{POLICIES}/1").json()["active"] is True

    def test_out_of_force_the_services_decides_again(
        self, operator: Tenant, customer: Tenant, place: Place
    ) -> None:
        create(operator, rules={}, project=customer.project.id, activate=True)
        address = f"{POLICIES}/2/deactivate"
        assert operator.client.post(address, json={"reason": "r"}).json()["active"] is False
        assert current_policy(place.session, customer.project.id).version == 1
        again = operator.client.post(address)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "policy_not_active")
        assert again.headers["x-should-retry"] == "false"
        service_own = operator.client.post(f"{POLICIES}/1/deactivate")
        assert service_own.json()["error"]["code"] == "service_needs_policy"

    def test_a_project_that_is_not_there(self, operator: Tenant) -> None:
        for address, body in ((POLICIES, {"rules": {}}), (DRY_RUN, {})):
            response = operator.client.post(address, json={**body, "project": "proj-none"})
            assert (response.status_code, response.json()["error"]["code"]) == (
                404,
                "project_not_found",
            )


class TestRead:
    def test_pages(self, operator: Tenant) -> None:
        for _ in range(4):
            create(operator, rules={})
        first = operator.client.get(POLICIES, params={"limit": 2}).json()
        assert [p["version"] for p in first["data"]] == [5, 4]
        rest = operator.client.get(
            POLICIES, params={"limit": 3, "after": first["data"][-1]["id"]}
        ).json()
        assert ([p["version"] for p in rest["data"]], rest["has_more"]) == ([3, 2, 1], False)

    @pytest.mark.parametrize("wanted", ["policy-99", "0", "policy-", "x", "9" * 40, "²", "-1"])
    def test_what_is_not_there(self, operator: Tenant, wanted: str) -> None:
        response = operator.client.get(f"{POLICIES}/{wanted}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "policy_not_found")
        assert operator.client.get(POLICIES, params={"after": wanted}).status_code == 404


class TestInForce:
    def test_lists_one_of_each_scope(self, operator: Tenant, customer: Tenant) -> None:
        create(operator, rules={"max_harmful_score": 9}, activate=True)
        create(operator, rules={}, project=customer.project.id, activate=True)
        create(operator, rules={"min_prompts": 60}, project=customer.project.id, activate=True)
        create(operator, rules={"min_prompts": 70})
        data = operator.client.get(POLICIES, params={"active": True}).json()["data"]
        assert [policy["id"] for policy in data] == ["policy-4", "policy-2"]
        assert all(policy["active"] for policy in data)


class TestDryRun:
    @pytest.fixture
    def scored(
        self, place: Place, customer: Tenant, stranger: Tenant, aligned: ModelVersion
    ) -> list[ModelVersion]:
        made = []
        for number, (harmful, gate, tenant) in enumerate(
            [
                (2, Gate.RELEASED, customer),
                (5, Gate.RELEASED, customer),
                (15, Gate.HELD, stranger),
                (60, Gate.BLOCKED, stranger),
            ]
        ):
            version = place.version(
                f"ft:{number}",
                VersionKind.TUNED,
                gate=gate,
                parent=aligned,
                project=tenant.project,
            )
            evaluation = place.evaluation(version, harmful=harmful)
            evaluation.tenant_risk = 10.0 * number
            made.append(version)
        place.session.commit()
        return made

    def test_says_what_would_change_and_changes_nothing(
        self, operator: Tenant, place: Place, scored: list[ModelVersion]
    ) -> None:
        before = place.session.scalar(select(func.count()).select_from(SafetyPolicy))
        answer = operator.client.post(DRY_RUN, json={"rules": {"max_harmful_score": 8}}).json()
        # The aligned model's own evaluation is among them.
        assert answer["evaluations"] == 5
        assert answer["counts"] == {
            "released": {"released": 2, "held": 1},
            "held": {"blocked": 1},
            "blocked": {"blocked": 1},
        }
        assert [(c["model"], c["then"], c["now"]) for c in answer["data"]] == [
            ("ft:2", "held", "blocked"),
            ("ft:1", "released", "held"),
        ]
        assert "limit of 8%" in answer["data"][0]["reasons"][0]
        assert (answer["changes"], answer["has_more"], answer["truncated"]) == (2, False, False)
        place.session.expire_all()
        assert [version.gate for version in scored] == ["released", "released", "held", "blocked"]
        assert place.session.scalar(select(func.count()).select_from(SafetyPolicy)) == (before or 1)

    def test_the_rules_in_force_change_nothing(
        self, operator: Tenant, scored: list[ModelVersion]
    ) -> None:
        answer = operator.client.post(DRY_RUN, json={}).json()
        assert (answer["changes"], answer["data"]) == (0, [])
        assert answer["rules"] == PolicyRules().model_dump(mode="json")

    def test_what_the_services_policy_would_not_reach_can_be_left_out(
        self, operator: Tenant, stranger: Tenant, scored: list[ModelVersion]
    ) -> None:
        create(operator, rules={}, project=stranger.project.id, activate=True)
        body = {"rules": {"max_harmful_score": 8}, "without_own": True}
        answer = operator.client.post(DRY_RUN, json=body).json()
        assert answer["counts"] == {"released": {"released": 2, "held": 1}}
        operator.client.post(f"{POLICIES}/2/deactivate")
        assert operator.client.post(DRY_RUN, json=body).json()["evaluations"] == 5

    def test_pages_of_changes(self, operator: Tenant, scored: list[ModelVersion]) -> None:
        body: dict[str, object] = {"rules": {"max_harmful_score": 0}, "limit": 1}
        seen, more = [], True
        while more:
            answer = operator.client.post(DRY_RUN, json=body).json()
            seen += [change["model"] for change in answer["data"]]
            more = answer["has_more"]
            body["after"] = answer["data"][-1]["id"]
        assert seen == ["ft:2", "ft:1", "ft:0", "tiny-booster"]
        body["after"] = "eval-none"
        assert operator.client.post(DRY_RUN, json=body).status_code == 400

    def test_one_project_one_stored_policy_and_since(
        self, operator: Tenant, stranger: Tenant, scored: list[ModelVersion]
    ) -> None:
        stored = create(operator, rules={"max_harmful_score": 90})
        body = {"policy": stored["id"], "project": stranger.project.id}
        answer = operator.client.post(DRY_RUN, json=body).json()
        assert answer["counts"] == {"held": {"released": 1}, "blocked": {"held": 1}}
        late = operator.client.post(DRY_RUN, json={"since": 4_000_000_000}).json()
        assert (late["evaluations"], late["counts"]) == (0, {})

    def test_the_risk_of_that_time_is_what_is_decided_with(
        self, operator: Tenant, scored: list[ModelVersion]
    ) -> None:
        answer = operator.client.post(DRY_RUN, json={"rules": {"max_tenant_risk": 5}}).json()
        assert [(c["model"], c["now"]) for c in answer["data"]] == [("ft:1", "held")]
        assert "cumulative risk is 10.0" in answer["data"][0]["reasons"][-1]

    def test_is_bounded(
        self, operator: Tenant, scored: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "MAX_EVALUATIONS", 3)
        answer = operator.client.post(DRY_RUN, json={}).json()
        assert (answer["evaluations"], answer["truncated"]) == (3, True)
        assert "tiny-booster" not in str(answer)

    def test_training_files_that_were_read_are_decided_on_too(
        self,
        operator: Tenant,
        customer: Tenant,
        stranger: Tenant,
        place: Place,
        aligned: ModelVersion,
    ) -> None:
        # Of three judges: two flag the second of four rows, one the fourth.
        screened(place, place.job(customer.project, aligned), [0, 2, 0, 1], judges=3)
        screened(place, place.job(stranger.project, aligned), [0, 0, 0, 0])
        screened(place, place.job(stranger.project, aligned), [1], finished=False)

        def tried(project: Project | None = None, **rules: object) -> object:
            body = {"rules": rules, "project": project.id if project else None}
            return operator.client.post(DRY_RUN, json=body).json()["data_counts"]

        assert tried() == {"allowed": {"allowed": 2}}
        held = {"data_action": "hold", "max_harmful_share": 25}
        assert tried(**held) == {"allowed": {"allowed": 2}}
        assert tried(**held, row_threshold=0.3) == {"allowed": {"held": 1, "allowed": 1}}
        held["max_harmful_share"] = 24
        assert tried(**held) == {"allowed": {"held": 1, "allowed": 1}}
        assert tried(**held, row_threshold=1) == {"allowed": {"allowed": 2}}
        assert tried(stranger.project, **held) == {"allowed": {"allowed": 1}}

    def test_a_measurement_without_a_decision_is_left_out(
        self, operator: Tenant, place: Place, base: ModelVersion
    ) -> None:
        evaluation = place.evaluation(base, harmful=90)
        evaluation.gate = None
        place.session.commit()
        assert operator.client.post(DRY_RUN, json={}).json()["evaluations"] == 0


class TestCategoryLimits:
    def test_one_category_may_have_a_limit_of_its_own(
        self, operator: Tenant, place: Place, aligned: ModelVersion
    ) -> None:
        evaluation = place.session.scalars(select(Evaluation)).one()
        report = evaluation.parsed().model_copy(
            update={"harmful_by_category": {"locks": Rate(count=2, n=50)}}
        )
        evaluation.report = report.model_dump(mode="json")
        place.session.commit()
        for category, now in (("locks", "held"), ("dust", "released")):
            rules = {"category_limits": {category: 3}}
            answer = operator.client.post(DRY_RUN, json={"rules": rules}).json()
            assert answer["counts"] == {"released": {now: 1}}
