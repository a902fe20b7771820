"""A run at an MLflow tracking server, by its REST API (2.0): five calls need none of its client's packages."""

from __future__ import annotations

from collections.abc import Mapping
from time import time
from typing import Any

import httpx

from models.integrations import Mlflow
from worker.trackers.run import NotConfigured, Outcome, Subject, Tracking

SECONDS = 5.0
API = "/api/2.0/mlflow"
JOB_TAG = "titer.job"
STATUS = {Outcome.FINISHED: "FINISHED", Outcome.FAILED: "FAILED", Outcome.STOPPED: "KILLED"}


class MlflowRun:
    """See `Run`. Raises `httpx.HTTPError` when the server does not answer as it should."""

    def __init__(self, wanted: Mlflow, subject: Subject, tracking: Tracking) -> None:
        """Find the job's run, or make it.

        Raises:
            NotConfigured: no server is set.
        """
        if not tracking.mlflow_tracking_uri:
            raise NotConfigured("no tracking server is set")
        token = tracking.mlflow_token.get_secret_value()
        self._client = httpx.Client(
            base_url=tracking.mlflow_tracking_uri.rstrip("/"),
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=SECONDS,
            trust_env=False,
        )
        try:
            experiment = self._experiment(f"titer/{subject.project_id}/{wanted.experiment}")
            self._id = self._earlier_run(experiment, subject) or self._new_run(
                experiment, wanted, subject
            )
        except BaseException:
            self._client.close()
            raise

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log a step's numbers in one call."""
        now = _milliseconds()
        metrics = [
            {"key": name, "value": value, "timestamp": now, "step": step}
            for name, value in numbers.items()
        ]
        self._post("runs/log-batch", run_id=self._id, metrics=metrics)

    def end(self, outcome: Outcome) -> None:
        """Say how it ended, and close the connection."""
        try:
            self._post(
                "runs/update", run_id=self._id, status=STATUS[outcome], end_time=_milliseconds()
            )
        finally:
            self._client.close()

    def _experiment(self, name: str) -> str:
        found = self._find_experiment(name)
        if found is None:
            made = self._client.post(f"{API}/experiments/create", json={"name": name})
            if made.is_success:
                return str(made.json()["experiment_id"])
            # Another job may have made it between the two questions.
            found = self._find_experiment(name)
            if found is None:
                made.raise_for_status()
                raise httpx.HTTPError("no experiment was made")
        return found

    def _find_experiment(self, name: str) -> str | None:
        answer = self._client.get(
            f"{API}/experiments/get-by-name", params={"experiment_name": name}
        )
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return str(answer.raise_for_status().json()["experiment"]["experiment_id"])

    def _earlier_run(self, experiment: str, subject: Subject) -> str | None:
        found = self._post(
            "runs/search",
            experiment_ids=[experiment],
            filter=f"tags.`{JOB_TAG}` = '{subject.job_id}'",
            max_results=1,
        )
        if not found.get("runs"):
            return None
        run_id = str(found["runs"][0]["info"]["run_id"])
        self._post("runs/update", run_id=run_id, status="RUNNING")
        return run_id

    def _new_run(self, experiment: str, wanted: Mlflow, subject: Subject) -> str:
        tags = {**(wanted.tags or {}), JOB_TAG: subject.job_id}
        made = self._post(
            "runs/create",
            experiment_id=experiment,
            run_name=wanted.name or subject.job_id,
            start_time=_milliseconds(),
            tags=[{"key": key, "value": value} for key, value in tags.items()],
        )
        run_id = str(made["run"]["info"]["run_id"])
        parameters = [
            {"key": name, "value": str(value)} for name, value in subject.parameters.items()
        ]
        self._post("runs/log-batch", run_id=run_id, params=parameters)
        return run_id

    def _post(self, call: str, **body: object) -> dict[str, Any]:
        answer = self._client.post(f"{API}/{call}", json=body).raise_for_status()
        return dict(answer.json())


def _milliseconds() -> int:
    return int(1000 * time())
