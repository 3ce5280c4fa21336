"""Decisions about pictures and sounds have the probabilities of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from batchmill.engine import Engine, EngineConfig, RequestError, SamplingParams
from batchmill.engine.contract.media import Media
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.plans.decision.plan import decision_plan
from batchmill.engine.plans.plan import PlanEnd, PlannedJob
from batchmill.engine.plans.runner import JobOptions, PlanRunner

from ...support.media_decisions import (
    PLACEHOLDER,
    QUESTIONS,
    Answers,
    decision_probabilities,
)
from ...support.tiny_media_models import SAVERS


class Family(NamedTuple):
    """A family's tiny model, two media, and what transformers answers about each."""

    loaded: LoadedModel
    media: Sequence[Media]
    expected: Sequence[Answers]
    #: The same with text before and after the medium.
    in_text: Answers


@pytest.fixture(scope="module", params=list(SAVERS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    model = SAVERS[request.param](folder)
    media = [model.make(1, 0), model.make(2, 2)]
    return Family(
        load_model(str(folder), dtype="float32", device="cpu"),
        media,
        [decision_probabilities(model, PLACEHOLDER, each) for each in media],
        decision_probabilities(model, f"Look: {PLACEHOLDER} well?", media[0]),
    )


def engine_of(family: Family, **settings: Any) -> Engine:
    defaults: dict[str, Any] = {
        "model": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "block_size": 4,
        "kv_cache_bytes": 8 << 20,
    }
    return Engine(EngineConfig(**{**defaults, **settings}), loaded=family.loaded)


def part(medium: Media) -> dict[str, str]:
    return {"type": medium.kind}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def decide(
    engine: Engine, *states: tuple[Any, Sequence[Media]], others: int = 0, **fields: Any
) -> list[PlanEnd]:
    """Return the ends of decisions about some states, side by side with other requests."""
    runner = PlanRunner(engine)
    long = SamplingParams(max_tokens=30, ignore_eos=True, seed=1)
    for number in range(others):
        engine.add_request(f"other {number}", f"Number {number}", long)
    for number, (state, media) in enumerate(states):
        section = {"state": state, "questions": QUESTIONS, **fields}
        plan = decision_plan(PlannedJob(engine, section, media=media))
        runner.add(f"{number}", plan, JobOptions(priority=1))
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
    ends = {end.request_id: end for end in runner.take_ends()}
    return [ends[f"{number}"] for number in range(len(states))]


def answers_of(end: PlanEnd) -> Answers:
    assert end.error is None
    assert end.result is not None
    answers = end.result.section["answers"]
    return {name: answer["probabilities"] for name, answer in answers.items()}


def check_equal(answers: Answers, expected: Answers) -> None:
    assert answers.keys() == expected.keys()
    for name, probabilities in expected.items():
        assert answers[name] == pytest.approx(probabilities, abs=1e-4), name


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_num_batched_tokens": 9}, id="chunked inside media"),
        pytest.param({"media_cache_bytes": 0}, id="no features kept"),
        pytest.param({"enable_prefix_caching": False}, id="no prefix cache"),
        pytest.param({"overlap": True, "decode_graphs": True}, id="overlapping steps, graphs"),
    ],
)
def test_probabilities_equal_those_of_transformers(
    family: Family, settings: dict[str, Any]
) -> None:
    states = [([part(each)], [each]) for each in family.media]
    ends = decide(engine_of(family, **settings), *states, others=3)
    for end, expected in zip(ends, family.expected, strict=True):
        check_equal(answers_of(end), expected)
    assert answers_of(ends[0]) != pytest.approx(answers_of(ends[1])["what"], abs=1e-2)


def test_messages_and_text_around_a_medium_are_part_of_the_chat(family: Family) -> None:
    medium = family.media[0]
    parts = [text("Look: "), part(medium), text(" well?")]
    (end,) = decide(engine_of(family), ([{"role": "user", "content": parts}], [medium]))
    check_equal(answers_of(end), family.in_text)


def test_a_medium_is_computed_once_for_all_questions(family: Family) -> None:
    engine = engine_of(family)
    medium = family.media[1]
    (end,) = decide(engine, ([part(medium)], [medium]), rotations=3)
    assert end.counts.num_requests == 6
    stats = engine.stats()
    assert stats.num_encoded_media == 1
    num_alone = end.counts.num_prompt_tokens // 6
    assert end.counts.num_cached_tokens > 5 * (num_alone - 200)
    assert engine.num_free_blocks == stats.num_blocks


def test_a_preempted_decision_has_the_same_answers(family: Family) -> None:
    medium = family.media[0]
    block_bytes = 2 * 3 * 4 * 2 * 8 * 4  # k+v, layers, tokens, kv heads, dim, float32
    engine = engine_of(family, kv_cache_bytes=110 * block_bytes, max_model_len=400)
    (end,) = decide(engine, ([part(medium)], [medium]), others=8, rotations=1)
    check_equal(answers_of(end), family.expected[0])


def test_the_prior_is_read_without_the_medium(family: Family) -> None:
    medium = family.media[0]
    state = ([part(medium)], [medium])
    engine = engine_of(family)
    (corrected,) = decide(engine, state, prior_correction=True)
    (without,) = decide(engine, ("N/A", ()))
    for name, prior in answers_of(without).items():
        weights = {
            option: each / prior[option] for option, each in family.expected[0][name].items()
        }
        expected = {option: each / sum(weights.values()) for option, each in weights.items()}
        assert answers_of(corrected)[name] == pytest.approx(expected, abs=1e-3)


def test_a_text_that_spells_out_a_placeholder_shows_no_other_picture(family: Family) -> None:
    medium = family.media[0]
    assert family.loaded.media is not None
    spelled = f"It says {family.loaded.media.placeholder} and <|endoftext|>."
    states = [([part(medium), text(each)], [medium]) for each in (spelled, "It says this.")]
    hostile, plain = decide(engine_of(family), *states)
    assert answers_of(hostile) != answers_of(plain)
    assert hostile.counts.num_requests == plain.counts.num_requests == 2


def test_an_unsure_question_about_a_medium_is_answered_in_words(family: Family) -> None:
    medium = family.media[0]
    state = ([part(medium)], [medium])
    fields: dict[str, Any] = {
        "min_confidence": 1.0,
        "on_low_confidence": "generate",
        "max_tokens": 5,
    }
    (end,) = decide(engine_of(family), state, **fields)
    assert end.result is not None
    assert all(answer["text"] for answer in end.result.section["answers"].values())


def test_media_that_do_not_suit_the_state_are_refused(family: Family) -> None:
    engine, medium = engine_of(family), family.media[0]
    for state, media, message in (
        ("A mill.", [medium], "its state has no part of type image or audio"),
        ({"photo": part(medium)}, [medium], "its state has no part of type image or audio"),
        ([part(medium)], [], "one medium for each placeholder"),
        ([part(medium)], [medium, medium], "one medium for each placeholder"),
        ([part(medium)] * 300, [medium] * 300, "max_model_len"),
    ):
        with pytest.raises(RequestError, match=message):
            decide(engine, (state, media))
    assert not engine.has_unfinished()


def test_a_model_of_text_refuses_a_state_with_a_picture(byte_model: LoadedModel) -> None:
    config = EngineConfig(
        model="tiny", dtype="float32", device="cpu", max_model_len=256, kv_cache_bytes=1 << 20
    )
    engine = Engine(config, loaded=byte_model)
    with pytest.raises(RequestError, match="takes no images") as refused:
        decide(engine, ([{"type": "image"}], []))
    assert refused.value.code == "unsupported_parameter"
