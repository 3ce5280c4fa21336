"""Random values: JSON, texts, and mutations of good ones."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

TEXTS = (
    *("", "x", "a" * 300, "\x00", "\ud800", "\U0001f600", "‮", "\r\n", "</s>", "<|im_end|>"),
    *("{{ 7 * 7 }}", "{% for x in range(9) %}{% endfor %}", "../../etc", "__class__", "null"),
    *("(a+)+$", "[^", "(?<=x)y", "\\p{L}{5000}", "a{1,100000}", "x|", "(?i)q", ".*.*.*=.*"),
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(2**70), 0.5, 1e308, -1e-300, 9999991)
#: Names that mean something in schemas, jobs, messages and records.
NAMES = (
    *("type", "properties", "required", "items", "enum", "const", "pattern", "anyOf", "allOf"),
    *("oneOf", "$ref", "$defs", "multipleOf", "minItems", "maxItems", "minLength", "maxLength"),
    *("minimum", "maximum", "format", "additionalProperties", "patternProperties", "not", "if"),
    *("role", "content", "name", "tool_calls", "id", "function", "arguments", "parameters"),
    *("prompt", "messages", "max_tokens", "seed", "tags", "metadata", "model", "n", "stop"),
)
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def any_value(rng: random.Random, depth: int = 4) -> Any:
    """Return a random JSON value."""
    kind = rng.randrange(8 if depth else 5)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind in (2, 3):
        return any_text(rng)
    if kind == 4:
        return rng.choice(TYPES)
    if kind == 5:
        return [any_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {any_name(rng): any_value(rng, depth - 1) for _ in range(rng.randrange(5))}


def any_text(rng: random.Random) -> str:
    """Return a random text."""
    return "".join(rng.choice(TEXTS) for _ in range(rng.randint(1, 3)))


def any_name(rng: random.Random) -> str:
    """Return a random name of a field."""
    return rng.choice(NAMES) if rng.random() < 0.8 else any_text(rng)


def mutated(rng: random.Random, value: Any) -> Any:
    """Return a copy of a JSON value with one to four changes somewhere in it."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 4)):
        value = _changed(rng, value)
    return value


def _changed(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        action = rng.randrange(5)
        if action == 0:
            del value[name]
        elif action == 1:
            value[any_name(rng)] = value[name]
        elif action == 2:
            value[any_name(rng)] = any_value(rng)
        else:
            value[name] = _changed(rng, value[name])
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        action = rng.randrange(4)
        if action == 0:
            del value[place]
        elif action == 1 and len(value) < 30:  # what is repeated twice would take long to write
            value += value[place:] * rng.randint(1, 30)
        else:
            value[place] = _changed(rng, value[place])
        return value
    return any_value(rng, 3)


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with some of them changed, cut out, repeated or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        action = rng.randrange(5)
        if action == 0:
            del changed[at : at + rng.randint(1, 40)]
        elif action == 1:
            changed[at:at] = changed[at : at + rng.randint(1, 40)] * rng.randint(1, 50)
        elif action == 2:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif action == 3:
            changed[at:at] = rng.choice((b"[" * 2000, b"{" * 300, b'"', b"NaN", b"1e999"))
        elif at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def as_json(rng: random.Random, value: Any) -> bytes:
    """Return a value as JSON, now and then with bytes that are damaged."""
    data = json.dumps(value).encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, data) if rng.random() < 0.3 else data
