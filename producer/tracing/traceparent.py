"""W3C `traceparent`: read from whatever a caller sent, and written. Needs no OpenTelemetry.

Source: W3C Trace Context, level 1 and 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

#: Name of the HTTP header, of the job's field, and of the header of a Celery task.
TRACEPARENT = "traceparent"
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
#: Far more than any version of the format needs.
_MAX_CHARS = 512
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of another process: its trace, its id and the flags of the trace."""

    trace_id: int
    span_id: int
    flags: int = _SAMPLED

    @classmethod
    def read(cls, value: object) -> Self | None:
        """Return the context in a value; None if the value is not a valid `traceparent`.

        Any program can send one, so nothing about it is an error: the job runs without a context.
        """
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        if not isinstance(value, str) or len(value) > _MAX_CHARS:
            return None
        match = _FORM.fullmatch(value)
        if match is None:
            return None
        version, trace_id, span_id = match[1], int(match[2], 16), int(match[3], 16)
        # Version ff is invalid; version 00 ends here, and later versions may have more parts.
        if version == "ff" or (version == "00" and match[5]) or not (trace_id and span_id):
            return None
        return cls(trace_id, span_id, int(match[4], 16))

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    @property
    def trace_hex(self) -> str:
        """The trace's id as logs and other tools write it."""
        return f"{self.trace_id:032x}"


def read_traceparent(value: object) -> str | None:
    """Return a valid `traceparent` in the form of version 00; None for anything else."""
    context = TraceContext.read(value)
    return None if context is None else str(context)


def trace_fields(traceparent: object) -> dict[str, str]:
    """Return the fields that name a trace in a line of a log: none without a valid context."""
    context = TraceContext.read(traceparent)
    return {} if context is None else {"trace_id": context.trace_hex}
