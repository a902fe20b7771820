"""The stock client, the api, the built-in server and a tiny model, over real sockets, strictly validated.

One place serves all tests of the file: a base, what was aligned on it, and a customer's tuned model whose
name has slashes and colons.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import openai
import pytest
import structlog
from openai import AsyncOpenAI, OpenAI

from api.app import create_app
from models.api_key import Project, create_key
from models.model_version import Gate, ModelVersion, VersionKind
from models.rows import Message
from models.scope import Scope
from models.session import make_engine, session_factory
from models.settings import Settings
from models.storage import Storage
from tests.api.server import serve
from tests.conftest import fresh_database
from tests.tiny_model import tiny_adapted, tiny_tokenizer
from tests.worker.toy_provider import BASE_ID, add_base
from worker import completion, lora, serving
from worker.base_models import load_model, load_tokenizer
from worker.generation import encode_prompt, generate
from worker.judgement import JudgeError
from worker.serving import create_serving

# Each test starts servers.
pytestmark = pytest.mark.long

ALIGNED = "toy/base-aligned"
HELLO: Any = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Served:
    """Two servers on sockets, and what is behind them."""

    address: str
    settings: Settings
    folder: Path
    project: Project
    key: str
    stranger_key: str
    operator_key: str

    def client(self, key: str | None = None, **options: Any) -> OpenAI:
        return OpenAI(
            base_url=f"{self.address}/v1",
            api_key=key or self.key,
            max_retries=0,
            **{"_strict_response_validation": True, **options},
        )

    def add_tuned(self, name: str, gate: Gate = Gate.RELEASED) -> str:
        prefix = f"models/{name[-8:]}"
        Storage(self.settings.storage_url).put_folder(prefix, self.folder / "adapter")
        engine = make_engine(self.settings.database_url)
        with session_factory(engine).begin() as session:
            version = ModelVersion(
                id=name,
                kind=VersionKind.TUNED,
                gate=gate,
                project_id=self.project.id,
                parent_id=ALIGNED,
                root_id=BASE_ID,
                source={"prefix": prefix},
                safety_prefix="safety/toy",
            )
            session.add(version)
        engine.dispose()
        return name


@pytest.fixture(scope="module")
def served(template_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    storage = Storage((folder / "store").as_uri())
    with ExitStack() as stack:
        settings = Settings(
            database_url=stack.enter_context(fresh_database(template_url)),
            storage_url=storage.url,
            cache_dir=folder / "cache",
            serving_token="secret",
        )
        engine = make_engine(settings.database_url)
        with session_factory(engine).begin() as session:
            add_base(session, storage, folder)
            lora.save(tiny_adapted(), folder / "adapter")
            storage.put_folder("models/adapter", folder / "adapter")
            session.add(
                ModelVersion(
                    id=ALIGNED,
                    kind=VersionKind.ALIGNED,
                    gate=Gate.RELEASED,
                    parent_id=BASE_ID,
                    root_id=BASE_ID,
                    source={"prefix": "models/adapter"},
                    safety_prefix="safety/toy",
                )
            )
            keys = []
            for name, scope in (
                ("acme", Scope.CUSTOMER),
                ("globex", Scope.CUSTOMER),
                ("provider", Scope.OPERATOR),
            ):
                project = Project(name=name)
                session.add(project)
                session.flush()
                keys.append((project, create_key(session, project, "k", frozenset({scope}))[1]))
            session.flush()
        engine.dispose()
        behind = stack.enter_context(serve(create_serving(settings)))
        settings = settings.model_copy(update={"serving_url": behind})
        address = stack.enter_context(serve(create_app(settings)))
        (project, key), (_, stranger), (_, operator) = keys
        yield Served(address, settings, folder, project, key, stranger, operator)


@pytest.fixture(scope="module", autouse=True)
def _plain_log() -> None:
    # Left to itself structlog draws tracebacks with every local variable, which takes seconds.
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
    )


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with served.client() as client:
        yield client


def ask(client: OpenAI, **options: Any) -> Any:
    facts = {"model": ALIGNED, "messages": HELLO, "max_completion_tokens": 8, **options}
    return client.chat.completions.create(**facts)


def text_of(chunks: list[Any], choice: int = 0) -> str:
    return "".join(
        c.choices[0].delta.content or ""
        for c in chunks
        if c.choices and c.choices[0].index == choice
    )


class TestModels:
    def test_list_retrieve_and_delete_a_name_with_slashes_and_colons(
        self, served: Served, client: OpenAI
    ) -> None:
        name = served.add_tuned("ft:toy/base-aligned:acme:mine:00000001")
        listed = {model.id: model for model in client.models.list()}
        assert {ALIGNED, name} <= listed.keys()
        assert BASE_ID not in listed
        shown = client.models.retrieve(name)
        assert (shown.object, shown.shutdown_date) == ("model", None)
        assert shown.owned_by == served.project.organization_id
        assert listed[ALIGNED].owned_by == "titer"
        assert abs(shown.created - time.time()) < 600
        with served.client(served.stranger_key) as stranger:
            for refused in (stranger.models.retrieve, stranger.models.delete):
                with pytest.raises(openai.NotFoundError):
                    refused(name)
        gone = client.models.delete(name)
        assert (gone.id, gone.object, gone.deleted) == (name, "model", True)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)
        with pytest.raises(openai.NotFoundError):
            ask(client, model=name)


class TestChat:
    def test_whole(self, served: Served, client: OpenAI) -> None:
        answer = ask(client)
        (choice,) = answer.choices
        tokenizer = load_tokenizer(served.folder / "base")
        prompt = (Message("user", "hello"),)
        model = lora.load(load_model(served.folder / "base"), served.folder / "adapter")
        heard = generate(model, tokenizer, [prompt], max_new_tokens=8)  # type: ignore[arg-type]
        assert choice.message.content.strip() == heard[0]
        assert (answer.object, answer.model) == ("chat.completion", ALIGNED)
        assert choice.finish_reason in ("stop", "length")
        assert answer.usage.prompt_tokens == len(encode_prompt(tokenizer, prompt))
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )

    def test_length_is_the_reason_where_the_answer_was_cut(self, client: OpenAI) -> None:
        answer = ask(client, max_completion_tokens=3)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3

    def test_stream(self, client: OpenAI) -> None:
        whole = ask(client)
        chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
        assert text_of(chunks) == whole.choices[0].message.content
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[0].choices[0].delta.role == "assistant"
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert reasons[:-1] == [None] * (len(reasons) - 1)
        assert reasons[-1] == whole.choices[0].finish_reason
        assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
        assert all(chunk.usage is None for chunk in ask(client, stream=True))

    def test_the_streaming_helper(self, client: OpenAI) -> None:
        word = ask(client).choices[0].message.content[4:6]
        # One that is cut makes the helper raise.
        with client.chat.completions.stream(
            model=ALIGNED, messages=HELLO, stop=word, logprobs=True, max_tokens=8
        ) as stream:
            final = stream.get_final_completion()
        whole = ask(client, stop=word, logprobs=True)
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content

    @pytest.mark.parametrize("as_list", [False, True])
    def test_stop(self, client: OpenAI, as_list: bool) -> None:
        full = ask(client, max_completion_tokens=20).choices[0].message.content
        word = full[4:6]
        stop: Any = ["\0never", word] if as_list else word
        cut = ask(client, max_completion_tokens=20, stop=stop)
        assert cut.choices[0].message.content == full[: full.index(word)]
        assert cut.choices[0].finish_reason == "stop"
        streamed = list(ask(client, max_completion_tokens=20, stop=stop, stream=True))
        assert text_of(streamed) == full[: full.index(word)]

    def test_a_seed_repeats_drawn_answers(self, client: OpenAI) -> None:
        drawn = {"temperature": 1.5, "seed": 7, "n": 3, "max_completion_tokens": 12}
        one, two = (ask(client, **drawn) for _ in range(2))
        texts = [choice.message.content for choice in one.choices]
        assert texts == [choice.message.content for choice in two.choices]
        assert [choice.index for choice in one.choices] == [0, 1, 2]
        assert len(set(texts)) == 3
        other = ask(client, **{**drawn, "seed": 8})
        assert texts != [choice.message.content for choice in other.choices]
        chunks = list(ask(client, stream=True, **drawn))
        assert [text_of(chunks, choice) for choice in range(3)] == texts

    def test_the_smallest_nucleus_and_the_smallest_temperature_are_greedy(
        self, client: OpenAI
    ) -> None:
        greedy = ask(client).choices[0].message.content
        for options in ({"temperature": 2, "top_p": 1e-9}, {"temperature": 1e-9}):
            assert ask(client, **options).choices[0].message.content == greedy

    def test_log_probabilities(self, client: OpenAI) -> None:
        answer = ask(client, logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        said = answer.choices[0].message.content
        assert len(content) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)
        if all(entry.bytes is not None for entry in content):
            assert bytes(b for entry in content for b in entry.bytes).decode() == said
        for entry in content:
            assert len(entry.top_logprobs) == 3
            # Greedy: what was said is the most probable.
            assert entry.logprob == entry.top_logprobs[0].logprob
            assert 0 < sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0001
        bare = ask(client, logprobs=True)
        assert [e.logprob for e in bare.choices[0].logprobs.content] == [e.logprob for e in content]
        assert bare.choices[0].logprobs.content[0].top_logprobs == []
        assert ask(client).choices[0].logprobs is None
        streamed = [
            entry
            for chunk in ask(client, logprobs=True, top_logprobs=3, stream=True)
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content
        ]
        assert [entry.logprob for entry in streamed] == [entry.logprob for entry in content]

    def test_biases_and_penalties_change_what_is_said(self, client: OpenAI) -> None:
        token = _token_of("x")
        forced = ask(client, logit_bias={str(token): 100})
        assert forced.choices[0].message.content == "x" * 8
        freed = ask(client, logit_bias={str(token): 100}, frequency_penalty=2)
        assert freed.choices[0].message.content == "x" * 8  # 100 outweighs 7 × 2.
        banned = ask(client, logit_bias={str(token): -100})
        assert "x" not in banned.choices[0].message.content
        repeated = {"logit_bias": {str(token): 4}, "max_completion_tokens": 24}
        plain = ask(client, **repeated).choices[0].message.content
        for penalty in ("presence_penalty", "frequency_penalty"):
            said = ask(client, **repeated, **{penalty: 2}).choices[0].message.content
            assert said.count("x") < plain.count("x"), penalty

    def test_an_unknown_token_and_a_prompt_that_does_not_fit_are_named(
        self, client: OpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, logit_bias={"999999999": 1})
        assert (caught.value.code, caught.value.param) == ("unknown_token", "logit_bias")
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                ask(client, messages=[{"role": "user", "content": "x" * 500}], stream=stream)
            assert caught.value.code == "context_length_exceeded"

    def test_what_changes_nothing_is_taken(self, client: OpenAI) -> None:
        answer = ask(
            client,
            user="u",
            metadata={"a": "b"},
            store=True,
            service_tier="auto",
            reasoning_effort="low",
            verbosity="low",
            safety_identifier="s",
            prompt_cache_key="k",
            parallel_tool_calls=True,
            response_format={"type": "text"},
            modalities=["text"],
            prediction={"type": "content", "content": "x"},
        )
        assert answer.choices[0].message.content == ask(client).choices[0].message.content

    def test_others_models_are_absent_and_blocked_ones_refused(
        self, served: Served, client: OpenAI
    ) -> None:
        mine = served.add_tuned("ft:toy/base-aligned:acme::00000002")
        assert ask(client, model=mine).model == mine
        blocked = served.add_tuned("ft:toy/base-aligned:acme::00000003", Gate.BLOCKED)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            ask(client, model=blocked)
        assert caught.value.code == "model_blocked"
        with served.client(served.stranger_key) as stranger, pytest.raises(openai.NotFoundError):
            ask(stranger, model=mine)

    def test_the_async_client(self, served: Served, client: OpenAI) -> None:
        expected = ask(client).choices[0].message.content

        async def go() -> tuple[str | None, list[str | None]]:
            async with AsyncOpenAI(
                base_url=f"{served.address}/v1",
                api_key=served.key,
                max_retries=0,
                _strict_response_validation=True,
            ) as client:
                facts: Any = {"model": ALIGNED, "messages": HELLO, "max_tokens": 8}
                stream = await client.chat.completions.create(**facts, stream=True)
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                answers = await asyncio.gather(
                    *(client.chat.completions.create(**facts) for _ in range(8))
                )
                return text, [answer.choices[0].message.content for answer in answers]

        assert asyncio.run(go()) == (expected, [expected] * 8)


class TestCompletions:
    def test_a_prompt_is_a_turn_of_a_chat(self, client: OpenAI) -> None:
        chat = ask(client, logprobs=True, top_logprobs=2)
        answer = client.completions.create(
            model=ALIGNED, prompt="hello", max_tokens=8, logprobs=2, user="u"
        )
        (choice,) = answer.choices
        assert (answer.object, choice.index) == ("text_completion", 0)
        assert choice.text == chat.choices[0].message.content
        assert choice.finish_reason == chat.choices[0].finish_reason
        assert answer.usage == chat.usage
        logprobs, content = choice.logprobs, chat.choices[0].logprobs.content
        assert logprobs is not None
        assert logprobs.token_logprobs == [entry.logprob for entry in content]
        assert logprobs.text_offset == list(range(len(content)))
        assert logprobs.top_logprobs is not None
        assert all(len(top) <= 2 for top in logprobs.top_logprobs)

    def test_several_prompts_with_several_choices_and_echo(
        self, served: Served, client: OpenAI
    ) -> None:
        facts: Any = {
            "model": ALIGNED,
            "prompt": ["hello", "you"],
            "n": 2,
            "temperature": 1,
            "seed": 1,
            "echo": True,
        }
        answer = client.completions.create(**facts)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text[:3] for choice in answer.choices] == ["hel", "hel", "you", "you"]
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 4 * 16
        # The client's strict type for chunks knows no open choice, though OpenAI's streams have them.
        with served.client(_strict_response_validation=False) as lenient:
            chunks = list(
                lenient.completions.create(
                    **facts, stream=True, stream_options={"include_usage": True}
                )
            )
        streamed = ["", "", "", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        assert streamed == [choice.text for choice in answer.choices]
        assert chunks[-1].usage == answer.usage

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"suffix": "x"}, "suffix"),
            ({"best_of": 3}, "best_of"),
            ({"echo": True, "logprobs": 1}, "echo"),
            ({"prompt": [1, 2]}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": ["x"] * 17}, "prompt"),
            ({"logprobs": 6}, "logprobs"),
        ],
    )
    def test_what_is_refused_is_named(
        self, client: OpenAI, options: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**{"model": ALIGNED, "prompt": "x", **options})
        assert (caught.value.param or "").split("[")[0] == param

    def test_a_later_prompt_that_does_not_fit_ends_the_stream_in_an_error(
        self, served: Served
    ) -> None:
        facts: Any = {"model": ALIGNED, "prompt": ["hello", "x" * 500]}
        with served.client(_strict_response_validation=False) as client:
            with pytest.raises(openai.BadRequestError):
                client.completions.create(**facts)
            stream = client.completions.create(**facts, stream=True)
            with pytest.raises(openai.APIError) as caught:
                list(stream)
        assert caught.value.code == "context_length_exceeded"


class TestModerations:
    def test_every_input_has_a_result_with_all_categories(self, client: OpenAI) -> None:
        # The toy's judge calls every answer harmful that is no refusal.
        answer = client.moderations.create(input=["step a b c", "I cannot do that.", ""])
        assert [result.flagged for result in answer.results] == [True, False, False]
        assert answer.id.startswith("modr-")
        for result in answer.results:
            shown = result.categories.model_dump(by_alias=True)
            assert len([name for name in shown if name != "harmful"]) == 13
            assert shown["harmful"] is result.flagged if result.flagged else True
            scores = result.category_scores.model_dump(by_alias=True)
            assert set(scores.values()) <= {0.0, 1.0}
            assert result.category_applied_input_types.hate == ["text"]
        assert answer.model == "refusal-strings"
        assert answer.model_extra is not None
        assert answer.model_extra["judge"]["revision"]

    def test_the_forms_of_input(self, client: OpenAI) -> None:
        assert len(client.moderations.create(input="x").results) == 1
        parts: Any = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        assert len(client.moderations.create(input=parts).results) == 1
        for model in (ALIGNED, BASE_ID, "text-moderation-latest"):
            assert client.moderations.create(input="x", model=model).results[0].flagged
        asked = client.moderations.create(
            input=["I cannot."], extra_body={"prompts": ["how do I snarb?"]}
        )
        assert not asked.results[0].flagged

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"input": []}, "input"),
            ({"input": ["x"] * 129}, "input"),
            ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input"),
            ({"input": "x", "extra_body": {"prompts": ["a", "b"]}}, "prompts"),
        ],
    )
    def test_what_is_refused_is_named(
        self, client: OpenAI, options: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.moderations.create(**options)
        assert (caught.value.param or "").startswith(param)

    def test_unknown_models_and_others_models_are_absent(
        self, served: Served, client: OpenAI
    ) -> None:
        mine = served.add_tuned("ft:toy/base-aligned:acme::00000004")
        assert client.moderations.create(input="x", model=mine).results
        with served.client(served.stranger_key) as stranger:
            for model in (mine, "nobody"):
                with pytest.raises(openai.NotFoundError):
                    stranger.moderations.create(input="x", model=model)

    def test_a_judge_that_fails_is_no_verdict(
        self, client: OpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        faults: list[tuple[Exception, str]] = [
            (JudgeError("The judge's model is gone."), "judge_failed"),
            (RuntimeError("x"), "serving_unavailable"),
        ]
        for fault, code in faults:
            monkeypatch.setattr(serving, "open_judge", Mock(side_effect=fault))
            with pytest.raises(openai.InternalServerError) as caught:
                client.moderations.create(input="x")
            assert (caught.value.status_code, caught.value.code) == (503, code)


class Brake:
    """Lets generation wait at its first token until it is released or nobody wants it."""

    def __init__(self) -> None:
        self.began, self.released, self.given_up = (threading.Event() for _ in range(3))

    def hold(self, watch: Any) -> None:
        self.began.set()
        while not self.released.wait(0.01):
            if watch._is_unwanted():
                self.given_up.set()
                return


class TestManyAtOnce:
    @pytest.fixture
    def brake(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Brake]:
        brake, original = Brake(), completion.Watch.__call__

        def watched(self: Any, *arguments: Any, **named: Any) -> Any:
            brake.hold(self)
            return original(self, *arguments, **named)

        monkeypatch.setattr(completion.Watch, "__call__", watched)
        yield brake
        brake.released.set()

    def test_one_too_many_is_told_to_come_again(self, served: Served, brake: Brake) -> None:
        async def go() -> None:
            async with AsyncOpenAI(
                base_url=f"{served.address}/v1", api_key=served.key, max_retries=0
            ) as client:
                facts: Any = {"model": ALIGNED, "messages": HELLO, "max_tokens": 2}
                asked = [
                    asyncio.create_task(client.chat.completions.create(**facts))
                    for _ in range(serving.CHAT_PLACES + 1)
                ]
                done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                (refused,) = done
                error = refused.exception()
                assert isinstance(error, openai.InternalServerError)
                assert (error.status_code, error.code) == (503, "serving_busy")
                assert float(error.response.headers["retry-after"]) > 0
                # None of those who wait holds what others need.
                assert ALIGNED in [model.id async for model in client.models.list()]
                brake.released.set()
                answers = await asyncio.gather(*waiting)
                assert len({answer.choices[0].message.content for answer in answers}) == 1

        asyncio.run(go())

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves_ends_its_generation(
        self, served: Served, client: OpenAI, brake: Brake, stream: bool
    ) -> None:
        with (
            served.client(timeout=0.5) as leaving,
            pytest.raises(openai.APITimeoutError),
        ):
            list(ask(leaving, stream=stream))
        assert brake.began.is_set()
        assert brake.given_up.wait(10)
        assert not brake.released.is_set()
        brake.released.set()
        assert ask(client).choices[0].message.content

    def test_one_that_leaves_the_line_is_never_begun(
        self, served: Served, client: OpenAI, brake: Brake
    ) -> None:
        first = threading.Thread(target=lambda: ask(client))
        first.start()
        assert brake.began.wait(10)
        brake.began.clear()
        with served.client(timeout=0.3) as leaving, pytest.raises(openai.APITimeoutError):
            ask(leaving)
        brake.released.set()
        first.join()
        # The next turn is another's: the one that left has taken none.
        assert ask(client).usage.completion_tokens
        assert not brake.given_up.is_set()

    def test_a_generation_that_fails_ends_its_stream_in_an_error(
        self, client: OpenAI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = completion.Watch.__call__

        def failing(self: Any, input_ids: Any, *arguments: Any, **named: Any) -> Any:
            if self.new_tokens == 3:
                raise RuntimeError("out of memory, say")
            return original(self, input_ids, *arguments, **named)

        monkeypatch.setattr(completion.Watch, "__call__", failing)
        stream = ask(client, stream=True)
        assert next(stream).choices[0].delta.role == "assistant"
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert (caught.value.code, caught.value.type) == ("unavailable", "server_error")
        with pytest.raises(openai.InternalServerError) as whole:
            ask(client)
        assert whole.value.code == "serving_unavailable"
        monkeypatch.undo()
        assert ask(client).choices[0].message.content

    def test_a_model_whose_files_are_gone_is_no_fault_of_the_request(
        self, served: Served, client: OpenAI
    ) -> None:
        name = served.add_tuned("ft:toy/base-aligned:acme::00000005")
        Storage(served.settings.storage_url).delete_folder("models/00000005")
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                ask(client, model=name, stream=stream)
            assert (caught.value.status_code, caught.value.code) == (503, "model_unavailable")


def _token_of(letter: str) -> int:
    return int(tiny_tokenizer().convert_tokens_to_ids(letter))
