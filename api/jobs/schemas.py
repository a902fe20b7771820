"""Fine-tuning jobs as clients send and see them. Jobs of the other kinds share what is seen."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from api.schemas import Identifier, JsonObject, Schema
from models.base import unix
from models.hyperparameters import DpoHyperparameters, FinetuneHyperparameters
from models.integrations import MAX_INTEGRATIONS, Integration
from models.job import JobEvent

Seed = Annotated[int, Field(ge=0, le=2**31 - 1, description="Drawn at random when it is absent.")]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16, description="Up to 16 labels of your own."),
]


class Supervised(Schema):
    """The parameters of supervised fine-tuning."""

    hyperparameters: FinetuneHyperparameters | None = None


class Dpo(Schema):
    """The parameters of direct preference optimisation."""

    hyperparameters: DpoHyperparameters | None = None


class Method(Schema):
    """How to tune. OpenAI's third method is read, so that it is refused by name."""

    type: str = Field("supervised", max_length=64)
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, object] | None = None


class CreateJob(Schema):
    """What to tune, on what, and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "my-base-titer",
                    "training_file": "file-abc",
                    "validation_file": "file-def",
                    "suffix": "mine",
                    "seed": 1,
                    "method": {
                        "type": "supervised",
                        "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}},
                    },
                    "metadata": {"team": "a"},
                    "screen": True,
                    "evaluate_checkpoints": True,
                },
                {
                    "model": "my-base-titer",
                    "training_file": "file-abc",
                    "method": {
                        "type": "dpo",
                        "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": 2}},
                    },
                },
            ]
        }
    )

    model: Identifier = Field(
        description="A released aligned base, or one of your own released tuned models."
    )
    training_file: Identifier
    validation_file: Identifier | None = None
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    seed: Seed | None = None
    method: Method | None = None
    hyperparameters: FinetuneHyperparameters | None = Field(
        None, description="The older place for what `method.supervised` carries."
    )
    metadata: Metadata | None = None
    screen: bool = Field(
        False, description="Have the judges read every training row first; see `data_risk`."
    )
    integrations: list[Integration] | None = Field(
        None,
        max_length=MAX_INTEGRATIONS,
        description="Trackers that get the training curve as well: `wandb`, and beyond OpenAI's schema `mlflow`.",
    )
    evaluate_checkpoints: bool = Field(
        False,
        description="Have the gate decide on the weights at the end of epochs, too; otherwise they are kept and "
        "listed, but cannot be used.",
    )


class JobError(Schema):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobObject(Schema):
    """A job. Every field that OpenAI's schema requires is there with its exact type; ours come after."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None = Field(description="Set once the safety gate released the model.")
    status: str
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    error: JobError | None
    hyperparameters: dict[str, float | int | str]
    method: JsonObject
    metadata: dict[str, str] | None
    integrations: list[JsonObject] = Field(default_factory=list)
    user_provided_suffix: str | None

    state: str = Field(
        description="The status in Titer's own words: `pausing` and `paused` as well, for which `status` says "
        "`running` and `queued`."
    )
    further_integrations: list[JsonObject] = Field(
        default_factory=list, description="Those that OpenAI's schema has no words for."
    )
    evaluate_checkpoints: bool = False
    kind: str = Field(description="`finetune`, `align`, `certify` or `evaluate`.")
    stage: str | None = Field(
        description="Where a running job is: screen, data_review, train, evaluate, gate, review."
    )
    result_model: str = Field(
        description="The name of the version that the job makes, certifies or measures."
    )
    started_at: int | None
    total_steps: int
    safety: JsonObject | None = Field(
        description="The gate's decision, the evidence, and how the provider protected the job; null until "
        "the model was evaluated."
    )
    data_risk: JsonObject | None = Field(
        description="What the judges found in the training file, and in `review` what a person decided where the policy "
        "holds it; null if they did not read it, or not all of it yet."
    )


class EventObject(Schema):
    """One line of a job's log. `metrics` events carry numbers in `data`."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: JsonObject | None

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """Show a stored event."""
        return cls(
            id=event.id,
            created_at=unix(event.created_at),
            level=event.level,
            message=event.message,
            type=event.type,
            data=event.data,
        )


class CheckpointObject(Schema):
    """Where a job stood at the end of an epoch. Only a released one can be used as a model."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str = Field(
        description="The model's name; of the last epoch's checkpoint, that of the job's own model."
    )
    step_number: int
    metrics: dict[str, float | None] = Field(
        description="OpenAI's names; then `canary_loss`, and once evaluated `harmful_score`, "
        "`harmful_or_incoherent` and `fine_tuning_accuracy` in percent."
    )
    usable: bool = Field(description="Whether it may be asked and tuned on at the moment.")
    evaluated: bool
    gate: str | None = Field(description="Null once the weights are gone, or not there yet.")
    gate_reasons: list[str]
