"""Structured output: the text follows the structure, whatever the model prefers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig, RequestError, RequestOutput, SamplingParams
from batchmill.engine.contract.grammar import grammar_of
from batchmill.engine.contract.limits import MAX_CHOICES

from .structures import CASES, SCHEMAS

MakeEngine = Callable[..., Engine]
#: Structures without a bound, which a model may continue up to `max_tokens`.
ENDLESS = {
    *("all of", "anything", "bounded number", "further properties of a type", "json_object"),
    *("recursive", "regex [a-z]+/[a-z]{1,3}\\.(gif|png)", "grammar 0", "grammar 1"),
}


def generate_all(engine: Engine, n: int, **params: Any) -> dict[str, RequestOutput]:
    """Generate some samples of each structure, all in one batch."""
    every = [
        SamplingParams(n=n, seed=seed, structured_outputs=case.structured_outputs, **params)
        for seed, case in enumerate(CASES.values())
    ]
    outputs = engine.generate(["Give me an example: "] * len(every), every)
    return dict(zip(CASES, outputs, strict=True))


def check_all(outputs: dict[str, RequestOutput]) -> int:
    """Check each text that ended by itself; return their number."""
    num_whole = 0
    for name, output in outputs.items():
        for completion in output.completions:
            if completion.finish_reason == "length":
                assert name in ENDLESS, (name, completion.text)
                continue
            assert completion.finish_reason == "stop", (name, completion.error)
            assert CASES[name].follows(completion.text), (name, completion.text)
            num_whole += 1
    return num_whole


@pytest.mark.feature("structured_outputs", "temperature")
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5, 5.0])
def test_every_text_of_a_random_model_follows_its_structure_or_says_length(
    byte_engine: MakeEngine, temperature: float
) -> None:
    assert len(CASES) >= 50
    outputs = generate_all(byte_engine(), 4, temperature=temperature, max_tokens=200)
    assert check_all(outputs) >= 4 * (len(CASES) - len(ENDLESS))


@pytest.mark.nightly
@pytest.mark.feature("structured_outputs", "temperature")
def test_every_text_of_the_demo_model_at_temperature_1_5_follows_its_structure(
    demo_model_path: Path,
) -> None:
    engine = Engine(EngineConfig(model=str(demo_model_path), dtype="float32", max_model_len=256))
    outputs = generate_all(engine, 1, temperature=1.5, max_tokens=100)
    assert check_all(outputs) >= len(CASES) - len(ENDLESS)


@pytest.mark.feature("response_format", "max_tokens")
@pytest.mark.parametrize("max_tokens", [1, 3, 10])
def test_text_cut_by_max_tokens_says_length_and_could_have_continued(
    byte_engine: MakeEngine, max_tokens: int
) -> None:
    schema = {"type": "array", "items": {"const": "abcdef"}, "minItems": 4, "maxItems": 4}
    form = {"type": "json_schema", "json_schema": {"name": "four", "schema": schema}}
    engine = byte_engine()
    short, whole = engine.generate(
        ["x", "x"],
        [
            SamplingParams(seed=1, max_tokens=number, response_format=form)
            for number in (max_tokens, 400)
        ],
    )
    assert (short.finish_reason, whole.finish_reason) == ("length", "stop")
    assert whole.text.startswith(short.text)
    assert json.loads(whole.text) == ["abcdef"] * 4


@pytest.mark.feature("response_format")
def test_json_object_is_an_object_and_text_is_anything(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    params = [
        SamplingParams(seed=seed, max_tokens=300, response_format={"type": "json_object"})
        for seed in range(8)
    ]
    outputs = engine.generate(["x"] * 8, params)
    whole = [output for output in outputs if output.finish_reason == "stop"]
    assert whole
    assert all(isinstance(json.loads(output.text), dict) for output in whole)
    free = SamplingParams(seed=1, max_tokens=20, ignore_eos=True)
    text = SamplingParams(seed=1, max_tokens=20, ignore_eos=True, response_format={"type": "text"})
    assert len({output.text for output in engine.generate(["x", "x"], [free, text])}) == 1


@pytest.mark.feature("structured_outputs")
def test_a_complete_structure_ends_the_output(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    params = SamplingParams(seed=1, max_tokens=50, structured_outputs={"choice": ["yes", "no"]})
    (output,) = engine.generate(["x"], params)
    # No token is spent on an end of text, and none is in the output.
    assert engine.tokenizer.decode(output.token_ids, skip_special_tokens=False) in ("yes", "no")
    assert (output.finish_reason, output.stop_reason) == ("stop", None)


@pytest.mark.feature("structured_outputs", "allowed_token_ids")
def test_structure_that_other_controls_make_impossible_is_an_error_not_a_wrong_text(
    byte_engine: MakeEngine,
) -> None:
    params = SamplingParams(structured_outputs={"choice": ["yes", "no"]}, allowed_token_ids=[5])
    (output,) = byte_engine().generate(["x"], params)
    assert (output.finish_reason, output.text) == ("error", "")
    assert output.error is not None
    assert output.error.code == "no_token_left"
    assert output.error.message.startswith("structured_outputs and allowed_token_ids together")


@pytest.mark.feature("structured_outputs")
def test_resumed_tokens_that_do_not_follow_the_structure_are_refused(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine()
    params = SamplingParams(structured_outputs={"choice": ["yes", "no"]})
    for resumed in ("x", "yesx"):
        with pytest.raises(RequestError, match="resume it with the params"):
            engine.add_request("a", "x", params, engine.tokenizer.encode(resumed))


@pytest.mark.feature("structured_outputs")
@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ("start: <[256]>", ""),
        ('start: "yes" <[257]>', "yes"),
        ('start: "yes" <eos> "no"', "yesno"),
        ('start: "yes" <[256-257]> "no"', "yesno"),
        ('start: "yes" <[256]>?', "yes"),
    ],
)
def test_a_structure_may_name_the_end_token(
    byte_engine: MakeEngine, grammar: str, text: str
) -> None:
    params = SamplingParams(seed=1, max_tokens=50, structured_outputs={"grammar": grammar})
    (output,) = byte_engine().generate(["x"], params)
    assert (output.text, output.finish_reason, output.error) == (text, "stop", None)


@pytest.mark.feature("structured_outputs")
def test_the_most_choices_that_are_accepted_can_be_generated(byte_engine: MakeEngine) -> None:
    choices = [f"choice {number}" for number in range(MAX_CHOICES)]
    params = SamplingParams(seed=1, max_tokens=50, structured_outputs={"choice": choices})
    (output,) = byte_engine().generate(["x"], params)
    assert output.error is None
    assert output.text in choices


#: Its second alternative needs far too many states, but only after 40 digits.
HEAVY_LATER = (
    'start: "s" SHORT | "l" DIGITS HEAVY\nSHORT: /[a-z]{5,30}/\nDIGITS: /[0-9]{40}/\n'
    r"HEAVY: /(?s:.{0,20000})/ & /(?:\S+\s+){0,1000}\S+/"
)


@pytest.mark.feature("structured_outputs")
def test_an_output_that_reaches_a_limit_of_its_grammar_leaves_the_others_whole(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine()
    outputs: dict[str, RequestOutput] = {}

    def add(name: str, start: str) -> None:
        params = SamplingParams(seed=1, max_tokens=80, structured_outputs={"grammar": HEAVY_LATER})
        engine.add_request(name, "x", params, engine.tokenizer.encode(start))

    add("before", "sa")
    engine.step()
    for index in range(3):
        add(f"heavy {index}", "l" + "0" * 39)
    add("beside", "s")
    while engine.has_unfinished():
        outputs |= {output.request_id: output for output in engine.step()}
    add("after", "sa")
    while engine.has_unfinished():
        outputs |= {output.request_id: output for output in engine.step()}

    for name, output in outputs.items():
        if "heavy" in name:
            assert output.error is not None
            assert output.error.code == "structure_too_complex"
            assert "2000000 expressions in one step" in output.error.message
            assert "smaller structure" in output.error.message
        else:
            assert output.error is None, name
            assert re.fullmatch("s[a-z]{5,30}", output.text)
    assert outputs["before"].text == outputs["after"].text


def structured(**given: Any) -> dict[str, Any]:
    return {"structured_outputs": given}


def of_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


@pytest.mark.feature("response_format", "structured_outputs")
@pytest.mark.parametrize(
    ("params", "match"),
    [
        (of_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (of_schema({"not": {"type": "string"}}), "not"),
        (of_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (of_schema({"type": "object", "patternProperties": {"a": {}}}), "patternProperties"),
        (of_schema({"items": {"anyOf": [{"patternProperties": {"a": {}}}]}}), "patternProperties"),
        (of_schema({"$defs": {"a": {"patternProperties": {"a": {}}}}}), "patternProperties"),
        (of_schema({"minProperties": 2}), "minProperties"),
        (of_schema({"x-guidance": {"lenient": True}, "uniqueItems": True}), "x-guidance"),
        (of_schema({"type": "nonsense"}), "nonsense"),
        (of_schema({"enum": []}), "Unsatisfiable"),
        (of_schema({"if": {}, "then": {}}), "if"),
        (of_schema({"oneOf": [{"type": "string"}, {"maxLength": 3}]}), "oneOf"),
        (of_schema({"$ref": "https://example.com/schema"}), "not present"),
        (of_schema([1]), "must be a JSON schema"),
        (of_schema("{"), "must hold JSON"),
        (of_schema({"const": float("nan")}), "must be a JSON value"),
        ({"response_format": "json"}, "no type"),
        ({"response_format": {"type": "json_schema"}}, "no schema"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "'schema'"),
        (structured(), "0 of json"),
        (structured(regex="a", choice=["a"]), "2 of json"),
        (structured(regex="(a"), "regex"),
        (structured(regex=r"(?<=a)b"), "look-"),
        (structured(regex=""), "must be a non-empty string"),
        (structured(choice=[]), "choice"),
        (structured(choice=["a", ""]), "choice"),
        (structured(choice=["a"] * (MAX_CHOICES + 1)), "choice"),
        (structured(grammar="start: missing"), "missing"),
        (structured(json={}, disable_any_whitespace="yes"), "disable_any_whitespace"),
        (structured(jsonschema={}), "'jsonschema'"),
        ({**structured(regex="a"), "response_format": {"type": "text"}}, "both given"),
        ({**structured(regex="a"), "stop": ["b"]}, "stop and a structured output"),
        ({**structured(regex="a"), "stop_token_ids": [5]}, "stop_token_ids and"),
        ({**structured(regex="a"), "min_tokens": 5}, "min_tokens and"),
        ({**structured(regex="a"), "ignore_eos": True}, "ignore_eos and"),
    ],
)
def test_structure_that_cannot_be_enforced_is_refused(params: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match) as refused:
        SamplingParams(**params)
    assert refused.value.code == "invalid_request"


@pytest.mark.parametrize(
    "params",
    [
        structured(structural_tag="{}"),
        structured(json={}, whitespace_pattern=" "),
        structured(json={}, disable_additional_properties=True),
        {"response_format": {"type": "structural_tag"}},
    ],
)
def test_structure_that_others_can_enforce_is_refused_by_name(params: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        SamplingParams(**params)
    assert refused.value.code == "unsupported_parameter"


def test_schema_may_be_text_and_strictness_changes_nothing() -> None:
    schema = SCHEMAS["flat object"]
    assert grammar_of(None, {"json": schema}) == grammar_of(None, {"json": json.dumps(schema)})
    wrapped = {"name": "x", "strict": False, "schema": schema}
    form = {"type": "json_schema", "json_schema": wrapped}
    assert grammar_of(form, None) == grammar_of(None, {"json": schema})


def test_a_structure_that_takes_too_long_to_compile_ends_only_its_own_request(
    byte_engine: MakeEngine,
) -> None:
    bomb = {"type": "integer", "multipleOf": 9999991}
    engine = byte_engine()
    engine.add_request("good", "x", SamplingParams(max_tokens=5))

    with pytest.raises(RequestError) as caught:
        SamplingParams(structured_outputs={"json": bomb})
    assert caught.value.code == "structure_too_complex"
    # A grammar that the contract has not seen, as that of calls.
    grammar = json.dumps({"grammars": [{"json_schema": bomb}]})
    with pytest.raises(RequestError) as caught:
        engine._intake._structures.compile(grammar)
    assert caught.value.code == "structure_too_complex"

    while engine.has_unfinished():
        outputs = engine.step()
    assert [output.finish_reason for output in outputs] == ["length"]
