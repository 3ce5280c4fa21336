"""How much further samples of a prompt differ: groups of texts, and their entropy."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from batchmill.engine.lifecycle.parallel_sampling import sample_seed
from batchmill.engine.plans.plan import PlannedJob, PlannedRequest
from batchmill.engine.request.sampling_params import SamplingParams

#: Further samples, at temperature 1.
NUM_SAMPLES: Final = 8


def sample_requests(job: PlannedJob, params: SamplingParams) -> list[PlannedRequest]:
    """Return the requests of further samples, whose seeds depend on the job's."""
    assert job.prompt is not None
    return [
        PlannedRequest(
            job.prompt,
            replace(params, temperature=1.0, seed=sample_seed(params.seed or 0, place)),
            priority_below=1,
            media=job.media,
        )
        for place in range(1, NUM_SAMPLES + 1)
    ]


def uncertainty(
    own_text: str, texts: Sequence[str], meanings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the groups of texts that say the same, the largest first.

    Args:
        own_text: The output.
        texts: The samples.
        meanings: Of each normal form of the texts, the one that stands for its group; None if each
            is a group of its own.
    """
    keys = [_group_of(text, meanings) for text in texts]
    counts = Counter(keys)
    examples = dict(zip(reversed(keys), reversed(texts), strict=True))
    shares = [count / len(texts) for count in counts.values()]
    return {
        "num_samples": len(texts),
        "groups": [{"text": examples[key], "count": count} for key, count in counts.most_common()],
        "entropy": sum(share * math.log(1 / share) for share in shares),
        "agreement": counts[_group_of(own_text, meanings)] / len(texts),
        "match": "exact" if meanings is None else "embedding",
    }


def normal(text: str) -> str:
    """Return a text without what makes no difference: case, white space, and marks at its ends."""
    return re.sub(r"\s+", " ", text).strip().strip(".!?,;: ").casefold()


def _group_of(text: str, meanings: Mapping[str, str] | None) -> str:
    key = normal(text)
    return key if meanings is None else meanings[key]
