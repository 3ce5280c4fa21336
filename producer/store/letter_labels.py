"""What a dead letter keeps of a refused element, and the labels by which it is found."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.producer.job import limits
from batchmill.producer.protocol import keys

#: Of an element that is not JSON, in its dead letter: whoever may push may push anything.
MAX_MALFORMED_BYTES = 65_536
#: Of an element that is parsed at all: the parser holds up all threads for as long as it takes.
MAX_READ_BYTES = 72 << 20


@dataclass(frozen=True, slots=True)
class LetterLabels:
    """What a refused document says about its owner; empty if it says nothing readable."""

    tenant: str = ""
    tags: tuple[str, ...] = ()


NO_LABELS = LetterLabels()


def document_labels(content: bytes) -> LetterLabels:
    """Return the labels in a refused job document."""
    return _labels(_read_json(content))


def message_labels(element: bytes) -> LetterLabels:
    """Return the labels of the job document in a refused element of a Celery queue."""
    body = _get(_read_json(element), "body")
    if not isinstance(body, str):
        return NO_LABELS
    arguments = _read_json(body.encode())
    if arguments is None:
        try:
            arguments = _read_json(base64.b64decode(body, validate=True))
        except ValueError:
            return NO_LABELS
    if not isinstance(arguments, list):
        return NO_LABELS
    args, kwargs = (*arguments, None, None)[:2]
    job = _get(kwargs, "job") or (args[0] if isinstance(args, list) and args else None)
    return _labels(job)


def kept_element(element: bytes, reason: str) -> tuple[bytes, str]:
    """Return what a dead letter keeps of a refused element, and its reason.

    Of a long element that is not JSON only the beginning is kept: it can never become a job.
    """
    if len(element) <= MAX_MALFORMED_BYTES or _read_json(element) is not None:
        return element, reason
    cut = f"of its {len(element)} bytes the first {MAX_MALFORMED_BYTES} are kept"
    return element[:MAX_MALFORMED_BYTES], f"{reason}; {cut}"


def _labels(document: Any) -> LetterLabels:
    tenant, tags = _get(document, "tenant"), _get(document, "tags")
    is_tenant = isinstance(tenant, str) and keys.is_tenant_name(tenant)
    readable = [tag for tag in tags if _is_tag(tag)] if isinstance(tags, list) else []
    return LetterLabels(tenant if is_tenant else "", tuple(readable[: limits.MAX_TAGS]))


def _is_tag(tag: Any) -> bool:
    return isinstance(tag, str) and 1 <= len(tag) <= limits.MAX_TAG_CHARS and "," not in tag


def _get(container: Any, name: str) -> Any:
    return container.get(name) if isinstance(container, Mapping) else None


def _read_json(content: bytes) -> Any:
    if len(content) > MAX_READ_BYTES:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
