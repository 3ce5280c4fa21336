"""An explanation as one HTML page that needs nothing else: no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from batchmill.producer.result_sections import Explanation, Source
from batchmill.producer.results import JobResult

from . import formats
from .heat_map import NUM_STEPS, heat_step, percentage

_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    step: int
    title: str


@dataclass(frozen=True, slots=True)
class _Bar:
    source: str
    text: str
    weight: float
    leave_one_out: float
    #: Share of the largest weight, in percent.
    width: float


def explanation_page(result: JobResult) -> str:
    """Return the page of a job's explanation.

    Raises:
        ValueError: the job has none.
    """
    explanation = result.explain
    if explanation is None:
        raise ValueError("the job has no explanation; submit it with explain")
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"number": formats.number, "percent": percentage}
    values: dict[str, Any] = {
        "result": result,
        "explanation": explanation,
        "tokens": _tokens(explanation),
        "bars": _bars(explanation.attribution.segments if explanation.attribution else ()),
        "num_steps": NUM_STEPS,
    }
    return environment.get_template("explanation.html").render(values)


def _tokens(explanation: Explanation) -> list[_Token]:
    return [
        _Token(
            each.text,
            heat_step(each.probability),
            f"{percentage(each.probability)}, rank {each.rank or 'below 5'}, margin "
            f"{each.margin:.3f}, entropy {each.entropy:.2f} nats",
        )
        for each in explanation.confidence or ()
    ]


def _bars(segments: Sequence[Source]) -> list[_Bar]:
    largest = max((abs(each.weight) for each in segments), default=0.0) or 1.0
    return [
        _Bar(
            each.source,
            each.text,
            each.weight,
            each.leave_one_out,
            round(100 * max(0.0, each.weight) / largest, 1),
        )
        for each in segments
    ]
