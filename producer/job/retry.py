"""A job's own retry policy: which errors of an attempt lead to another one, how often, and when."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from .field_checks import STRICT, integral

#: Errors that are not the caller's, and that the same job may not meet on another worker or at
#: another time. They do not include `numerical_error`: the same tokens make the same numbers.
RETRYABLE_CODES: Final = (
    "engine_error",
    "internal_error",
    "media_unreachable",
    "out_of_memory",
    "payload_unreachable",
    "structure_check_unavailable",
)
#: Of these, the errors after which the output so far cannot be continued: its last token may be the
#: one that the engine could not follow. The next attempt starts over.
RESTARTED_CODES: Final = frozenset({"engine_error"})


def check_codes(codes: list[str]) -> list[str]:
    """Return error codes, if each of them can be retried.

    Raises:
        ValueError: one cannot, or is given twice.
    """
    for code in codes:
        if code not in RETRYABLE_CODES:
            known = ", ".join(RETRYABLE_CODES)
            raise ValueError(f"has {code[:64]!r}, which is never retried; use any of {known}")
    if len(set(codes)) != len(codes):
        raise ValueError("has a code twice; give each once")
    return codes


Count = Annotated[int, Field(ge=1), BeforeValidator(integral)]
WaitS = Annotated[float, Field(ge=0)]
Code = Annotated[str, Field(json_schema_extra={"enum": list(RETRYABLE_CODES)})]


class RetryPolicy(BaseModel):
    """How a job's failed attempts are retried. What it leaves out is the operator's default.

    The next attempt continues from the tokens that the ones before have generated, but after an
    `engine_error` it starts over.
    """

    model_config = STRICT

    max_attempts: Count | None = None
    """Attempts that may fail before the job fails; 1 retries nothing."""

    backoff_s: WaitS | None = None
    """Seconds before the first retry. Each further wait is twice as long, and each is shortened
    by up to a quarter at random."""

    max_backoff_s: WaitS | None = None
    """Longest wait before a retry, seconds."""

    codes: Annotated[list[Code], AfterValidator(check_codes)] | None = None
    """Error codes that are retried."""

    @model_validator(mode="after")
    def _check_waits(self) -> Self:
        first_s, longest_s = self.backoff_s, self.max_backoff_s
        if first_s is not None and longest_s is not None and first_s > longest_s:
            raise ValueError(
                f"backoff_s is {first_s:g}, longer than max_backoff_s ({longest_s:g}); raise that"
            )
        return self
