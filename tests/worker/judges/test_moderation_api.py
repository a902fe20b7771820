"""The moderation endpoint, against a small server of the test's own."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.judges import ModerationApiSpec
from worker import endpoint as endpoint_module
from worker.judge import open_judge
from worker.judgement import JudgeError, Judgement

FLAG = "#"
SECRET = "secretword"
KEY = "key-that-nobody-may-see"


class Endpoint(ThreadingHTTPServer):
    """Flags texts with a `#`. `failures` are answered first, each with its status, headers and body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, object]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.failures: list[tuple[int, dict[str, str], bytes]] = []
        self.answer: bytes | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def texts(self) -> list[list[str]]:
        return [request["input"] for request in self.requests]  # type: ignore[misc]


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["authorization"])
        self.server.paths.append(self.path)
        status, headers, body = 200, {}, self.server.answer
        if self.server.failures:
            status, headers, body = self.server.failures.pop(0)
        if body is None:
            body = json.dumps({"results": [result(text) for text in request["input"]]}).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def result(text: str) -> dict[str, object]:
    score = min(1.0, 0.3 * text.count(FLAG))
    return {
        "flagged": FLAG in text,
        "categories": {"violence": FLAG in text, "hate": False},
        "category_scores": {"violence": score, "hate": 0.1, "new": None},
        "category_applied_input_types": {"violence": ["text"]},
    }


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits in these tests; what would have been waited is told."""
    waited: list[float] = []
    monkeypatch.setattr(endpoint_module.time, "sleep", waited.append)
    return waited


def spec_for(endpoint: Endpoint, **options: object) -> ModerationApiSpec:
    return ModerationApiSpec.model_validate({"base_url": endpoint.url, "model": "m", **options})


class TestJudging:
    def test_flags_harm_in_the_order_of_the_answers(self, endpoint: Endpoint) -> None:
        answers = ["a", f"b {FLAG}", "", "I'm sorry.", f"{FLAG}", "go go go go"]
        judged = open_judge(spec_for(endpoint)).judge(["?"] * 6, answers)
        assert judged == [
            Judgement(False, False, False),
            Judgement(True, False, False, "violence"),
            Judgement(False, False, True),
            Judgement(False, True, False),
            Judgement(True, False, False, "violence"),
            Judgement(False, False, True),
        ]
        assert endpoint.paths == ["/v1/moderations"]
        assert endpoint.requests[0]["model"] == "m"

    def test_sends_bounded_batches_and_no_empty_answers(self, endpoint: Endpoint) -> None:
        answers = ["a", "b", " ", "c", "d", f"e {FLAG}"]
        judged = open_judge(spec_for(endpoint, batch_size=2)).judge(["?"] * 6, answers)
        assert endpoint.texts() == [["a", "b"], ["c", "d"], [f"e {FLAG}"]]
        assert [judgement.is_harmful for judgement in judged] == [False] * 5 + [True]

    def test_reads_the_answer_or_the_exchange(self, endpoint: Endpoint) -> None:
        open_judge(spec_for(endpoint)).judge(["why?"], ["so"])
        open_judge(spec_for(endpoint, reads="exchange")).judge(["why?"], ["so"])
        assert endpoint.texts() == [["so"], ["why?\n\nso"]]

    def test_a_threshold_goes_before_the_endpoints_flag(self, endpoint: Endpoint) -> None:
        judge = open_judge(spec_for(endpoint, threshold=0.5))
        judged = judge.judge(["?"] * 2, [FLAG, FLAG * 2])
        assert [judgement.is_harmful for judgement in judged] == [False, True]

    def test_takes_the_refusal_phrases_of_the_safety_set(self, endpoint: Endpoint) -> None:
        judge = open_judge(spec_for(endpoint, refusal_phrases=["nein"]))
        assert judge.judge(["?"], ["Nein."])[0].is_refusal

    def test_an_answer_without_a_prompt_is_an_error(self, endpoint: Endpoint) -> None:
        with pytest.raises(JudgeError, match="1 prompts and 2 answers"):
            open_judge(spec_for(endpoint)).judge(["?"], ["a", "b"])


class TestKey:
    def test_comes_from_the_named_variable(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JUDGE_TEST_KEY", KEY)
        judge = open_judge(spec_for(endpoint, key_variable="JUDGE_TEST_KEY"))
        judge.judge(["?"], ["a"])
        # A new key needs no new judge.
        monkeypatch.setenv("JUDGE_TEST_KEY", "another")
        judge.judge(["?"], ["a"])
        assert endpoint.keys == [f"Bearer {KEY}", "Bearer another"]

    def test_no_variable_no_header(self, endpoint: Endpoint) -> None:
        open_judge(spec_for(endpoint)).judge(["?"], ["a"])
        assert endpoint.keys == [None]

    def test_an_unset_variable_makes_no_judge(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("JUDGE_ABSENT_KEY", raising=False)
        with pytest.raises(JudgeError, match="JUDGE_ABSENT_KEY is not set"):
            open_judge(spec_for(endpoint, key_variable="JUDGE_ABSENT_KEY"))

    def test_is_in_no_error(self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        # A line end in a key is a common slip; the client would quote the whole header.
        monkeypatch.setenv("JUDGE_TEST_KEY", KEY + "\n x")
        judge = open_judge(spec_for(endpoint, key_variable="JUDGE_TEST_KEY"))
        with pytest.raises(JudgeError) as caught:
            judge.judge(["?"], ["a"])
        assert KEY not in "".join(traceback_of(caught.value))


class TestTrouble:
    def ask(self, endpoint: Endpoint, **options: object) -> Judgement:
        spec = spec_for(endpoint, **options)
        return open_judge(spec).judge(["?"], [f"{SECRET} {FLAG}"])[0]

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_asks_again_with_pauses_that_double(
        self, endpoint: Endpoint, pauses: list[float], status: int
    ) -> None:
        endpoint.failures = [(status, {}, b"")] * 3
        assert self.ask(endpoint).is_harmful
        assert pauses == [1.0, 2.0, 4.0]

    def test_waits_as_long_as_it_is_asked_to_but_no_longer_than_a_minute(
        self, endpoint: Endpoint, pauses: list[float]
    ) -> None:
        endpoint.failures = [
            (429, {"retry-after": "7"}, b""),
            (429, {"retry-after": "9999"}, b""),
            (429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""),
        ]
        assert self.ask(endpoint).is_harmful
        assert pauses == [7.0, 60.0, 4.0]

    def test_gives_up_after_the_last_try(self, endpoint: Endpoint, pauses: list[float]) -> None:
        endpoint.failures = [(503, {}, b"")] * 9
        with pytest.raises(JudgeError, match="each of 3 tries"):
            self.ask(endpoint, tries=3)
        assert len(endpoint.requests) == 3
        assert len(pauses) == 2

    @pytest.mark.parametrize("status", [400, 401, 404, 307])
    def test_a_refused_request_is_not_repeated(self, endpoint: Endpoint, status: int) -> None:
        endpoint.failures = [(status, {"location": "http://127.0.0.1:1/"}, SECRET.encode())]
        with pytest.raises(JudgeError, match=f"answered {status}") as caught:
            self.ask(endpoint)
        assert len(endpoint.requests) == 1
        assert SECRET not in "".join(traceback_of(caught.value))

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"not json",
            b"[]",
            b'{"results": []}',
            b'{"results": [{"flagged": "yes"}]}',
            b'{"results": [{"flagged": 1}]}',
            b'{"results": [{}]}',
            b'{"results": [{"flagged": true}, {"flagged": true}]}',
            b'{"results": [{"flagged": false, "category_scores": {"a": "secretword"}}]}',
            b'{"results": [{"flagged": false, "category_scores": {"a": NaN}}]}',
        ],
    )
    def test_an_answer_in_another_form_is_no_verdict(
        self, endpoint: Endpoint, answer: bytes
    ) -> None:
        endpoint.answer = answer
        with pytest.raises(JudgeError) as caught:
            self.ask(endpoint)
        assert SECRET not in "".join(traceback_of(caught.value))

    def test_a_threshold_without_scores_is_no_verdict(self, endpoint: Endpoint) -> None:
        endpoint.answer = b'{"results": [{"flagged": true}]}'
        assert self.ask(endpoint).is_harmful
        with pytest.raises(JudgeError, match="no scores"):
            self.ask(endpoint, threshold=0.5)

    def test_an_answer_without_end_is_cut_off(
        self, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(endpoint_module, "MAX_RESPONSE_BYTES", 1000)
        endpoint.answer = b" " * 5000
        with pytest.raises(JudgeError, match="too large"):
            self.ask(endpoint)

    def test_nobody_listens(self, endpoint: Endpoint) -> None:
        spec = ModerationApiSpec(base_url="http://127.0.0.1:9/v1", model="m", tries=2)
        with pytest.raises(JudgeError, match="each of 2 tries"):
            open_judge(spec).judge(["?"], ["a"])


class TestIdentity:
    def test_follows_address_model_and_options(self, endpoint: Endpoint) -> None:
        specs = [
            spec_for(endpoint),
            spec_for(endpoint, model="n"),
            spec_for(endpoint, base_url="https://example.org/v1"),
            spec_for(endpoint, threshold=0.5),
            spec_for(endpoint, reads="exchange"),
            spec_for(endpoint, refusal_phrases=["nein"]),
        ]
        identities = [open_judge(spec).identity for spec in specs]
        assert len({identity.revision for identity in identities}) == len(specs)
        assert identities[1].name == "moderation-api:n"

    def test_does_not_follow_patience(self, endpoint: Endpoint) -> None:
        patient = spec_for(endpoint, tries=9, timeout_seconds=99.0, batch_size=3)
        assert open_judge(patient).identity == open_judge(spec_for(endpoint)).identity


def traceback_of(error: BaseException) -> list[str]:
    """What a log would show of an error: its causes, too, but not the values of variables."""
    return traceback.format_exception(error)
