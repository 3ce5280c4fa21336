"""Selects one of a job's samples, once all of them have ended.

A selection by decision is made in the engine (`engine/plans/selection.py`).

Sources: best of n by likelihood with its length divided out, as in Adiwardana et al. 2020; voting,
Wang et al. 2022, "Self-consistency improves chain of thought reasoning".
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from batchmill.producer.job.selection import Selection
from batchmill.producer.results import SelectedSample
from batchmill.worker.engine_host.messages import FinishedSample

_ENDED = frozenset({"stop", "length", "tool_calls"})


def select_sample(
    rule: Selection, samples: Sequence[FinishedSample], decided: Mapping[str, Any] | None = None
) -> SelectedSample:
    """Return which sample a rule selects; samples that failed are no candidates.

    The earlier one of equals is selected, so the same samples always give the same selection.

    Args:
        rule: How.
        samples: All of them.
        decided: Of a selection by decision, what the engine's plan computed; None if it did not
            get that far.
    """
    if rule.by == "decision":
        return SelectedSample.model_validate({"by": "decision", **(decided or {})})
    if rule.by == "likelihood":
        return _by_likelihood(samples)
    return _by_vote(samples, rule.field)


def _by_likelihood(samples: Sequence[FinishedSample]) -> SelectedSample:
    means = [_mean_logprob(each) if each.finish_reason in _ENDED else None for each in samples]
    known = [(mean, -index) for index, mean in enumerate(means) if mean is not None]
    index = -max(known)[1] if known else None
    return SelectedSample(by="likelihood", index=index, mean_logprobs=means)


def _mean_logprob(sample: FinishedSample) -> float | None:
    if not sample.logprobs or len(sample.logprobs) != len(sample.token_ids):
        return None
    pairs = zip(sample.token_ids, sample.logprobs, strict=True)
    own = [each[token_id] for token_id, each in pairs if each is not None]
    return sum(own) / len(own) if own else None


def _by_vote(samples: Sequence[FinishedSample], field: str | None) -> SelectedSample:
    answers = [
        _answer(each.text, field) if each.finish_reason in _ENDED else None for each in samples
    ]
    votes = Counter(answer for answer in answers if answer is not None)
    # `most_common` lists equal counts in the order in which they came.
    winner = votes.most_common(1)[0][0] if votes else None
    index = None if winner is None else answers.index(winner)
    return SelectedSample(by="vote", index=index, votes=dict(votes.most_common()))


def _answer(text: str, field: str | None) -> str | None:
    """Return what a text votes for, as JSON if it is a field; None if the text has no such field.

    Spaces around a text, the order of keys and forms of a number make no difference.
    """
    if field is None:
        return text.strip() or None
    try:
        value = json.loads(text, parse_float=_number)
        for name in field.split("."):
            value = value[name]
        return _json(value)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _json(value: Any) -> str:
    """Return a value as JSON. Lone surrogates, which JSON can escape and UTF-8 lacks, stay escaped.

    Raises:
        ValueError: it holds NaN or Infinity.
        RecursionError: it is nested too deep.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    return text


def _number(digits: str) -> float | int:
    """Return a number in the one form that it has as a vote: 12 for 12.0."""
    number = float(digits)
    return int(number) if number.is_integer() else number
