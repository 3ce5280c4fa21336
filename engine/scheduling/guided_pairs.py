"""Guided requests in a step: both of a pair sample in it, or neither does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchmill.engine.request.request import Request, RequestStatus

from .batch_builder import BatchBuilder
from .scheduled_batch import ScheduledRequest


def guided_of(request: Request) -> Request:
    """Return the request that a guide belongs to; any other request is returned as it is."""
    link = request.guidance
    return request if link is None or not link.is_guide else link.partner


def running_partner(request: Request) -> Request | None:
    """Return the other request of a pair, if it runs."""
    if request.guidance is None:
        return None
    partner = request.guidance.partner
    return partner if partner.status is RequestStatus.RUNNING else None


def without_partner(decodes: Iterable[Request]) -> list[Request]:
    """Return the guided requests, and guides, whose partner is not among the decodes.

    They wait for it, and go on with a chunk of one token.
    """
    known = set(decodes)
    return [
        request
        for request in known
        if request.guidance is not None and request.guidance.partner not in known
    ]


def add_guided_chunks(
    builder: BatchBuilder, request: Request, prefilling: Iterable[Request]
) -> Iterator[ScheduledRequest]:
    """Add the next chunk of a guided request or of its guide; yield what was added.

    Each computes its known tokens but the last by itself. The last one is computed in one step with
    that of the partner, so that both sample there.
    """
    num_left = request.num_uncomputed_tokens
    if num_left > 1:
        item = builder.add_chunk(request, num_left, num_held=1)
        if item is not None:
            yield item
        return
    assert request.guidance is not None
    partner = running_partner(request)
    is_ready = partner is not None and partner.num_uncomputed_tokens == 1 and partner in prefilling
    # The second one to be ready adds both; a step must have room for both.
    if partner is None or not is_ready or builder.num_free_tokens < 2:
        return
    pair = (partner, request) if request.is_guide else (request, partner)
    if any(item.request is pair[0] for item in builder.chunks):
        return
    item = builder.add_chunk(pair[0], 1)
    if item is None or not item.needs_sample:
        return
    yield item
    guide = builder.add_chunk(pair[1], 1)
    assert guide is not None
    yield guide
