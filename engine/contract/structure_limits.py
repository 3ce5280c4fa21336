"""Which limit of llguidance an error means, in words."""

from __future__ import annotations

from typing import Final

from . import structure_check_process as process

REMEDY: Final = "use a smaller structure, with fewer repetitions, patterns and levels"
#: Parts of llguidance's errors, and the limit that each one means.
_LIMITS: Final = (
    ("initial lexer", f"{process.FIRST_EXPRESSIONS} expressions at its start"),
    ("too many states", f"{process.LEXER_STATES} states of its lexer"),
    ("grammar size", f"{process.GRAMMAR_SYMBOLS} symbols"),
    ("too many items", f"{process.STEP_ITEMS} parser items in one step"),
    ("items; max is", f"{process.ROW_ITEMS} alternatives at one place"),
    ("too many expressions", "{step} expressions in one step"),
    ("fuel", "{step} expressions in one step"),
    ("if regex is empty", "the work that proves that its patterns can match together"),
)


def exceeded_limit(error: str, *, step_expressions: int = process.STEP_EXPRESSIONS) -> str | None:
    """Return the limit that a structure exceeds.

    Args:
        error: An error of llguidance.
        step_expressions: The limit on the lexer's work under which the error occurred.

    Returns:
        What follows "the structure needs more than"; None if the error is not about a limit.
    """
    lowered = error.lower()
    for part, limit in _LIMITS:
        if part in lowered:
            return limit.format(step=step_expressions)
    return None
