"""Accepted JSON schemas mean what JSON Schema says, and a validator is the oracle."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.grammar import grammar_of

ANY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 12, 1.5, -0.25, "", "a", "ab", "abc", "red", "é", "日本"),
    *([], [1], [1, 2], [1, "a"], ["a", "a"], [True, None], [[1]], {}, {"a": 1}, {"a": "x"}),
    *({"b": 1}, {"a": 1, "b": 2}, {"a": None}, {"c": True}, {"a": {"a": {"a": 1}}}),
    *("2024-02-29", "12:30:00Z", "a@example.com", "10.0.0.1", {"a": "", "b": ""}),
)
OBJECT = {"type": "object", "additionalProperties": False}
LINKED = {**OBJECT, "properties": {"a": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}}}
SCHEMAS: dict[str, Any] = {
    "every instance": {},
    "type": {"type": "integer"},
    "types": {"type": ["string", "null"]},
    "enum": {"enum": [1, "red", None, {"a": 1}, [1, 2]]},
    "const": {"const": {"a": 1}},
    "const of a keyword's name": {"const": {"format": "color", "uniqueItems": False}},
    "bounds": {"type": "integer", "minimum": 0, "exclusiveMaximum": 8},
    "a number": {"type": "number", "minimum": -1, "maximum": 1.5},
    "multiples": {"type": "integer", "multipleOf": 6},
    "lengths": {"type": "string", "minLength": 1, "maxLength": 2},
    "a pattern": {"type": "string", "pattern": "^a.?$"},
    "a pattern anywhere": {"type": "string", "pattern": "b"},
    "a list": {"type": "array", "items": {"type": "integer"}, "maxItems": 1},
    "a tuple": {"type": "array", "prefixItems": [{"type": "integer"}], "minItems": 1},
    "a closed tuple": {"type": "array", "prefixItems": [{"const": 1}], "items": False},
    "an object": {**OBJECT, "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "optional properties": {**OBJECT, "properties": {"a": {}, "b": {"type": "integer"}}},
    "more properties": {"type": "object", "additionalProperties": {"type": "integer"}},
    "required and not described": {"type": "object", "required": ["a"]},
    "no property": {**OBJECT},
    "any of": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 1}]},
    "one of": {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 5}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 7}]},
    "a reference": {"$ref": "#/$defs/c", "$defs": {"c": {"type": "string", "maxLength": 1}}},
    "old definitions": {"$ref": "#/definitions/c", "definitions": {"c": {"type": "null"}}},
    "a recursive schema": LINKED,
    "never": {**OBJECT, "properties": {"a": False}},
    "an enforced format": {"type": "string", "format": "date"},
    "a format of numbers": {"type": "integer", "format": "int32"},
    **{
        f"format {name}": {"type": "string", "format": name}
        for name in ("password", "color", "regex", "json-pointer", "binary", "idn-email", "Date")
    },
    "a format without a type": {"format": "color"},
    "formats everywhere": {
        **OBJECT,
        "properties": {
            "a": {"anyOf": [{"type": "string", "format": "phone"}, {"type": "null"}]},
            "b": {"$ref": "#/$defs/b"},
        },
        "$defs": {"b": {"type": "string", "format": "path"}},
    },
    "properties with the names of keywords": {
        **OBJECT,
        "properties": {"a": {"type": "integer"}, "format": {"type": "null"}, "then": {}},
    },
    "annotations": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/a",
        "$comment": "a comment",
        "title": "A",
        "description": "An a.",
        "default": 5,
        "examples": [1],
        "x-order": 1,
        "deprecated": True,
        "readOnly": False,
        "writeOnly": True,
        "$anchor": "a",
        "contentMediaType": "text/html",
        "contentEncoding": "base64",
        "contentSchema": {},
        "nullable": True,
        "example": 1,
        "discriminator": {"propertyName": "a"},
        "$dynamicAnchor": "b",
        "errorMessage": "no",
        "type": "string",
    },
    "keywords without effect": {
        "uniqueItems": False,
        "then": {"const": 1},
        "else": {"const": 2},
        "minContains": 2,
        "maxContains": 3,
        "propertyNames": {},
        "dependentRequired": {},
        "patternProperties": {},
        "unevaluatedProperties": True,
        "unevaluatedItems": True,
        "dependentSchemas": {},
        "type": ["array", "object", "integer"],
    },
    "a condition without a consequence": {"if": {"type": "string"}, "type": "boolean"},
}
#: Schemas that ask for something that cannot be enforced, and the keyword that the refusal names.
REFUSED: dict[str, dict[str, Any]] = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "not": {"not": {"type": "string"}},
    "contains": {"type": "array", "contains": {"type": "integer"}, "minContains": 1},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "patternProperties": {"type": "object", "patternProperties": {"a": {"format": "color"}}},
    "if": {"if": {"type": "string"}, "then": {"maxLength": 3}},
    "$dynamicRef": {"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a"}}},
}


@pytest.fixture(scope="module")
def vocabulary() -> LLTokenizer:
    """One token per byte."""
    return LLTokenizer("byte")


@pytest.mark.parametrize("what", SCHEMAS)
def test_exactly_the_valid_instances_can_be_generated(what: str, vocabulary: LLTokenizer) -> None:
    schema = SCHEMAS[what]
    validator = Draft202012Validator(schema, format_checker=_checker(schema))
    grammar = grammar_of(None, {"json": schema})
    assert grammar is not None
    first = LLMatcher(vocabulary, grammar, log_level=0)
    assert not first.is_error(), first.get_error()
    instances = [
        *ANY,
        {"a": 1, "format": None, "then": 1},
        {"format": "color", "uniqueItems": False},
    ]
    expected = [validator.is_valid(each) for each in instances]
    assert any(expected), "no instance shows that anything can be generated"
    for instance, is_valid in zip(instances, expected, strict=True):
        matcher = first.deep_copy()
        text = json.dumps(instance, ensure_ascii=False).encode()
        follows = matcher.consume_tokens(list(text)) and matcher.is_accepting()
        assert follows is is_valid, (instance, schema)


def _checker(schema: dict[str, Any]) -> Any:
    """Return a checker of formats if they are enforced; every other one is an annotation."""
    return Draft202012Validator.FORMAT_CHECKER if schema.get("format") == "date" else None


@pytest.mark.parametrize("keyword", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_its_name(keyword: str) -> None:
    with pytest.raises(ContractError, match=keyword.replace("$", r"\$")):
        grammar_of(None, {"json": REFUSED[keyword]})
