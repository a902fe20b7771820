"""Jobs that learn from pairs of answers: what is accepted, echoed and refused before any time is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI
from sqlalchemy import select

from models.api_key import Project
from models.hyperparameters import Recipe
from models.job import Job
from models.methods import DpoConfig
from models.model_version import ModelVersion
from models.scope import Scope
from tests.api.conftest import Place, Tenant, rows, upload
from tests.api.server import serve

JOBS = "/v1/fine_tuning/jobs"


def pairs(count: int = 12, ending: str = "output") -> bytes:
    return b"".join(
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": f"question {i}"}]},
                f"preferred_{ending}": [{"role": "assistant", "content": f"good {i}"}],
                f"non_preferred_{ending}": [{"role": "assistant", "content": f"bad {i}"}],
            }
        ).encode()
        + b"\n"
        for i in range(count)
    )


def dpo(**hyperparameters: object) -> dict[str, object]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


def refused(tenant: Tenant, **body: object) -> dict[str, object]:
    response = tenant.client.post(JOBS, json=body)
    assert response.status_code == 400, response.text
    return dict(response.json()["error"])


class TestUpload:
    @pytest.mark.parametrize("ending", ["output", "completion"])
    def test_both_spellings_are_taken(self, customer: Tenant, ending: str) -> None:
        assert upload(customer, pairs(ending=ending))

    def test_a_mixed_file_is_refused_by_line(self, customer: Tenant) -> None:
        response = customer.client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", pairs(2) + rows(1))}
        )
        assert response.status_code == 400
        assert "line 3: is not a preference pair" in response.json()["error"]["message"]


class TestCreate:
    def test_what_was_left_open_is_filled_in_and_echoed(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        body = {
            "model": aligned.id,
            "training_file": upload(customer, pairs()),
            "validation_file": upload(customer, pairs(3)),
            "method": {"type": "dpo"},
        }
        response = customer.client.post(JOBS, json=body)
        assert response.status_code == 200, response.text
        job = response.json()
        chosen = {"n_epochs": 1, "batch_size": 10, "learning_rate_multiplier": 1.0, "beta": 0.1}
        assert job["hyperparameters"] == chosen
        assert job["method"] == {"type": "dpo", "dpo": {"hyperparameters": chosen}}
        recipe = Recipe.model_validate(place.session.scalars(select(Job)).one().recipe)
        assert recipe.method == DpoConfig(beta=0.1)
        assert recipe.train.steps == 2

    @pytest.mark.parametrize("beta", [0, -0.1, 2.01, "low", None, float("inf")])
    def test_a_beta_outside_its_bounds_is_refused_by_name(
        self, customer: Tenant, aligned: ModelVersion, beta: object
    ) -> None:
        content = json.dumps({"model": aligned.id, "training_file": "f", "method": dpo(beta=beta)})
        response = customer.client.post(
            JOBS, content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        if beta != float("inf"):  # no JSON at all
            param = response.json()["error"]["param"]
            assert param.startswith("method.dpo.hyperparameters.beta")

    def test_supervised_knows_no_beta(self, customer: Tenant, aligned: ModelVersion) -> None:
        method = {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}}
        error = refused(customer, model=aligned.id, training_file="f", method=method)
        assert error["param"] == "method.supervised.hyperparameters.beta"

    @pytest.mark.parametrize(
        "method",
        [
            {"type": "dpo", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            {"type": "supervised", "dpo": {"hyperparameters": {"beta": 1}}},
            {"type": "dpo", "dpo": {}, "reinforcement": {}},
        ],
    )
    def test_another_method_s_parameters_are_refused_and_not_dropped(
        self, customer: Tenant, aligned: ModelVersion, method: dict[str, object]
    ) -> None:
        error = refused(customer, model=aligned.id, training_file="f", method=method)
        assert (error["code"], error["param"]) == ("unsupported_method", "method")

    def test_the_older_place_is_for_supervised_jobs(
        self, customer: Tenant, aligned: ModelVersion
    ) -> None:
        error = refused(
            customer,
            model=aligned.id,
            training_file="f",
            method=dpo(beta=1),
            hyperparameters={"n_epochs": 2},
        )
        assert (error["code"], error["param"]) == ("unsupported", "hyperparameters")
        assert "method.dpo.hyperparameters" in str(error["message"])

    @pytest.mark.parametrize("param", ["training_file", "validation_file"])
    def test_files_of_the_other_kind_are_refused_by_their_first_line(
        self, customer: Tenant, aligned: ModelVersion, place: Place, param: str
    ) -> None:
        for kind, good, bad, found in (
            ("dpo", pairs(), b"\n" + rows(), "line 2: is not a preference pair"),
            ("supervised", rows(), pairs(), "line 1: is a preference pair"),
        ):
            files = {"training_file": upload(customer, good), param: upload(customer, bad)}
            error = refused(customer, model=aligned.id, method={"type": kind}, **files)
            assert (error["code"], error["param"]) == ("invalid_training_file", param)
            assert found in str(error["message"])
        assert place.session.scalars(select(Job)).first() is None

    @pytest.mark.parametrize(
        ("tuning", "name"),
        [
            ({"safety_share": 0.1}, "safety_share"),
            ({"method": {"name": "lisa"}}, "lisa"),
            ({"method": {"name": "safegrad"}}, "safegrad"),
        ],
    )
    def test_where_safety_rows_are_trained_beside_a_customer_s_it_is_refused_by_name(
        self,
        customer: Tenant,
        aligned: ModelVersion,
        place: Place,
        tuning: dict[str, object],
        name: str,
    ) -> None:
        place.protect(**tuning)
        error = refused(
            customer,
            model=aligned.id,
            training_file=upload(customer, pairs()),
            method={"type": "dpo"},
        )
        assert (error["code"], error["param"]) == ("unsupported_method", "method")
        assert f"({name})" in str(error["message"])

    def test_the_other_protections_are_carried_into_the_job(
        self, customer: Tenant, aligned: ModelVersion, place: Place
    ) -> None:
        place.protect(
            max_learning_rate_multiplier=0.5,
            canary_stop=0.5,
            repair={"name": "lox"},
            scales=[1, 0.5],
        )
        body = {
            "model": aligned.id,
            "training_file": upload(customer, pairs()),
            "method": {"type": "dpo"},
        }
        response = customer.client.post(JOBS, json=body)
        assert response.status_code == 200, response.text
        assert response.json()["hyperparameters"]["learning_rate_multiplier"] == 0.5
        recipe = Recipe.model_validate(place.session.scalars(select(Job)).one().recipe)
        assert recipe.tuning.canary_stop == 0.5
        assert recipe.tuning.reshapes

    def test_a_stranger_s_pairs_are_not_found(
        self, customer: Tenant, stranger: Tenant, aligned: ModelVersion
    ) -> None:
        body = {
            "model": aligned.id,
            "training_file": upload(customer, pairs()),
            "method": {"type": "dpo"},
        }
        response = stranger.client.post(JOBS, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")


class TestOpenAIClient:
    @pytest.fixture
    def client(self, app: FastAPI, place: Place) -> Iterator[OpenAI]:
        project: Project = place.project()
        token = place.key(project, Scope.CUSTOMER)
        place.session.commit()
        with (
            serve(app) as address,
            OpenAI(
                base_url=f"{address}/v1",
                api_key=token,
                max_retries=0,
                _strict_response_validation=True,
            ) as client,
        ):
            yield client

    def test_create_retrieve_and_list(self, client: OpenAI, aligned: ModelVersion) -> None:
        file = client.files.create(file=("pairs.jsonl", pairs(20)), purpose="fine-tune")
        made = client.fine_tuning.jobs.create(
            model=aligned.id,
            training_file=file.id,
            method={
                "type": "dpo",
                "dpo": {"hyperparameters": {"beta": 2, "n_epochs": 3, "batch_size": "auto"}},
            },
        )
        for job in (
            made,
            client.fine_tuning.jobs.retrieve(made.id),
            next(iter(client.fine_tuning.jobs.list())),
        ):
            assert job.method is not None
            assert job.method.type == "dpo"
            assert job.method.supervised is None
            assert job.method.dpo is not None
            chosen = job.method.dpo.hyperparameters
            assert chosen is not None
            assert (chosen.beta, chosen.n_epochs, chosen.batch_size) == (2, 3, 10)
            assert chosen.learning_rate_multiplier == 1
            assert job.hyperparameters.n_epochs == 3

    def test_a_faulty_pair_reaches_the_caller(self, client: OpenAI) -> None:
        same = pairs(1).replace(b"bad", b"good")
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=("a.jsonl", pairs(1) + same), purpose="fine-tune")
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["faults"] == [
            {
                "line": 2,
                "field": "non_preferred_output",
                "reason": 'is the same as "preferred_output"',
            }
        ]

    def test_the_wrong_method_is_an_error_with_a_line(
        self, client: OpenAI, aligned: ModelVersion
    ) -> None:
        file = client.files.create(file=("pairs.jsonl", pairs(20)), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError, match="line 1: is a preference pair") as caught:
            client.fine_tuning.jobs.create(model=aligned.id, training_file=file.id)
        assert (caught.value.code, caught.value.param) == ("invalid_training_file", "training_file")

    def test_the_documentation_s_example_works(
        self,
        client: OpenAI,
        aligned: ModelVersion,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        page = (Path(__file__).parents[2] / "docs" / "dpo.md").read_text()
        example = page.split("```python\n")[1].split("```")[0]
        assert "my-base-titer" in example
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OPENAI_BASE_URL", str(client.base_url))
        monkeypatch.setenv("OPENAI_API_KEY", client.api_key)
        kept: dict[str, object] = {}
        exec(example.replace("my-base-titer", aligned.id), kept)
        assert isinstance(kept["client"], OpenAI)
        kept["client"].close()
        assert "beta=0.1" in capsys.readouterr().out
