"""A run at Weights & Biases, by its own client, which is installed with the extra `wandb`.

The client is told all that it would otherwise look for in the environment or collect of its own accord: it
sends the curve and the hyper-parameters, and nothing of this machine, its code or its console.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping

from models.integrations import Wandb
from worker.trackers.run import NotConfigured, Outcome, Subject, Tracking

# A tracker that does not answer must not hold a GPU for longer.
SECONDS = 60.0


class WandbRun:
    """See `Run`."""

    def __init__(self, wanted: Wandb, subject: Subject, tracking: Tracking) -> None:
        """Open the job's run, or go on in it.

        Raises:
            NotConfigured: no key is set, or the client is not installed.
        """
        key = tracking.wandb_api_key.get_secret_value()
        if not key:
            raise NotConfigured("no API key is set")
        try:
            # At the top of the module it would cost every worker seconds, and fail where it is not installed.
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise NotConfigured("the worker lacks its client, the extra 'wandb'") from error
        self._folder = subject.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            entity=tracking.wandb_entity or None,
            project=f"{subject.project_id}-{wanted.project}",
            id=subject.job_id,
            resume="allow",
            name=wanted.name or subject.job_id,
            tags=[*(wanted.tags or []), "titer", subject.job_id],
            config=dict(subject.parameters),
            settings=wandb.Settings(
                api_key=key,
                base_url=tracking.wandb_base_url,
                root_dir=str(subject.folder),
                init_timeout=SECONDS,
                finish_timeout=SECONDS,
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                host="titer",
                # A job may name two projects, each a run of its own.
                reinit="create_new",
            ),
        )

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log a step's numbers; the client sends them in its own time."""
        self._run.log(dict(numbers), step=step)

    def end(self, outcome: Outcome) -> None:
        """Wait until all is sent, but not for ever."""
        self._run.finish(exit_code=0 if outcome == Outcome.FINISHED else 1)
        # Where WANDB_MODE=offline is set, an operator sends the files on later (`wandb sync`).
        if not self._run.offline:
            shutil.rmtree(self._folder, ignore_errors=True)
