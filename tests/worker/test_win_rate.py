"""Both orders are asked, positions cancel out, and a judge that cannot be read gives no number."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.endpoint import EndpointSpec
from models.rows import Conversation, Message
from tests.tiny_model import tiny_model, tiny_tokenizer
from tests.worker.chat_stand_in import judge, longer
from worker import endpoint
from worker.judgement import JudgeError
from worker.win_rate import compare, measure_win_rate, read_verdict

# Each test starts a server.
pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_SECONDS", 0.0)


class TestCompare:
    def test_counts_wins_ties_and_losses_over_both_orders(self) -> None:
        progress: list[tuple[str, int, int]] = []
        with judge(longer) as server:
            rate = compare(
                ["q1", "q2", "q3", "q4"],
                ["long answer", "even", "no", "longer"],
                ["short", "even", "far longer", "long"],
                server.spec,
                lambda *told: progress.append(told),
            )
        assert (rate.wins, rate.ties, rate.losses, rate.turned_by_order) == (2, 1, 1, 0)
        assert rate.points == 2.5
        assert rate.to_wire()["percent"] == 62.5
        assert rate.answer_characters == pytest.approx((11 + 4 + 2 + 6) / 4)
        assert len(server.requests) == 8
        assert progress[-1] == ("Answers compared", 8, 8)
        assert server.requests[0]["temperature"] == 0

    def test_a_judge_that_prefers_a_position_gives_one_half(self) -> None:
        with judge(lambda _first, _second: "VERDICT: A") as server:
            rate = compare(["q"] * 3, ["x"] * 3, ["y"] * 3, server.spec)
        assert (rate.ties, rate.points, rate.turned_by_order) == (3, 1.5, 3)

    def test_a_win_in_one_order_and_a_tie_in_the_other_is_three_quarters(self) -> None:
        with judge(lambda first, _: "VERDICT: A" if first == "mine" else "VERDICT: TIE") as server:
            rate = compare(["q"], ["mine"], ["theirs"], server.spec)
        assert (rate.wins, rate.points, rate.turned_by_order) == (1, 0.75, 1)

    def test_the_interval_is_wilsons(self) -> None:
        with judge(longer) as server:
            rate = compare(["q"] * 10, ["longer"] * 10, ["short"] * 10, server.spec).to_wire()
        assert (rate["percent"], rate["high"]) == (100.0, 100.0)
        assert rate["low"] == pytest.approx(72.25, abs=0.01)

    @pytest.mark.parametrize(
        "reply", ["A", "VERDICT:", "VERDICT: C", "VERDICT: A or B", "", "I cannot say"]
    )
    def test_a_verdict_that_cannot_be_read_is_an_error(self, reply: str) -> None:
        with judge(lambda *_: reply) as server, pytest.raises(JudgeError, match="verdict"):
            compare(["secret words"], ["x"], ["y"], server.spec)

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"choices": []}', b'{"choices": [{"x": 1}]}'])
    def test_another_form_is_an_error(self, body: bytes) -> None:
        with judge(longer) as server:
            server.body = body
            with pytest.raises(JudgeError, match="another form"):
                compare(["q"], ["x"], ["y"], server.spec)

    def test_lists_of_other_lengths_are_a_mistake(self) -> None:
        with judge(longer) as server, pytest.raises(ValueError, match="zip"):
            compare(["q"], ["x", "y"], ["z"], server.spec)


class TestVerdict:
    @pytest.mark.parametrize(
        ("reply", "score"),
        [
            ("VERDICT: A", 1.0),
            ("It wins.\n**Verdict: b**", 0.0),
            ("Not VERDICT: A but\nVERDICT: TIE.", 0.5),
            ("VERDICT: A\nOn reflection:\nVERDICT: B\n", 0.0),
        ],
    )
    def test_is_the_last_line_that_is_one(self, reply: str, score: float) -> None:
        assert read_verdict(reply) == score


class TestEndpoint:
    def test_is_asked_again_while_it_is_busy(self) -> None:
        with judge(longer) as server:
            server.failures_left = 2
            assert compare(["q"], ["longer"], ["short"], server.spec).wins == 1

    def test_is_given_up_after_its_tries(self) -> None:
        with judge(longer) as server:
            server.failures_left = 100
            with pytest.raises(JudgeError, match="each of 3 tries"):
                compare(["q"], ["x"], ["y"], server.spec)

    def test_a_refusal_is_not_repeated_and_nothing_of_it_is_quoted(self) -> None:
        with judge(longer) as server:
            server.status, server.body = 400, b"secret"
            with pytest.raises(JudgeError, match="400") as caught:
                compare(["q"], ["x"], ["y"], server.spec)
            assert len(server.requests) <= 2
        assert "secret" not in caught.value.message

    def test_silence_is_an_error(self) -> None:
        spec = EndpointSpec(base_url="http://127.0.0.1:9", model="m", tries=1)
        with pytest.raises(JudgeError):
            compare(["q"], ["x"], ["y"], spec)

    def test_too_much_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint, "MAX_RESPONSE_BYTES", 100)
        with judge(lambda *_: "x" * 200) as server, pytest.raises(JudgeError, match="too large"):
            compare(["q"], ["x"], ["y"], server.spec)

    def test_the_key_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with judge(longer) as server:
            spec = server.spec.model_copy(update={"key_variable": "JUDGE_KEY"})
            with pytest.raises(JudgeError, match="JUDGE_KEY is not set"):
                compare(["q"], ["x"], ["y"], spec)
            monkeypatch.setenv("JUDGE_KEY", "k-1")
            compare(["q"], ["x"], ["y"], spec)
            assert set(server.keys) == {"Bearer k-1"}

    @pytest.mark.parametrize(
        "facts",
        [
            {"base_url": "ftp://host/v1"},
            {"base_url": "https://user:word@host/v1"},
            {"base_url": "https://host/v1?key=1"},
            {"base_url": "http://host/v1", "key_variable": "JUDGE_KEY"},
            {"base_url": "https://host/v1", "key_variable": "DATABASE_URL"},
        ],
    )
    def test_addresses_that_would_give_a_secret_away_are_refused(
        self, facts: dict[str, str]
    ) -> None:
        with pytest.raises(ValidationError):
            EndpointSpec.model_validate({"model": "m", **facts})


def test_a_model_s_own_answers_are_compared_with_the_rows() -> None:
    earlier = Message("assistant", "earlier", is_trained=True)
    rows = [
        Conversation.single("q1", "the reference"),
        Conversation((Message("user", "a"), earlier, Message("user", "b"), earlier)),
    ]
    with judge(longer) as server:
        rate = measure_win_rate(tiny_model(), tiny_tokenizer(), rows, server.spec, max_new_tokens=2)
        shown = str(server.requests)
    assert rate.n == 2
    assert rate.losses == 2  # two tokens are shorter than any reference
    assert "the reference" in shown
    assert "user: a" in shown
    assert "assistant: earlier" in shown
