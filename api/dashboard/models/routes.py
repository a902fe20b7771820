"""The pages of models: lineage and list, one model, its certificate's curves, and what providers may start."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from api.alignment.schemas import CreateAlignment
from api.alignment.service import create_alignment
from api.certification.report import Form as ReportForm
from api.certification.report import read_report
from api.certification.schemas import CreateCertification
from api.certification.service import create_certification, find_certificate
from api.dashboard.forms import read_form
from api.dashboard.models.lineage import Search, draw_lineage, list_versions
from api.dashboard.models.model_page import read_model_page
from api.dashboard.pages import render
from api.dashboard.viewer import CheckedForm, Viewer, ViewerDep
from api.deps import SessionDep, SettingsDep, StorageDep
from api.evaluation.schemas import CreateEvaluation
from api.evaluation.service import create_evaluation
from api.export.routes import download
from api.jobs.replay import Replay
from models.certification import Family
from models.certification_plans import PLANS, Drill
from models.errors import DomainError, Forbidden
from models.job import Job
from models.model_version import Gate
from models.presets import PRESETS

router = APIRouter()
FORMS: tuple[ReportForm, ...] = ("html", "json", "png")
Name = Annotated[str, Form(min_length=1, max_length=256)]
Choice = Annotated[str, Form(max_length=64)]


class UnknownGate(DomainError):
    """There is no such gate to filter by."""

    code = "unknown_filter"


def get_provider(viewer: ViewerDep) -> Viewer:
    """Give the signed-in person if they may change bases and what was aligned on them.

    Raises:
        Forbidden: they may not.
    """
    if not viewer.is_provider:
        raise Forbidden(
            "Only a provider starts alignments, certifications, drills and evaluations."
        )
    return viewer


ProviderDep = Annotated[Viewer, Depends(get_provider)]


@router.get("/models")
def show_models(
    request: Request,
    session: SessionDep,
    viewer: ViewerDep,
    q: Annotated[str, Query(max_length=128)] = "",
    parent: Annotated[str, Query(max_length=256)] = "",
    gate: Annotated[str, Query(max_length=16)] = "",
    before: Annotated[str, Query(max_length=256)] = "",
) -> Response:
    """Show the lineage of every version that the viewer may know of, and a page of the tuned ones."""
    search = Search(q.strip(), parent, _gate(gate), before)
    return render(
        request,
        "models.html",
        viewer=viewer,
        search=search,
        lineage=None if search.text else draw_lineage(session, viewer.visible_project_id),
        versions=list_versions(session, viewer.visible_project_id, search),
        address=_address,
        gates=list(Gate),
    )


# A model's name may hold slashes; none ends in /certificate.
@router.get("/models/{model:path}/certificate")
def show_certificate(
    session: SessionDep,
    storage: StorageDep,
    viewer: ViewerDep,
    model: str,
    form: Annotated[ReportForm, Query(alias="format")] = "html",
    job: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Give a model's newest certificate, or a job's, as it was stored."""
    if not viewer.is_staff:
        raise Forbidden("Certificates are for operators.")
    return read_report(storage, find_certificate(session, model, job_id=job), form)


@router.get("/models/{model:path}")
def show_model(
    request: Request,
    session: SessionDep,
    storage: StorageDep,
    settings: SettingsDep,
    viewer: ViewerDep,
    model: str,
) -> Response:
    """Show one model."""
    page = read_model_page(session, storage, settings, viewer, model)
    return render(
        request,
        "model.html",
        viewer=viewer,
        page=page,
        plans={name: plan.cost(is_adapter=page.version.is_adapter) for name, plan in PLANS.items()},
        presets=list(PRESETS),
        methods=list(PRESETS["service"].methods),
        families=list(Family),
        drill=Drill(),
        forms=FORMS,
    )


@router.get("/exports/{model:path}")
def export_model(
    session: SessionDep, storage: StorageDep, settings: SettingsDep, viewer: ViewerDep, model: str
) -> Response:
    """Download a released model's adapter, as the API gives it."""
    return download(session, storage, settings, model, viewer)


@router.post("/alignments", dependencies=[CheckedForm])
def start_alignment(
    session: SessionDep,
    viewer: ProviderDep,
    model: Name,
    method: Choice = "",
    preset: Choice = "",
    parameters: Choice = "",
    name: Annotated[str, Form(max_length=128)] = "",
    steps: Choice = "",
    batch_size: Choice = "",
    learning_rate: Choice = "",
    seed: Choice = "",
) -> Response:
    """Harden a base."""
    chosen = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "parameters": parameters,
    }
    asked = read_form(
        CreateAlignment,
        {
            "model": model,
            "method": {"name": method} if method else None,
            "preset": preset,
            "hyperparameters": {field: value for field, value in chosen.items() if value},
            "name": name.strip(),
            "seed": seed,
        },
    )
    return _to_job(create_alignment(session, viewer.key, asked, _once()))


@router.post("/certifications", dependencies=[CheckedForm])
def start_certification(
    session: SessionDep, storage: StorageDep, viewer: ProviderDep, model: Name, plan: Choice
) -> Response:
    """Let a plan's simulated customers attack an aligned model."""
    asked = read_form(CreateCertification, {"model": model, "plan": plan})
    return _to_job(create_certification(session, storage, viewer.key, asked, _once()))


@router.post("/drills", dependencies=[CheckedForm])
def start_drill(
    session: SessionDep,
    storage: StorageDep,
    viewer: ProviderDep,
    model: Name,
    families: Annotated[list[str] | None, Form(max_length=16)] = None,
    steps: Choice = "",
    learning_rate: Choice = "",
    start: Choice = "",
) -> Response:
    """Let a few attacks try an aligned model."""
    drill = read_form(
        Drill,
        {
            "families": families or ["none chosen"],
            "steps": steps,
            "learning_rate": learning_rate,
            "start": start,
        },
    )
    asked = CreateCertification(model=model, drill=drill)
    return _to_job(create_certification(session, storage, viewer.key, asked, _once()))


@router.post("/evaluations", dependencies=[CheckedForm])
def start_evaluation(session: SessionDep, viewer: ProviderDep, model: Name) -> Response:
    """Measure a model anew; its gate stays."""
    asked = read_form(CreateEvaluation, {"model": model})
    return _to_job(create_evaluation(session, viewer.key, asked, _once()))


def _once() -> Replay:
    # A form that is sent twice meets the name that is taken, or the job that runs.
    return Replay(key=None, is_retry=False)


def _to_job(job: Job) -> Response:
    return RedirectResponse(f"/dashboard/jobs/{job.id}", status_code=303)


def _gate(value: str) -> Gate | None:
    try:
        return Gate(value) if value else None
    except ValueError as error:
        raise UnknownGate from error


def _address(search: Search, **changed: str) -> str:
    """Give the page's address with some of the search changed; a page further back never survives that."""
    asked = {"q": search.text, "parent": search.parent, "gate": search.gate or "", **changed}
    query = urlencode({name: value for name, value in asked.items() if value})
    return "/dashboard/models" + (f"?{query}" if query else "")
