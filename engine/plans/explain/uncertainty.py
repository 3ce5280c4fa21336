"""How much further samples of a prompt differ: groups of equal texts, and their entropy."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
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
        )
        for place in range(1, NUM_SAMPLES + 1)
    ]


def uncertainty(own_text: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the groups of texts that say the same, the largest first.

    Texts are the same if they differ only in case, white space and punctuation at their ends.
    """
    counts = Counter(map(_normal, texts))
    examples = {_normal(text): text for text in reversed(texts)}
    shares = [count / len(texts) for count in counts.values()]
    return {
        "num_samples": len(texts),
        "groups": [{"text": examples[key], "count": count} for key, count in counts.most_common()],
        "entropy": -sum(share * math.log(share) for share in shares),
        "agreement": counts[_normal(own_text)] / len(texts),
    }


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().strip(".!?,;: ").casefold()
