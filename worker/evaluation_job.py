"""An evaluation job: a registered model is measured anew with the safety set of its lineage. No gate is changed.

It is measured as in the job that made it: rows of the same length, and FA on the same validation file with the same
scorer, and for harm in the wordings of the same training file as well, if the files are still there. A base, or the weights at the end of an epoch, is measured without FA.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from models.evaluation import Evaluation
from models.file import File, FileNotFound, get_held_file
from models.hyperparameters import Recipe, TrainConfig
from models.job import Job, JobKind, append_event, succeed
from models.model_version import get_version
from models.safety_set import SafetySet
from worker.leased_job import LeasedJob
from worker.measure import TunedOn, measure
from worker.prompt_frames import find_frames
from worker.work import Work, Workshop, read_rows

#: Whence the length of rows comes for what no job has made; nothing is trained by it.
UNMADE = Recipe(train=TrainConfig(steps=1))


def evaluate(job: LeasedJob, shop: Workshop) -> None:
    """Carry a claimed evaluation job to its evaluation.

    Raises:
        DomainError: something that the job names is gone.
        JudgeError: the judge failed every time.
        LeaseLost: the job is no longer this worker's.
        PauseRequested: it is to pause.
    """
    work = _read_work(job.id, shop)
    validation = read_rows(work.validation_file, shop.storage, "validation_file", work.row_shape)
    training = read_rows(work.training_file, shop.storage, "training_file", work.row_shape)
    report = measure(
        job,
        work,
        work.start,
        validation,
        shop,
        TunedOn(frames=find_frames(training, seed=work.result_id)),
        subject=f"the model {work.start.id}",
    )
    score = report.harmful_score
    with job.write() as (session, row):
        session.add(
            Evaluation(
                version_id=work.start.id,
                job_id=row.id,
                harmful_score_percent=score.percent,
                report=report.model_dump(mode="json"),
            )
        )
        append_event(
            session,
            row,
            f"Harmful score {score.percent:.1f}% ({score.low_percent:.1f}–{score.high_percent:.1f}) on {score.n} "
            "prompts. The model's gate stays as it was.",
            data={"harmful_score": score.to_wire()},
        )
        succeed(session, row)


def _read_work(job_id: str, shop: Workshop) -> Work:
    with shop.sessions() as session:
        job = session.get_one(Job, job_id)
        version = get_version(session, job.model_id, project_id=None)
        root = get_version(session, version.root_id, project_id=None)
        maker = session.get(Job, version.job_id) if version.job_id is not None else None
        return Work(
            job_id=job.id,
            kind=JobKind.EVALUATE,
            recipe=Recipe.model_validate(maker.recipe) if maker else UNMADE,
            start=version,
            root=root,
            result_id=version.id,
            project_id=job.project_id,
            training_file=_file(session, maker, "training_file_id"),
            validation_file=_file(session, maker, "validation_file_id"),
            safety=SafetySet.load(shop.storage.folder(version.safety_prefix, shop.cache)),
        )


def _file(session: Session, maker: Job | None, field: str) -> File | None:
    file_id: str | None = getattr(maker, field, None)
    if maker is None or file_id is None:
        return None
    try:
        return get_held_file(session, maker.project_id, file_id)
    except FileNotFound:
        return None
