"""Errors of a job's section, named as in the body of the request that it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from batchmill.producer.errors import JobRejected

from .openai_api import DECISIONS, EMBEDDINGS, RERANK, SCORE

#: The section of each path's job, and the field of the body that is its input.
_SECTIONS: Final[Mapping[str, tuple[str, str]]] = {
    EMBEDDINGS: ("embedding", "input"),
    SCORE: ("scoring", "documents"),
    RERANK: ("scoring", "documents"),
    DECISIONS: ("decision", "state"),
}


@contextmanager
def body_names(path: str, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Name the fields of a job's section in errors as the body of the request did.

    Args:
        path: of the API; of others than those with a section, errors stay as they are.
        names: names in the body, of fields that have another one there.

    Raises:
        JobRejected: whatever was raised inside.
    """
    section, whole = _SECTIONS.get(path, ("", ""))
    names = {"input": whole} | dict(names or {}) if section == "scoring" else {}
    try:
        yield
    except JobRejected as error:
        head, _, rest = (error.param or "").partition(".")
        if not section or head != section:
            raise
        first, dot, deeper = rest.partition(".")
        param = f"{names.get(first, first)}{dot}{deeper}" if rest else whole
        message = str(error)
        if rest:
            message = message.replace(str(error.param), param, 1)
        raise JobRejected(message, code=error.code, param=param) from None
