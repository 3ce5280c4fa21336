"""Dead letters: what was given up, why, and the ways to retry or delete it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import Attempt, count_causes
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.protocol.records import DeadLetter, DeadLetterKind
from batchmill.producer.store.dead_letters import retry_dead_letter
from batchmill.producer.store.every_shard import EveryShard
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.letter_labels import document_labels
from batchmill.worker.webhooks.reasons import explain

from .visit import ConsoleError, Page, Redirect, Reply, Visit, not_found, require

#: Letters per page; as many are looked at together to find those of one tenant.
PAGE_LETTERS: Final = 50


@dataclass(frozen=True, slots=True)
class LetterRow:
    """A letter on the page."""

    letter: DeadLetter
    #: None if it is unknown.
    tenant: str | None
    #: The reason in words.
    explanation: str

    @property
    def causes(self) -> str:
        """How often the attempts of a job ended for each cause."""
        return ", ".join(f"{name} {num}" for name, num in count_causes(self.history).items())

    @property
    def history(self) -> Sequence[Attempt]:
        """The attempts of a job."""
        return self.letter.history

    @property
    def path(self) -> str:
        """The page about what was given up, below the console; empty if there is none."""
        places = {DeadLetterKind.JOB: "/jobs/", DeadLetterKind.WEBHOOK: "/webhooks/events/"}
        place = places.get(self.letter.kind)
        return "" if place is None else place + self.letter.id


def list_letters(visit: Visit) -> Reply:
    """Show a page of dead letters, newest first."""
    given = visit.query.get("offset", "")
    offset = int(given) if given.isascii() and given.isdigit() and len(given) < 10 else 0
    rows, next_offset = _page(visit, offset)
    counts = visit.shards.each(lambda store: store.counts().dead_letters)
    total = sum(counts) if visit.viewer.is_operator else None
    values = {"rows": rows, "total": total, "next": next_offset, "is_first": offset == 0}
    return Page("dead_letters.html", values)


def change_letter(visit: Visit) -> Reply:
    """Retry or delete a dead letter."""
    require(visit.viewer.may_administer, "admin")
    letter_id = visit.path["letter_id"]
    found = visit.shards.find(lambda store: store.dead_letter(letter_id))
    if found is None or not visit.viewer.sees(_tenants(found[0], [found[1]])[0]):
        raise not_found("dead letter", letter_id)
    store, letter = found
    match visit.form.get("action"):
        case "retry":
            if retry_dead_letter(store, letter.id, visit.site.settings) is None:
                raise not_found("dead letter", letter_id)
            return Redirect("/dead-letters", "letter-retried")
        case "drop":
            store.dead_letter_drop(letter.id)
            return Redirect("/dead-letters", "letter-dropped")
    raise ConsoleError(400, "The form has no action that this page knows.")


def _page(visit: Visit, offset: int) -> tuple[list[LetterRow], int | None]:
    """Return the letters that the viewer sees, and where the next page begins."""
    rows = list[LetterRow]()
    while letters := _newest(visit.shards, offset):
        for place, (letter, tenant) in enumerate(letters):
            if not visit.viewer.sees(tenant):
                continue
            if len(rows) == PAGE_LETTERS:
                return rows, offset + place
            rows.append(LetterRow(letter, tenant, _explanation(letter)))
        offset += PAGE_LETTERS
    return rows, None


def _newest(shards: EveryShard, offset: int) -> list[tuple[DeadLetter, str | None]]:
    """Return letters of all shards with their tenants, newest first, after the newest `offset`."""

    def read(store: JobStore, skipped: int, limit: int) -> list[tuple[DeadLetter, str | None]]:
        letters = store.dead_letters(offset=skipped, limit=limit)
        return list(zip(letters, _tenants(store, letters), strict=True))

    if shards.is_alone:
        (only,) = shards.each(lambda store: read(store, offset, PAGE_LETTERS))
        return only
    parts = shards.each(lambda store: read(store, 0, offset + PAGE_LETTERS))
    pairs = sorted((pair for part in parts for pair in part), key=lambda pair: -pair[0].at_ms)
    return pairs[offset : offset + PAGE_LETTERS]


def _explanation(letter: DeadLetter) -> str:
    if letter.kind is not DeadLetterKind.WEBHOOK:
        return ""
    return explain(letter.payload.decode(errors="replace"), letter.source)


def _tenants(store: JobStore, letters: Sequence[DeadLetter]) -> list[str | None]:
    """Return the tenant of each letter; None if nothing says it, so that only operators see it."""

    def queue(pipeline: Any) -> None:
        for letter in letters:
            pipeline.hmget(keys.job(letter.id), "state", "tenant")
            pipeline.hget(keys.leftover(letter.id), "tenant")
            pipeline.hmget(keys.event(letter.id), "state", "tenant")

    def parse(replies: list[Any]) -> list[str | None]:
        groups = zip(replies[::3], replies[1::3], replies[2::3], strict=True)
        return [_tenant(letter, *group) for letter, group in zip(letters, groups, strict=True)]

    return store.read(Read(queue, parse, keeps_errors=True))


def _tenant(letter: DeadLetter, job: Any, leftover: Any, event: Any) -> str | None:
    state, tenant = stored(event if letter.kind is DeadLetterKind.WEBHOOK else job, (None, None))
    if state is not None:  # a record without a tenant is the default one's
        return _name(tenant) or keys.DEFAULT_TENANT
    if letter.kind is DeadLetterKind.JOB:
        return _name(stored(leftover)) or document_labels(letter.payload).tenant or None
    return None


def _name(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
