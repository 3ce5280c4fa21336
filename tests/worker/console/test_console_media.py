"""The console shows kind and size of pictures and sounds, and nothing else of them."""

from __future__ import annotations

from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.submission import prepare
from batchmill.worker.console.media import content_text, media_notes

PNG = b"\x89PNG\r\n\x1a\n" + b"p" * 1226


def test_media_are_shown_by_kind_and_size(redis_url: str) -> None:
    store = JobStore.from_url(redis_url)
    content = [
        {"type": "image", "image": PNG},
        {"type": "image", "url": "https://pictures.example/a.png?signature=secret"},
        {"type": "text", "text": "What?"},
    ]
    job = prepare(
        parse_job({"messages": [{"role": "user", "content": content}]}), ProducerSettings()
    )
    store.submit(job)
    notes = media_notes(store, job.job_id)
    assert notes == ["[image, 1,234 bytes]", "[not fetched yet]"]
    shown = content_text(
        [{"type": "image", "media": "med_1"}, {"type": "image", "url": "u"}, content[2]],
        iter(notes),
    )
    assert shown == "[image, 1,234 bytes]\n[not fetched yet]\nWhat?"
    (name,) = (name for name in store.client.keys(f"{keys.media('')}*"))
    store.client.delete(name)
    assert media_notes(store, job.job_id)[0] == "[not stored any more]"
    assert media_notes(store, "another") == []
    store.close()
