"""Limits of a job's fields for the queue; its content's are in `engine/contract/limits.py`."""

from __future__ import annotations

from typing import Final

#: Keys, objects and lists of a job together: checking may make an error of each. A list of token
#: ids counts as one.
MAX_PARTS: Final = 131_072
MAX_METADATA_PAIRS: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_BYTES: Final = 2048
MAX_TAGS: Final = 16
MAX_TAG_CHARS: Final = 64
MAX_URL_CHARS: Final = 2048
MAX_IDEMPOTENCY_KEY_CHARS: Final = 255
#: Tokens that a job is assumed to cost at most, before it has run.
MAX_COST_TOKENS: Final = 10_000_000
#: 30 days.
MAX_TTL_S: Final = 30 * 24 * 3600.0
