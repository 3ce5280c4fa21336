"""Stop conditions, reported outputs, and replaying the tokens of a resumed request."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from batchmill.engine import FinishReason, RequestOutput, SamplingParams
from batchmill.engine.lifecycle.output_tracker import OutputText, OutputTracker
from batchmill.engine.request.request import Request
from batchmill.engine.text.detokenizer import Detokenizer
from batchmill.engine.text.stop_strings import StopStrings

PROMPT = [0, 1]
EOS = 30
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def detokenizer() -> Detokenizer:
    """Return a detokenizer: token 0 is "a", token 1 is "b", ...; end-of-text is special."""
    vocabulary = {letter: index for index, letter in enumerate(LETTERS)} | {"<eos>": EOS}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.decoder = decoders.ByteLevel()
    return Detokenizer(tokenizer)


class Case:
    """A request whose output is fed as letters or token ids."""

    def __init__(self, detokenizer: Detokenizer, resumed: str = "", **params: Any) -> None:
        controls = SamplingParams(**{"max_tokens": 100, **params})
        self.request = Request(
            "a",
            PROMPT,
            controls,
            seed=0,
            max_num_tokens=len(PROMPT) + (controls.max_tokens or 0),
            resumed_token_ids=[LETTERS.index(letter) for letter in resumed],
        )
        stream = detokenizer.stream(PROMPT, skip_special_tokens=controls.skip_special_tokens)
        include = controls.include_stop_str_in_output
        stops = (
            StopStrings(controls.stop_strings, include_in_text=include)
            if controls.stop_strings
            else None
        )
        text = OutputText(stream, stops) if controls.detokenize else None
        self.tracker = OutputTracker(self.request, text, frozenset([EOS]))
        self.num_replayed = self.tracker.replay()

    def feed(self, tokens: str | list[int]) -> RequestOutput:
        """Feed letters or token ids until the request finishes, and return its output."""
        for token in tokens:
            if self.tracker.finish_reason is not None:
                break
            token_id = LETTERS.index(token) if isinstance(token, str) else token
            self.request.output_token_ids.append(token_id)
            self.tracker.append_token(token_id)
        return self.tracker.take_output(time.monotonic())


def test_end_of_text_token_ends_the_request_outside_its_text(detokenizer: Detokenizer) -> None:
    output = Case(detokenizer, skip_special_tokens=False).feed([7, 8, EOS, 9])
    assert (output.text, output.token_ids) == ("hi", [7, 8, EOS])
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert output.finished


@pytest.mark.feature("ignore_eos")
def test_ignored_end_of_text_token_is_a_token_like_others(detokenizer: Detokenizer) -> None:
    output = Case(detokenizer, ignore_eos=True, max_tokens=3).feed([7, EOS, 8])
    assert (output.text, output.finish_reason) == ("hi", "length")


@pytest.mark.feature("stop_token_ids", "include_stop_str_in_output")
@pytest.mark.parametrize(("include", "text"), [(False, "hi"), (True, "hix")])
def test_stop_token_is_reported_and_in_the_text_on_demand(
    detokenizer: Detokenizer, include: bool, text: str
) -> None:
    case = Case(detokenizer, stop_token_ids=[23], include_stop_str_in_output=include)
    output = case.feed("hixyz")
    assert (output.text, output.finish_reason, output.stop_reason) == (text, "stop", 23)
    assert output.token_ids == [7, 8, 23]


@pytest.mark.feature("stop", "include_stop_str_in_output")
@pytest.mark.parametrize(("include", "text"), [(False, "he"), (True, "hello")])
def test_stop_string_over_several_tokens_ends_the_text(
    detokenizer: Detokenizer, include: bool, text: str
) -> None:
    output = Case(detokenizer, stop="llo", include_stop_str_in_output=include).feed("helloworld")
    assert (output.text, output.finish_reason, output.stop_reason) == (text, "stop", "llo")
    assert len(output.token_ids) == 5


@pytest.mark.feature("stop", "max_tokens")
def test_stop_string_at_the_length_limit_is_a_stop(detokenizer: Detokenizer) -> None:
    output = Case(detokenizer, stop="lo", max_tokens=5).feed("hello")
    assert (output.text, output.finish_reason) == ("hel", "stop")


def test_text_held_back_for_a_stop_string_comes_with_the_end(detokenizer: Detokenizer) -> None:
    case = Case(detokenizer, stop="lox", max_tokens=5)
    output = case.feed("hell")
    assert (output.text, output.new_text) == ("hel", "hel")
    output = case.feed("o")
    assert (output.text, output.new_text, output.finish_reason) == ("hello", "lo", "length")


def test_text_held_back_comes_before_an_included_stop_token(detokenizer: Detokenizer) -> None:
    case = Case(detokenizer, stop="bcd", stop_token_ids=[25], include_stop_str_in_output=True)
    assert case.feed("abcz").text == "abcz"


@pytest.mark.feature("min_tokens")
def test_nothing_finishes_a_request_below_its_minimum(detokenizer: Detokenizer) -> None:
    case = Case(detokenizer, min_tokens=3, stop="a", stop_token_ids=[1])
    output = case.feed([0, 1, EOS, 0, 2])
    assert (output.text, output.token_ids) == ("ab", [0, 1, EOS, 0])
    assert output.stop_reason == "a"


@pytest.mark.feature("detokenize")
def test_request_without_text_ends_by_its_tokens(detokenizer: Detokenizer) -> None:
    output = Case(detokenizer, detokenize=False, stop_token_ids=[2]).feed("abcd")
    assert (output.text, output.new_text, output.token_ids) == ("", "", [0, 1, 2])


def test_outputs_report_what_is_new_and_keep_what_they_reported(detokenizer: Detokenizer) -> None:
    case = Case(detokenizer, max_tokens=4)
    first, second, last = case.feed("ab"), case.feed("c"), case.feed("d")
    assert [o.new_token_ids for o in (first, second, last)] == [[0, 1], [2], [3]]
    assert [o.new_text for o in (first, second, last)] == ["ab", "c", "d"]
    assert [o.text for o in (first, second, last)] == ["ab", "abc", "abcd"]
    assert [o.token_ids for o in (first, second, last)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert [o.finished for o in (first, second, last)] == [False, False, True]
    usage = last.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 4, 6)


def test_output_can_be_sent_to_another_process(detokenizer: Detokenizer) -> None:
    output = Case(detokenizer, stop="d").feed("abcd")
    copy = pickle.loads(pickle.dumps(output))
    assert (copy.text, copy.token_ids, copy.finish_reason) == ("abc", [0, 1, 2, 3], "stop")
    assert copy.finish_reason is FinishReason.STOP


def test_replayed_tokens_are_not_reported_and_lead_to_the_same_end(
    detokenizer: Detokenizer,
) -> None:
    whole = Case(detokenizer, stop="fgh").feed("abcdefghij")
    for cut in range(8):
        case = Case(detokenizer, resumed="abcdefgh"[:cut], stop="fgh")
        output = case.feed("abcdefghij"[cut:])
        assert (output.text, output.token_ids) == (whole.text, whole.token_ids)
        assert (output.finish_reason, output.stop_reason) == ("stop", "fgh")
        assert output.new_token_ids == whole.token_ids[cut:]
        assert output.metrics.num_resumed_tokens == cut


def test_replay_stops_at_the_end_of_the_request(detokenizer: Detokenizer) -> None:
    case = Case(detokenizer, resumed="abcd", max_tokens=2)
    assert case.num_replayed == 2
    assert case.tracker.finish_reason is FinishReason.LENGTH


def test_times_are_measured_from_arrival_to_first_token_and_end(detokenizer: Detokenizer) -> None:
    case = Case(detokenizer, max_tokens=2)
    assert case.feed("").metrics.first_token_s is None
    metrics = case.feed("ab").metrics
    assert metrics.first_token_s is not None
    assert metrics.finished_s is not None
    assert 0 <= metrics.finished_s <= metrics.first_token_s < 10
