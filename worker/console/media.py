"""What the console shows of a job's pictures and sounds: kind and size, never what they show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import media as media_calls
from batchmill.producer.protocol.calls.call import Read
from batchmill.producer.protocol.media import is_media_name
from batchmill.producer.store.job_store import JobStore


def media_notes(store: JobStore, job_id: str) -> list[str]:
    """Return a note for each picture and sound of a job, in order."""
    names = store.read(_names(job_id))
    stored = [name for name in names if is_media_name(name)]
    facts = dict(zip(stored, store.read(media_calls.facts(stored)), strict=True)) if stored else {}
    notes = []
    for name in names:
        found = facts.get(name)
        if found is not None:
            notes.append(f"[{found[0]}, {found[1]:,} bytes]")
        else:
            notes.append("[not stored any more]" if name in facts else "[not fetched yet]")
    return notes


def content_text(content: list[Any], notes: Iterator[str]) -> str:
    """Return the text of a message's parts, with a note in the place of each other part."""
    lines = []
    for part in content:
        is_text = isinstance(part, dict) and part.get("type") == "text"
        lines.append(str(part.get("text", "")) if is_text else next(notes, "[unknown]"))
    return "\n".join(lines)


def _names(job_id: str) -> Read[list[str]]:
    def parse(replies: list[Any]) -> list[str]:
        return (replies[0] or b"").decode("latin-1").split()

    return Read(lambda pipeline: pipeline.hget(keys.job(job_id), "media"), parse)
