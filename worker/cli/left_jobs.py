"""What a job waits for if workers leave it to others, for `batchmill status ID`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .media_shortage import describe_shortage, models_without_decoders

if TYPE_CHECKING:
    from batchmill.producer.store.job_store import JobStore


def describe_left_job(store: JobStore, job_id: str) -> str | None:
    """Return which worker a queued job waits for; None if no worker has left it to others.

    A job with pictures or sounds waits before any worker has seen it, if none of its model can
    decode them.
    """
    from batchmill.producer.plural import pluralize
    from batchmill.producer.protocol import keys
    from batchmill.producer.protocol.media import DECODES
    from batchmill.producer.protocol.payloads import READS_OBJECTS
    from batchmill.producer.protocol.replies import JobState

    client: Any = store.client
    fields = client.hmget(keys.job(job_id), "state", "key_refusals", "sealed_with", "model")
    state, refusals, needed, model = [(each or b"").decode(errors="replace") for each in fields]
    if state != JobState.QUEUED or not needed:
        return None
    has_media = not set(needed.split()).isdisjoint(DECODES.values())
    lacks_decoders = has_media and model in models_without_decoders(store.list_workers())
    num_refusals = int(refusals[:18]) if refusals.isdecimal() else 0
    if not (num_refusals or lacks_decoders):
        return None
    names = {READS_OBJECTS: "the object store"}
    names |= {ability: f"decoders of media ({kind})" for kind, ability in DECODES.items()}
    what = " and ".join(names.get(each, f"the key {each}") for each in needed.split())
    claims = pluralize(num_refusals, "claim")
    shortage = f"; {describe_shortage(model)}" if lacks_decoders else ""
    return f"for a worker with {what}: {claims} by others{shortage}"
