"""Reading a decision's questions from a file that a command names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import usage_error
from .options import parse_json_option


def read_decision_option(option: str, given: str) -> dict[str, Any]:
    """Return a decision without its state, in our own spelling.

    Args:
        option: the command's option, for errors.
        given: a JSON file, or JSON itself: the questions, or an object with `questions` and other
            fields of a decision.

    Raises:
        CommandError: it cannot be read, or has no questions.
        JobRejected: a question is wrong.
    """
    from batchmill.producer.job.decision import decision_without_state
    from batchmill.producer.job.validation import parse_job

    text = given
    if not given.lstrip().startswith(("{", "[")):
        try:
            text = Path(given).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise usage_error(f"{option} {given} cannot be read: {error}") from None
    try:
        decision = decision_without_state(parse_json_option(option, text))
    except ValueError as error:
        raise usage_error(f"{option}: {error}") from None
    parse_job({"decision": {"state": "of each row", **decision}})
    return decision
