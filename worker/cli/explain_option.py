"""`--explain`: what to explain about an output, and what that costs before it is computed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

#: Names of the parts; `attribution` costs by far the most.
EXPLAIN_HELP = (
    "What to explain about the output, such as confidence,attribution; also alternatives and "
    "uncertainty."
)


def parse_parts(text: str | None) -> list[str] | None:
    """Return the parts that are named, separated by commas; None if none are."""
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip()]


def note_explain_tokens(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Write to stderr how many tokens a job's explanation takes at most, if it asks for one.

    Args:
        fields: of the job.
        as_json: Write the note as JSON.

    Raises:
        JobRejected: the fields are invalid.
    """
    if not fields.get("explain"):
        return
    from batchmill.producer.job.validation import parse_job
    from batchmill.producer.store.submission import explanation_tokens

    num_tokens = explanation_tokens(parse_job(fields))
    message = f"the explanation takes at most about {num_tokens:,} tokens besides the job's own"
    note = {"note": {"message": message, "explain_tokens": num_tokens}}
    sys.stderr.write(f"{json.dumps(note) if as_json else f'note: {message}'}\n")
