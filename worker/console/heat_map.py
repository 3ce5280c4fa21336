"""An output as a heat map: how sure the model was of each token, and what else it considered."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from batchmill.producer.results import Completion, JobResult

#: Tokens that a page shows; of a longer output, the first ones.
MAX_TOKENS: Final = 3000
#: Steps of the colour.
NUM_STEPS: Final = 10
_MAX_ALTERNATIVES = 20
#: Below this probability a token counts as unsure in the summary.
_UNSURE = 0.5


@dataclass(frozen=True, slots=True)
class HeatToken:
    """One token of the output."""

    text: str
    #: 0 (the model was sure) to `NUM_STEPS` - 1; None without a log probability.
    step: int | None
    #: Its probability, as a percentage.
    shown: str
    #: JSON: text, percentage and share of the width of each alternative, and which was chosen.
    alternatives: str


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The tokens of one sample, and a summary."""

    tokens: Sequence[HeatToken]
    #: Tokens beyond `MAX_TOKENS`, which are not shown.
    num_left_out: int
    #: Geometric mean of the probabilities.
    mean: float | None
    #: exp of the mean negative log probability.
    perplexity: float | None
    num_unsure: int


def heat_maps(result: JobResult) -> list[HeatMap | None]:
    """Return the heat map of each sample of a job; None if it has no log probabilities."""
    details = result.logprob_details
    texts: Mapping[int, bytes] = {} if details is None else details.token_bytes
    skipped = 0 if details is None else len(details.echoed_token_ids or ())
    return [_heat_map(sample, texts, skipped) for sample in result.completions]


def _heat_map(sample: Completion, texts: Mapping[int, bytes], skipped: int) -> HeatMap | None:
    if not sample.logprobs:
        return None
    rows = sample.logprobs[skipped:] if skipped else sample.logprobs
    # A character may span several tokens: it is shown at the last of them.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = [_token(row or {}, texts, decoder) for row in rows[:MAX_TOKENS]]
    own = [value for value in map(_own, rows) if value is not None]
    mean = sum(own) / len(own) if own else None
    return HeatMap(
        tokens,
        max(0, len(rows) - MAX_TOKENS),
        mean=None if mean is None else math.exp(mean),
        perplexity=None if mean is None else math.exp(min(50.0, -mean)),
        num_unsure=sum(math.exp(value) < _UNSURE for value in own),
    )


def _own(row: Mapping[int, float] | None) -> float | None:
    """Return the log probability of the token itself, which comes first."""
    return next(iter(row.values()), None) if row else None


def _token(
    row: Mapping[int, float], texts: Mapping[int, bytes], decoder: codecs.IncrementalDecoder
) -> HeatToken:
    chosen = next(iter(row), None)
    content = b"" if chosen is None else texts.get(chosen, b"")
    text, logprob = decoder.decode(content), _own(row)
    if logprob is None:
        return HeatToken(text, None, "", "[]")
    probability = math.exp(min(0.0, logprob))
    best = sorted(row.items(), key=lambda item: -item[1])[:_MAX_ALTERNATIVES]
    return HeatToken(
        text,
        heat_step(probability),
        percentage(probability),
        _alternatives(best, texts, chosen),
    )


def _alternatives(
    best: Iterable[tuple[int, float]], texts: Mapping[int, bytes], chosen: int | None
) -> str:
    found = [
        {
            "text": _visible(texts.get(token_id, b"").decode(errors="replace")),
            "shown": percentage(math.exp(min(0.0, logprob))),
            "width": round(100 * math.exp(min(0.0, logprob)), 1),
            "chosen": token_id == chosen,
        }
        for token_id, logprob in best
    ]
    return json.dumps(found, ensure_ascii=False)


def heat_step(probability: float) -> int:
    """Return the step of the colour of a probability."""
    return min(NUM_STEPS - 1, int((1 - probability) * NUM_STEPS))


def percentage(probability: float) -> str:
    """Return a probability as a percentage."""
    return f"{probability * 100:.3g} %"


def _visible(text: str) -> str:
    """Return a token's text with white space that can be seen."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·") or "∅"
