"""How much each part of an input mattered for the output, by leaving parts out.

The same output is scored after inputs without some parts. No token is generated, and the inputs
share the beginning up to the first part that is missing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any, Final

import numpy as np

from batchmill.engine.plans.plan import PlannedJob, PlannedRequest
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.request.sampling_params import SamplingParams

from .linear_fit import Floats, lasso, spearman
from .segments import ExplainedInput, describe

#: Random inputs that the linear fit is made from, and further ones that it is tried on.
NUM_FITTED: Final = 32
NUM_TRIED: Final = 8
#: Best parts that are left out together, to see how far the output's probability falls.
TOP_K: Final = (1, 3, 5)
_NUM_TOGETHER: Final = 8
_SEED: Final = 2024
Scores = Generator[Sequence[PlannedRequest], Sequence[RequestOutput], list[float]]
Attribution = Generator[Sequence[PlannedRequest], Sequence[RequestOutput], dict[str, Any] | None]


def attribution(job: PlannedJob, answer: Sequence[int]) -> Attribution:
    """Yield requests that score the answer, and return the section; None without parts.

    Every figure is a drop of the answer's log probability, in nats: larger is more important.
    """
    explained = ExplainedInput(job)
    num_segments = len(explained.segments)
    if not answer or not num_segments:
        return None
    masks = _random_masks(num_segments)
    removed: list[Collection[int]] = [(), *[(place,) for place in range(num_segments)]]
    removed += [tuple(np.flatnonzero(mask == 0).tolist()) for mask in masks]
    scores = yield from _scores(job, explained, removed, answer)
    whole, alone = scores[0], scores[1 : num_segments + 1]
    targets = np.array([_logit(each) for each in scores[num_segments + 1 :]])
    weights = lasso(masks[:NUM_FITTED], targets[:NUM_FITTED])
    predicted = masks[NUM_FITTED:] @ weights
    order = np.argsort(-weights, kind="stable").tolist()
    ks = [k for k in TOP_K if k <= num_segments]
    drops = yield from _scores(job, explained, [order[:k] for k in ks], answer)
    return {
        "segments": [
            describe(segment, leave_one_out=whole - without, weight=float(weight))
            for segment, without, weight in zip(explained.segments, alone, weights, strict=True)
        ],
        "top_k_drop": {str(k): whole - each for k, each in zip(ks, drops, strict=True)},
        "lds": spearman(predicted.tolist(), targets[NUM_FITTED:].tolist()),
    }


def _random_masks(num_segments: int) -> Floats:
    """Return rows of 0 and 1, each equally likely; the same for every job of this size."""
    rng = np.random.default_rng(_SEED)
    found: Floats = rng.integers(0, 2, (NUM_FITTED + NUM_TRIED, num_segments)).astype(np.float64)
    return found


def _scores(
    job: PlannedJob,
    explained: ExplainedInput,
    removed: Sequence[Collection[int]],
    answer: Sequence[int],
) -> Scores:
    """Return the log probability of the answer after each input."""
    params = SamplingParams(
        temperature=0, max_tokens=len(answer), logprobs=0, ignore_eos=True, detokenize=False
    )
    known: dict[tuple[int, ...], float] = {}
    keys = [tuple(sorted(each)) for each in removed]
    for batch in _batches(list(dict.fromkeys(keys))):
        requests = [
            PlannedRequest(
                explained.prompt_without(key),
                params,
                resumed_token_ids=answer,
                priority_below=1,
            )
            for key in batch
        ]
        outputs = yield requests
        for key, output in zip(batch, outputs, strict=True):
            rows = zip(answer, output.logprobs or (), strict=True)
            known[key] = sum(row[token_id] for token_id, row in rows)
    return [known[key] for key in keys]


def _logit(log_probability: float) -> float:
    """Return log(p / (1 - p)): ContextCite's target, which a linear function can reach."""
    log_probability = min(log_probability, -1e-9)
    return log_probability - math.log(-math.expm1(log_probability))


def _batches(keys: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    for start in range(0, len(keys), _NUM_TOGETHER):
        yield keys[start : start + _NUM_TOGETHER]
