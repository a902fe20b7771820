"""The pages of models: lineage, list, one model with its certificate, and what providers may start."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.dashboard.models import lineage as lineage_module
from api.seed.states import HOSTILE_NAME, seed_all, seed_base
from models.api_key import Project
from models.audit import AuditEntry
from models.certification_plans import DRILL, PLANS, Drill
from models.job import Job, JobKind, JobStatus
from models.model_version import Gate, ModelVersion, VersionKind
from models.scope import Scope
from models.storage import Storage
from tests.api.adapters import store
from tests.api.certificates import supply
from tests.api.conftest import Place, Tenant, make_tenant
from tests.api.dashboard.conftest import SignIn, csrf, text_of
from tests.api.dashboard.seed_models import seed_certificate, seed_certified, seed_tuned

# Each test has a full database of its own.
pytestmark = pytest.mark.long

BASE, BOOSTER, SFT = "sandbox-base", "sandbox-booster", "sandbox-sft"
ACME_MODEL = "ft:sandbox-base:acme:tickets:R4kd92Lm"
BLOCKED_MODEL = "ft:sandbox-base:acme:tickets:P0qs77Ab"
OTHER_MODEL = "ft:sandbox-base:harbour:clauses:9hTq2Vde"
MODELS = "/dashboard/models"


@pytest.fixture
def full(app: object, session: Session) -> None:
    seed_all(session, points=2)
    session.commit()


@pytest.fixture
def staff(full: None, operator: Tenant, sign_in: SignIn) -> TestClient:
    return sign_in(operator.token)


@pytest.fixture
def acme(full: None, app: object, place: Place, session: Session, sign_in: SignIn) -> TestClient:
    project = session.scalars(select(Project).where(Project.name == "Acme Support")).one()
    token = place.key(project, Scope.CUSTOMER)
    session.commit()
    return sign_in(token)


def rows_of(html: str) -> list[str]:
    return re.findall(r'class="c-model"><a class="name" href="[^"]+">([^<]+)<', html)


class TestLineage:
    def test_stands_from_base_to_aligned_to_counts_of_tuned(self, staff: TestClient) -> None:
        html = staff.get(MODELS).text
        tree = html[html.index('class="tree"') : html.index('id="tuned"')]
        assert tree.index(f">{BASE}<") < tree.index(f">{BOOSTER}<")
        assert BLOCKED_MODEL not in tree
        booster = text_of(tree[tree.index(f">{BOOSTER}<") : tree.index(f">{SFT}<")])
        assert "Released" in booster
        assert re.search(r"HS 1\.5% 0\.5.4\.3", booster)
        assert "no certificate" in booster
        assert re.search(r"4 tuned from sandbox-booster", booster)
        assert re.search(r"1 pending .*2 released .*1 held", booster)

    def test_count_leads_to_those_models(self, staff: TestClient) -> None:
        html = staff.get(MODELS, params={"parent": SFT}).text
        assert rows_of(html) == [BLOCKED_MODEL]

    def test_hundreds_are_counted_and_not_drawn(
        self, staff: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parent = session.get_one(ModelVersion, SFT)
        owner = session.scalars(select(Project).where(Project.name == "Harbour Legal")).one()
        seed_tuned(session, owner, parent, count=60)
        session.commit()
        html = staff.get(MODELS).text
        assert "61 tuned" in text_of(html)
        assert len(rows_of(html)) == 50
        monkeypatch.setattr(lineage_module, "MAX_COUNTED", 10)
        assert "10+ tuned from sandbox-sft of the newest:" in text_of(staff.get(MODELS).text)

    def test_costs_the_same_queries_however_long(
        self, staff: TestClient, session: Session, statements: list[str]
    ) -> None:
        staff.get(MODELS)
        statements.clear()
        staff.get(MODELS)
        before = len(statements)
        owner = session.scalars(select(Project).where(Project.name == "Harbour Legal")).one()
        for name in (BOOSTER, SFT):
            seed_tuned(session, owner, session.get_one(ModelVersion, name), count=15)
        session.commit()
        statements.clear()
        staff.get(MODELS)
        assert len(statements) == before <= 12

    def test_empty_says_how_to_begin(self, operator: Tenant, sign_in: SignIn) -> None:
        assert "titer models add" in sign_in(operator.token).get(MODELS).text

    def test_a_base_alone_is_drawn(
        self, operator: Tenant, session: Session, sign_in: SignIn
    ) -> None:
        seed_base(session)
        session.commit()
        html = sign_in(operator.token).get(MODELS).text
        assert f">{BASE}<" in html
        assert "Nothing was tuned yet." in html


class TestList:
    def test_search_finds_every_kind_by_a_part_of_the_name(self, staff: TestClient) -> None:
        found = rows_of(staff.get(MODELS, params={"q": "SANDBOX-b"}).text)
        assert {BASE, BOOSTER, ACME_MODEL} <= set(found)
        assert SFT not in found

    @pytest.mark.parametrize("q", ["%", "_", "nothing-of-the-kind"])
    def test_search_takes_signs_as_they_are(self, staff: TestClient, q: str) -> None:
        assert f"No model has “{q}” in its name." in staff.get(MODELS, params={"q": q}).text

    def test_gate_narrows(self, staff: TestClient) -> None:
        assert rows_of(staff.get(MODELS, params={"gate": "blocked"}).text) == [BLOCKED_MODEL]
        assert staff.get(MODELS, params={"gate": "ajar"}).status_code == 400

    def test_pages_by_key_without_gap_or_repeat(
        self, staff: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lineage_module, "PAGE_SIZE", 3)
        # Several of one moment, so that time alone does not order them.
        moment = session.get_one(ModelVersion, ACME_MODEL).created_at
        for version in session.scalars(select(ModelVersion).where(ModelVersion.kind == "tuned")):
            version.created_at = moment
        session.commit()
        seen: list[str] = []
        address: str | None = MODELS
        while address:
            html = staff.get(address).text
            seen += rows_of(html)
            older = re.search(r'href="([^"]+)#tuned">Older', html)
            address = older[1].replace("&amp;", "&") if older else None
        query = select(ModelVersion.id).where(ModelVersion.kind == VersionKind.TUNED)
        assert len(seen) == len(set(seen)) == len(session.scalars(query).all())

    def test_a_customer_sees_its_own_and_what_it_may_tune(self, acme: TestClient) -> None:
        html = acme.get(MODELS).text
        assert BOOSTER in html
        assert ACME_MODEL in html
        assert "harbour" not in html
        assert f">{BASE}<" not in html
        assert re.search(r"3 tuned|2 tuned", text_of(html))
        assert acme.get(MODELS, params={"q": "harbour"}).text.count("c-model") == 0
        assert acme.get(MODELS, params={"before": OTHER_MODEL}).status_code == 404


class TestModelPage:
    def test_aligned_one_tells_what_it_is_and_how_it_was_measured(self, staff: TestClient) -> None:
        html = staff.get(f"{MODELS}/{BOOSTER}").text
        text = text_of(html)
        assert re.search(r"Aligned by booster From sandbox-base", text)
        assert re.search(r"Harmful score .*?1\.5% 0\.5.4\.3 within 15% 3/200", text)
        assert re.search(r"Lambda \d", text)
        assert "Released" in text
        assert "No simulated customer has attacked this model yet." in text
        assert re.search(r'href="/dashboard/jobs/ftjob-[^"]+">ftjob-', html)

    def test_tuned_one_says_how_to_use_it_and_where_it_comes_from(self, staff: TestClient) -> None:
        html = staff.get(f"{MODELS}/{ACME_MODEL}").text
        assert f"titer chat --model {ACME_MODEL}" in html
        assert "support-tickets.jsonl" in html
        assert re.search(r"sandbox-base .*sandbox-booster .*R4kd92Lm", text_of(html))
        assert "Certificate" not in text_of(html)

    def test_blocked_one_says_that_nobody_may_use_it(self, staff: TestClient) -> None:
        html = staff.get(f"{MODELS}/{BLOCKED_MODEL}").text
        assert "The gate has not released this model" in html
        assert "titer chat" not in html

    def test_base_shows_its_source_to_staff(self, staff: TestClient) -> None:
        text = text_of(staff.get(f"{MODELS}/{BASE}").text)
        assert "/srv/models/sandbox-base" in text
        assert re.search(r"Aligned from it sandbox-booster", text)

    def test_customer_sees_its_own_and_released_aligned_ones_alone(
        self, acme: TestClient, session: Session
    ) -> None:
        assert acme.get(f"{MODELS}/{ACME_MODEL}").status_code == 200
        html = acme.get(f"{MODELS}/{BOOSTER}").text
        assert f"{MODELS}/{BASE}" not in html
        assert "/srv/" not in html
        assert "/dashboard/jobs/" not in html.split("<main")[1]
        assert "<form" not in html.split("<main")[1]
        for hidden in (BASE, OTHER_MODEL, "nowhere"):
            assert acme.get(f"{MODELS}/{hidden}").status_code == 404
        session.get_one(ModelVersion, BOOSTER).gate = Gate.HELD
        session.commit()
        assert acme.get(f"{MODELS}/{BOOSTER}").status_code == 404

    def test_hostile_name_has_a_page_and_stays_text(
        self, staff: TestClient, session: Session
    ) -> None:
        name = f"ft:sandbox-base:harbour:{HOSTILE_NAME}:x1"
        assert session.get(ModelVersion, name)
        listed = staff.get(MODELS).text
        link = re.search(r'href="(/dashboard/models/ft[^"]*script[^"]*)"', listed)
        assert link
        html = staff.get(link[1].replace("&#39;", "'")).text
        assert HOSTILE_NAME not in html
        assert "&lt;script&gt;" in html

    def test_every_link_can_be_followed(self, staff: TestClient, acme: TestClient) -> None:
        for client in (staff, acme):
            for page in (MODELS, f"{MODELS}/{BOOSTER}", f"{MODELS}/{ACME_MODEL}"):
                for link in re.findall(
                    r'<a[^>]* href="(/dashboard/(?:jobs|models)[^"#]*)', client.get(page).text
                ):
                    answer = client.get(link.replace("&amp;", "&").replace("&#39;", "'"))
                    assert answer.status_code == 200, link

    @pytest.mark.parametrize("name", [BASE, BOOSTER, ACME_MODEL, BLOCKED_MODEL])
    def test_runs_nothing_inline_and_has_unique_ids(self, staff: TestClient, name: str) -> None:
        html = staff.get(f"{MODELS}/{name}").text
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", html)
        ids = re.findall(r'\sid="([^"]+)"', html)
        assert len(ids) == len(set(ids))
        assert html.count("<h1") == 1


class TestCertificate:
    @pytest.fixture
    def certified(self, full: None, session: Session, storage: Storage) -> None:
        owner = session.scalars(select(Project).where(Project.name == "Northwind AI")).one()
        seed_certified(session, storage, owner, with_pictures=False)
        session.commit()

    def test_is_drawn_beside_the_others_of_its_base_with_a_table_behind_each(
        self, staff: TestClient, certified: None
    ) -> None:
        html = staff.get(f"{MODELS}/sandbox-titer").text
        text = text_of(html)
        assert html.count("data-figure=") == html.count('class="canvas"') == 5
        ratios = html[html.index('id="figure-1"') : html.index('id="figure-2"')]
        for name in ("sandbox-titer", "sandbox-booster", "sandbox-vaccine", SFT):
            assert f"<span>{name}</span>" in ratios
        assert re.search(r'<th scope="row" class="num">100</th><td class="num">\d+\.\d%', ratios)
        assert "by share of harmful rows Customers at the rate 0.0001, after 80 steps." in text
        assert re.search(r"sandbox-titer this one titer 80 steps", text)
        assert "Utility after the job" in text
        assert re.search(r"Passes 2,640 Trained tokens", text)

    def test_one_by_another_plan_is_named_and_not_drawn(
        self, staff: TestClient, certified: None, session: Session, storage: Storage
    ) -> None:
        booster = session.get_one(ModelVersion, BOOSTER)
        owner = session.scalars(select(Project).where(Project.name == "Northwind AI")).one()
        own_plan = PLANS["quick"].model_copy(update={"name": "mine"})
        seed_certificate(session, storage, owner, booster, plan=own_plan, with_picture=False)
        session.commit()
        html = staff.get(f"{MODELS}/sandbox-titer").text
        assert re.search(r"sandbox-booster booster [^|]*? mine another plan", text_of(html))
        ratios = html[html.index('id="figure-1"') : html.index('id="figure-2"')]
        assert "<span>sandbox-booster</span>" not in ratios

    def test_a_newer_drill_is_listed_and_never_the_certificate(
        self, staff: TestClient, certified: None, session: Session
    ) -> None:
        html = staff.get(f"{MODELS}/sandbox-titer").text
        assert re.search(r"Certifications and drills drill just now .*? quick", text_of(html))
        assert re.search(r"Plan quick 33 runs", text_of(html))
        job = session.scalars(select(Job.id).where(Job.recipe["name"].astext == DRILL)).one()
        page = staff.get(f"{MODELS}/sandbox-titer/certificate", params={"job": job})
        assert page.status_code == 200
        assert DRILL in page.text

    @pytest.mark.parametrize(
        ("form", "kind"),
        [("html", "text/html"), ("json", "application/json"), ("png", "image/png")],
    )
    def test_is_downloaded_in_three_forms(
        self,
        staff: TestClient,
        session: Session,
        storage: Storage,
        form: str,
        kind: str,
    ) -> None:
        owner = session.scalars(select(Project).where(Project.name == "Northwind AI")).one()
        seed_certificate(session, storage, owner, session.get_one(ModelVersion, BOOSTER))
        session.commit()
        assert f"/certificate?format={form}" in staff.get(f"{MODELS}/{BOOSTER}").text
        answer = staff.get(f"{MODELS}/{BOOSTER}/certificate", params={"format": form})
        assert answer.headers["content-type"].startswith(kind)
        assert len(answer.content) > 1000

    def test_unreadable_file_leaves_the_numbers(
        self, staff: TestClient, certified: None, session: Session, storage: Storage
    ) -> None:
        booster = session.get_one(ModelVersion, BOOSTER)
        owner = session.scalars(select(Project).where(Project.name == "Northwind AI")).one()
        stored = seed_certificate(session, storage, owner, booster, with_picture=False)
        storage.put(f"{stored.prefix}/certificate.json", b"{}")
        session.commit()
        html = staff.get(f"{MODELS}/{BOOSTER}").text
        assert "cannot be read" in html
        assert "40 steps" in text_of(html)
        assert "data-figure" not in html
        assert re.search(r"sandbox-titer titer 80 steps .*? not drawn", text_of(html))
        assert "its file cannot be read" in staff.get(f"{MODELS}/sandbox-titer").text

    def test_customer_sees_the_summary_alone(self, acme: TestClient, certified: None) -> None:
        html = acme.get(f"{MODELS}/{BOOSTER}").text
        assert "40 steps" in text_of(html)
        assert "data-figure" not in html
        assert "/certificate" not in html
        assert acme.get(f"{MODELS}/{BOOSTER}/certificate").status_code == 403

    def test_queries_do_not_grow_with_the_certified_ones(
        self, staff: TestClient, certified: None, statements: list[str]
    ) -> None:
        staff.get(f"{MODELS}/sandbox-titer")
        statements.clear()
        staff.get(f"{MODELS}/sandbox-titer")
        assert len(statements) <= 30


class TestStarting:
    @pytest.fixture
    def provider_page(self, full: None, provider: Tenant, sign_in: SignIn) -> TestClient:
        return sign_in(provider.token)

    @pytest.fixture
    def supplied(self, full: None, place: Place) -> None:
        supply(place, place.session.get_one(ModelVersion, BOOSTER))

    def form(self, client: TestClient, **fields: object) -> dict[str, object]:
        return {"csrf": csrf(client.get("/dashboard/jobs")), **fields}

    def newest(self, session: Session, kind: JobKind) -> Job:
        query = select(Job).where(Job.kind == kind, Job.status == JobStatus.QUEUED)
        return session.scalars(query.order_by(Job.created_at.desc())).first()  # type: ignore[return-value]

    def test_alignment_takes_what_was_filled_in_and_leaves_the_rest_to_the_preset(
        self, provider_page: TestClient, session: Session
    ) -> None:
        form = self.form(
            provider_page,
            model=BASE,
            method="booster",
            preset="reference",
            steps="200",
            name="hard",
            learning_rate="",
        )
        answer = provider_page.post("/dashboard/alignments", data=form)
        job = self.newest(session, JobKind.ALIGN)
        assert answer.headers["location"] == f"/dashboard/jobs/{job.id}"
        assert job.result_model_id == "hard"
        assert job.recipe["method"]["name"] == "booster"
        assert job.recipe["train"]["steps"] == 200
        assert job.recipe["train"]["learning_rate"] == 5e-4
        assert session.scalars(
            select(AuditEntry).where(AuditEntry.action == "alignment.started")
        ).one()
        assert "Alignment" in provider_page.get(f"{MODELS}/{BASE}").text

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"steps": "0"}, "hyperparameters.steps"),
            ({"method": "magic"}, "method"),
            ({"preset": "none"}, "preset"),
            ({"name": "a b"}, "name"),
            ({"seed": "x"}, "seed"),
        ],
    )
    def test_faulty_field_is_named(
        self, provider_page: TestClient, session: Session, fields: dict[str, str], said: str
    ) -> None:
        form = self.form(provider_page, model=BASE, **fields)
        answer = provider_page.post("/dashboard/alignments", data=form)
        assert answer.status_code == 400
        assert said in answer.text
        assert self.newest(session, JobKind.ALIGN) is None

    def test_second_sending_meets_the_taken_name(
        self, provider_page: TestClient, session: Session
    ) -> None:
        form = self.form(provider_page, model=BASE, method="titer")
        assert provider_page.post("/dashboard/alignments", data=form).status_code == 303
        assert provider_page.post("/dashboard/alignments", data=form).status_code == 409

    def test_certification_by_a_plan(
        self, provider_page: TestClient, session: Session, supplied: None
    ) -> None:
        form = self.form(provider_page, model=BOOSTER, plan="quick")
        assert provider_page.post("/dashboard/certifications", data=form).status_code == 303
        assert self.newest(session, JobKind.CERTIFY).recipe["name"] == "quick"
        assert provider_page.post("/dashboard/certifications", data=form).status_code == 409
        assert "Certification" in provider_page.get(f"{MODELS}/{BOOSTER}").text

    def test_drill_of_chosen_attacks(
        self, provider_page: TestClient, session: Session, supplied: None
    ) -> None:
        form = self.form(
            provider_page,
            model=BOOSTER,
            families=["pure", "style"],
            steps="20",
            learning_rate="0.0003",
            start="fresh",
        )
        assert provider_page.post("/dashboard/drills", data=form).status_code == 303
        recipe = self.newest(session, JobKind.CERTIFY).recipe
        asked = Drill(families=("pure", "style"), steps=20, learning_rate=3e-4, start="fresh")
        assert recipe == asked.plan().model_dump(mode="json")
        assert "Drill" in provider_page.get(f"{MODELS}/{BOOSTER}").text

    @pytest.mark.parametrize("model", [BASE, BOOSTER, ACME_MODEL])
    def test_any_model_is_measured_anew_by_one_job(
        self, provider_page: TestClient, session: Session, model: str
    ) -> None:
        form = self.form(provider_page, model=model)
        assert 'action="/dashboard/evaluations"' in provider_page.get(f"{MODELS}/{model}").text
        assert provider_page.post("/dashboard/evaluations", data=form).status_code == 303
        assert self.newest(session, JobKind.EVALUATE).model_id == model
        assert provider_page.post("/dashboard/evaluations", data=form).status_code == 409

    def test_drill_without_an_attack_is_refused(self, provider_page: TestClient) -> None:
        form = self.form(provider_page, model=BOOSTER, steps="20", learning_rate="0.0003")
        answer = provider_page.post("/dashboard/drills", data=form)
        assert answer.status_code == 400
        assert "families" in answer.text

    @pytest.mark.parametrize("part", ["alignments", "certifications", "drills", "evaluations"])
    @pytest.mark.parametrize("scope", [Scope.CUSTOMER, Scope.VIEWER, Scope.REVIEWER])
    def test_others_see_no_buttons_and_start_nothing(
        self,
        full: None,
        app: object,
        place: Place,
        session: Session,
        sign_in: SignIn,
        part: str,
        scope: Scope,
    ) -> None:
        somebody = make_tenant(app, place, place.project("somebody"), scope)  # type: ignore[arg-type]
        client = sign_in(somebody.token)
        html = client.get(f"{MODELS}/{BOOSTER}").text
        assert "<form" not in html.split("<main")[1]
        form = self.form(client, model=BOOSTER, plan="quick", families=["pure"])
        before = session.scalars(select(Job.id)).all()
        assert client.post(f"/dashboard/{part}", data=form).status_code == 403
        assert session.scalars(select(Job.id)).all() == before

    @pytest.mark.parametrize("part", ["alignments", "certifications", "drills", "evaluations"])
    def test_needs_the_form_token(self, provider_page: TestClient, part: str) -> None:
        form = {"csrf": "guess", "model": BOOSTER, "plan": "quick"}
        assert provider_page.post(f"/dashboard/{part}", data=form).status_code == 403


class TestExport:
    def test_released_adapter_is_given_and_written_down(
        self, place: Place, session: Session, staff: TestClient, tmp_path: Path
    ) -> None:
        store(place, session.get_one(ModelVersion, ACME_MODEL), tmp_path / "adapter")
        assert f"/dashboard/exports/{quote(ACME_MODEL)}" in staff.get(f"{MODELS}/{ACME_MODEL}").text
        answer = staff.get(f"/dashboard/exports/{ACME_MODEL}")
        assert answer.headers["content-type"] == "application/x-tar"
        assert b"adapter_config.json" in answer.content
        entry = session.scalars(
            select(AuditEntry).where(AuditEntry.action == "model.exported")
        ).one()
        assert entry.subject_id == ACME_MODEL

    def test_another_tenants_does_not_exist(self, acme: TestClient) -> None:
        assert acme.get(f"/dashboard/exports/{OTHER_MODEL}").status_code == 404

    def test_blocked_one_is_not_given(self, staff: TestClient) -> None:
        assert staff.get(f"/dashboard/exports/{BLOCKED_MODEL}").status_code == 403
