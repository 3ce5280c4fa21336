"""Reading JSON of callers: what readers would understand differently is refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from batchmill.producer.errors import JobRejected

from .document import GenerationJob


def read_strict_json(content: bytes | str) -> Any:
    """Return the value in a JSON text.

    Raises:
        ValueError: it is not JSON, or not UTF-8.
        RecursionError: it is nested too deep.
        JobRejected: a key is given twice (`duplicate_key`), or it has NaN or Infinity (`not_json`).
    """
    return json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object with a repeated key: readers disagree on which value counts."""
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            shown = name if name in GenerationJob.model_fields else "a key"
            raise JobRejected(f"{shown} is given twice in one object", code="duplicate_key")
        data[name] = value
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise JobRejected(f"the document holds {name}, which is not JSON", code="not_json")
