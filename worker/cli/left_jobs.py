"""What a job waits for if workers leave it to others, for `batchmill status ID`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchmill.producer.store.job_store import JobStore


def describe_left_job(store: JobStore, job_id: str) -> str | None:
    """Return which worker a queued job waits for; None if no worker has left it to others."""
    from batchmill.producer.plural import pluralize
    from batchmill.producer.protocol import keys
    from batchmill.producer.protocol.media import DECODES
    from batchmill.producer.protocol.payloads import READS_OBJECTS
    from batchmill.producer.protocol.replies import JobState

    client: Any = store.client
    fields = client.hmget(keys.job(job_id), "state", "key_refusals", "sealed_with")
    state, num_refusals, needed = [(each or b"").decode(errors="replace") for each in fields]
    if state != JobState.QUEUED or not (num_refusals.isdecimal() and needed):
        return None
    names = {READS_OBJECTS: "the object store"}
    names |= {ability: f"decoders of media ({kind})" for kind, ability in DECODES.items()}
    what = " and ".join(names.get(each, f"the key {each}") for each in needed.split())
    claims = pluralize(int(num_refusals[:18]), "claim")
    return f"for a worker with {what}: {claims} by others"
