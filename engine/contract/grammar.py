"""The grammar of a structured output, made and checked without a model or a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .errors import ContractError
from .limits import MAX_CHOICES, MAX_GRAMMAR_RULES, MAX_STRUCTURE_BYTES
from .schema_annotations import without_annotations
from .structure_check import TOO_COMPLEX, compiled_grammar

#: Between the parts of a JSON document: nothing, a space, or a new line with its indentation.
#: By default llguidance sets no bound, so a model could write blanks for ever.
JSON_WHITESPACE: Final = r"( ?|\n {0,24})"

#: The keys of `structured_outputs` that name a structure; exactly one of them is given.
KINDS: Final = ("json", "json_object", "regex", "choice", "grammar")
_UNSUPPORTED_KEYS: Final = (
    "disable_additional_properties",
    "structural_tag",
    "whitespace_pattern",
)
#: Keys of a JSON schema whose value is a mapping of names to schemas.
_MAPS_OF_SCHEMAS: Final = ("$defs", "definitions", "properties")
_LISTS_OF_SCHEMAS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS: Final = ("additionalProperties", "items", "unevaluatedProperties")
#: The head of a rule of a Lark grammar.
_RULE: Final = re.compile(r"(?m)^[ \t]*[?!]*[A-Za-z_][^\n:\"/]*:")


def grammar_of(response_format: Any, structured_outputs: Any) -> str | None:
    """Return the grammar that a request's output must follow.

    Args:
        response_format: OpenAI's form: `{"type": "text" | "json_object" | "json_schema", …}`.
        structured_outputs: vLLM's form: a mapping with one of `KINDS`, and
            `disable_any_whitespace`.

    Returns:
        The grammar in llguidance's format; None if any text will do.

    Raises:
        ContractError: the structure is malformed, or cannot be enforced.
    """
    if response_format is not None and structured_outputs is not None:
        raise ContractError("response_format and structured_outputs are both given: give one")
    if structured_outputs is not None:
        return _of_structured_outputs(structured_outputs)
    return None if response_format is None else _of_response_format(response_format)


def _of_response_format(given: Any) -> str | None:
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise ContractError("response_format has no type: use text, json_object or json_schema")
    kind = given["type"]
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    _refuse_unknown("response_format", given, known)
    if kind == "text":
        return None
    if kind == "json_object":
        return _compiled("json", '{"type":"object"}', False)
    if kind != "json_schema":
        raise ContractError(
            f"response_format.type is {kind[:40]!r}: use text, json_object or json_schema",
            "unsupported_parameter",
        )
    wrapped = given.get("json_schema")
    if not isinstance(wrapped, Mapping) or "schema" not in wrapped:
        raise ContractError("response_format.json_schema has no schema: put the JSON schema there")
    # `strict` changes nothing: every accepted schema is enforced.
    known = {"name", "description", "schema", "strict"}
    _refuse_unknown("response_format.json_schema", wrapped, known)
    return _of_schema("response_format.json_schema.schema", wrapped["schema"], False)


def _of_structured_outputs(given: Any) -> str:
    if not isinstance(given, Mapping):
        raise ContractError(f"structured_outputs must be an object with one of {', '.join(KINDS)}")
    for key in _UNSUPPORTED_KEYS:
        if given.get(key) not in (None, False):
            raise ContractError(
                f"structured_outputs.{key} is not supported: leave it out", "unsupported_parameter"
            )
    known = {*KINDS, *_UNSUPPORTED_KEYS, "disable_any_whitespace"}
    _refuse_unknown("structured_outputs", given, known)
    compact = given.get("disable_any_whitespace") or False
    if not isinstance(compact, bool):
        raise ContractError("structured_outputs.disable_any_whitespace must be true or false")
    kinds = [kind for kind in KINDS if given.get(kind) not in (None, False)]
    if len(kinds) != 1:
        raise ContractError(
            f"structured_outputs has {len(kinds)} of {', '.join(KINDS)}: give exactly one"
        )
    (kind,) = kinds
    value = given[kind]
    if kind == "json":
        return _of_schema("structured_outputs.json", value, compact)
    if kind == "json_object":
        return _compiled("json", '{"type":"object"}', compact)
    if kind == "choice":
        return _compiled("lark", _choices(value), compact)
    if not isinstance(value, str) or not value:
        raise ContractError(f"structured_outputs.{kind} must be a non-empty string")
    return _compiled("regex" if kind == "regex" else "lark", value, compact)


def _choices(value: Any) -> str:
    if (
        not isinstance(value, list | tuple)
        or not 0 < len(value) <= MAX_CHOICES
        or not all(isinstance(choice, str) and choice for choice in value)
    ):
        raise ContractError(
            f"structured_outputs.choice must be a list of 1 to {MAX_CHOICES} non-empty strings"
        )
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value)


def _of_schema(field: str, schema: Any, compact: bool) -> str:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError:
            raise ContractError(f"{field} is a string, and must hold JSON") from None
    if not isinstance(schema, Mapping):
        raise ContractError(f"{field} must be a JSON schema: use an object")
    try:
        json.dumps(schema, allow_nan=False)
        schema = without_annotations(schema)
        text = json.dumps(schema)
        for key, reason in _unenforceable(schema):
            raise ContractError(f"{field} uses {key}, which cannot be enforced: {reason}")
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ContractError):
            raise
        raise ContractError(f"{field} must be a JSON value ({type(error).__name__})") from None
    return _compiled("json", text, compact)


def check_parameters(field: str, schema: Mapping[str, Any]) -> None:
    """Check that a schema describes the arguments of a function, even if nothing enforces it.

    Raises:
        ContractError: it does not.
    """
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if schema.get("type", "object") != "object":
        raise ContractError(f"{field} must be a schema of type object")
    if not isinstance(properties, Mapping) or not all(
        isinstance(each, Mapping | bool) for each in properties.values()
    ):
        raise ContractError(f"{field}.properties must be an object of schemas")
    if not isinstance(required, list | tuple) or not all(isinstance(n, str) for n in required):
        raise ContractError(f"{field}.required must be a list of names")


def schema_for_rule(field: str, schema: Mapping[str, Any]) -> str:
    """Return a JSON schema as it stands after `%json` in a rule of a Lark grammar.

    Args:
        field: The schema's name in errors.
        schema: The schema; its references point into itself.

    Raises:
        ContractError: it cannot be enforced.
    """
    (grammar,) = json.loads(_of_schema(field, schema, False))["grammars"]
    # This also carries the schema options that we set globally.
    return json.dumps(grammar["json_schema"])


def _unenforceable(schema: Any) -> Iterator[tuple[str, str]]:
    """Yield keys that llguidance accepts but does not fully enforce, and what to do instead."""
    if not isinstance(schema, Mapping):
        return
    if "patternProperties" in schema:
        yield "patternProperties", "name the properties, or use additionalProperties"
    if "x-guidance" in schema:
        yield "x-guidance", "leave it out"
    # Nothing keeps a model from writing the same additional property twice.
    required = schema.get("required", ())
    least = schema.get("minProperties", 0)
    if (
        isinstance(least, int | float)
        and isinstance(required, list | tuple)
        and least > len(set(map(str, required)))
    ):
        yield "minProperties", "list as many properties under required"
    for key in _MAPS_OF_SCHEMAS:
        value = schema.get(key)
        for each in value.values() if isinstance(value, Mapping) else ():
            yield from _unenforceable(each)
    for key in _LISTS_OF_SCHEMAS:
        value = schema.get(key)
        for each in value if isinstance(value, list | tuple) else ():
            yield from _unenforceable(each)
    for key in _SCHEMAS:
        yield from _unenforceable(schema.get(key))


def _refuse_unknown(field: str, given: Mapping[str, Any], known: set[str]) -> None:
    for key in given:
        if key not in known:
            raise ContractError(
                f"{field} has a key {str(key)[:40]!r}: it takes {', '.join(sorted(known))}"
            )


def _compiled(kind: str, text: str, compact: bool) -> str:
    """Return a grammar in llguidance's format, after a trial has compiled it within limits."""
    if len(text) > MAX_STRUCTURE_BYTES:
        raise ContractError(
            f"the {kind} grammar has {len(text)} characters, the limit is {MAX_STRUCTURE_BYTES}; "
            "shorten it",
            TOO_COMPLEX,
        )
    if kind == "lark" and (num_rules := len(_RULE.findall(text))) > MAX_GRAMMAR_RULES:
        raise ContractError(
            f"the lark grammar has {num_rules} rules, the limit is {MAX_GRAMMAR_RULES}; use fewer",
            TOO_COMPLEX,
        )
    overrides = {
        "coerce_one_of": False,
        "lenient": False,
        "whitespace_flexible": not compact,
        "whitespace_pattern": None if compact else JSON_WHITESPACE,
    }
    return compiled_grammar(kind, text, overrides if kind == "json" else {})
