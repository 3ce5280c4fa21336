"""The cells that an explanation fills in a table: of each part the figures that rows compare by.

The whole explanation stays in the run's journal and in the job's result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchmill.producer.files.table import Column

_COLUMNS = {
    "confidence": (("confidence", "number"), ("least_confidence", "number")),
    "alternatives": (("alternative", "text"),),
    "attribution": (("source", "text"), ("source_text", "text"), ("source_weight", "number")),
    "uncertainty": (("agreement", "number"), ("entropy", "number")),
}


def explain_columns(parts: Sequence[str]) -> list[Column]:
    """Return the columns of the parts of an explanation that a job asks for."""
    return [
        Column(f"explain.{name}", kind) for part in parts for name, kind in _COLUMNS.get(part, ())
    ]


def explain_cells(parts: Sequence[str], explanation: Mapping[str, Any]) -> list[Any]:
    """Return the cells of an explanation; an empty one has none.

    Of `confidence` they are the mean and the least probability of a token; of `alternatives` the
    one with the smallest lead; of `attribution` the part of the input with the largest weight.
    """
    found: dict[str, Any] = {}
    if tokens := explanation.get("confidence"):
        probabilities = [each["probability"] for each in tokens]
        found["confidence"] = sum(probabilities) / len(probabilities)
        found["least_confidence"] = min(probabilities)
    if others := explanation.get("alternatives"):
        closest = min(others, key=lambda each: each["probability"] - each["other_probability"])
        found["alternative"] = closest["text"]
    segments = (explanation.get("attribution") or {}).get("segments")
    if segments:
        best = max(segments, key=lambda each: each["weight"])
        found["source"], found["source_text"] = best["source"], best["text"]
        found["source_weight"] = best["weight"]
    if uncertainty := explanation.get("uncertainty"):
        found |= {name: uncertainty[name] for name in ("agreement", "entropy")}
    return [found.get(name) for part in parts for name, _ in _COLUMNS.get(part, ())]
