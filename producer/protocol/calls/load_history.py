"""The call that stores a sample of the load."""

from __future__ import annotations

from .call import Call


def store_sample(sample: str, *, interval_ms: int, max_samples: int) -> Call[bool]:
    """Store a sample unless the present interval has one; return whether it was stored.

    If Redis is full, it is dropped: the load is shown, and nothing depends on it.
    """
    return Call("load_sample", (sample, interval_ms, max_samples), bool, when_out_of_memory=False)
