"""Queue messages with strange values, and queue elements that are not messages at all."""

from __future__ import annotations

from typing import Any

from .hostile_fields import nested

#: Changed headers of an announcement.
FORGED_HEADERS: list[dict[str, Any]] = [
    {"id": "x" * 100_000},
    {"id": "a\x00b"},
    {"retries": 10**400},
    {"retries": -1},
    {"timelimit": [1e308, -5]},
    {"timelimit": [10**400, None]},
    {"expires": "9999-12-31T23:59:59+14:00"},
    {"expires": "0001-01-01T00:00:00-14:00"},
    {"expires": "2001-01-01T00:00:00"},
    {"eta": "0001-01-01T00:00:00+14:00"},
    {"eta": "2001-01-01T00:00:00+00:00"},
    {"root_id": {"a": 1}, "parent_id": [1], "group": 7, "group_index": "x"},
    {"origin": {}, "lang": 3, "argsrepr": {}, "kwargsrepr": 7},
    {"replaced_task_nesting": "deep", "stamps": {"a": {"b": 1}}, "stamped_headers": ["a"]},
    {"ignore_result": "perhaps"},
    {"errbacks": "x", "callbacks": 7, "chord": 3, "chain": "y"},
    {"traceparent": {}, "x": nested(50)},
]
#: Task bodies: [args, kwargs, embed].
FORGED_BODIES: list[Any] = [
    [[], {"job": {"prompt": "x", "max_tokens": 2}, "v": 1}, {"callbacks": 7}],
    [[], {"job": {"prompt": "x", "max_tokens": 2}}, {"errbacks": [1], "chord": "x"}],
    [[], {"job": {"prompt": "x", "max_tokens": 2}}, {"chain": [[["deep"]]]}],
    [[], {"job": {"prompt": "x"}, "v": 10**400}, {}],
    [[], {"job": {"prompt": "x"}, "v": {"a": []}}, {}],
    [[], {"job": {"prompt": "x", "max_tokens": 10**4000}}, {}],
    [[{"prompt": "x"}, 1, 2, 3], {}, {}],
    [[], {"job": "x" * 100_000, "v": 1}, {}],
    [[], {"job": "\x00\n", "v": 1}, {}],
    [[], {"job": {"prompt": "x", "\x00": nested(90)}}, {}],
]
#: Whole queue elements.
RAW_ELEMENTS = (
    b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    b'{"body": "[[], {}, {}]", "body": "[]", "headers": {}}',
    b'{"body": ' + b"[" * 50_000,
    b'{"properties": {"delivery_tag": ' + b"9" * 10_000 + b"}}",
    b'{"headers": {"id": NaN}}',
)
