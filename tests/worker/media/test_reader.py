"""Reading the media of a job: what is fetched once is what every attempt and every place sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from batchmill.producer.job.media_parts import MediaPart
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.media.decoder import DecodeLimits, MediaDecoder
from batchmill.worker.media.errors import INVALID, TOO_LARGE, MediaError
from batchmill.worker.media.reader import MediaOwner, MediaReader

from ...support.pictures import decoded, png

#: Of two pictures.
MAX_JOB_BYTES = 2 * decoded().num_bytes
URL, OTHER_URL = "https://pictures.example/a.png", "https://pictures.example/b.png"


class ChangingServer:
    """Sends the next content at each request."""

    def __init__(self, *contents: bytes) -> None:
        self._contents = iter(contents)
        self.urls: list[str] = []

    def fetch(self, url: str) -> bytes:
        self.urls.append(url)
        return next(self._contents)


@pytest.fixture(scope="module")
def decoder() -> Iterator[MediaDecoder]:
    decoder = MediaDecoder(DecodeLimits(10_000, 1.0, 10.0, 1 << 29), num_processes=1)
    yield decoder
    decoder.close()


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


def claimed(store: JobStore, num_media: int) -> MediaOwner:
    """Return the claim of a job whose media are all at URLs."""
    store.submit(NewJob("j", "demo", "demo", "{}", 60_000, media=(None,) * num_media))
    claim = store.claim("j", owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    return MediaOwner("j", claim.fence, keys.DEFAULT_TENANT, claim.media)


def reader(store: JobStore, decoder: MediaDecoder, server: ChangingServer) -> MediaReader:
    return MediaReader(
        store,
        decoder,
        server,
        ttl_s=60,
        max_memory_percent=None,
        max_job_bytes=MAX_JOB_BYTES,
        read_rate_hz=lambda: None,
        note=lambda medium, time_s: None,
    )


def names(store: JobStore) -> tuple[str, ...]:
    value = store.client.hget(keys.job("j"), "media")
    assert isinstance(value, bytes)
    return tuple(value.decode().split())


def test_a_url_at_two_places_is_fetched_once_and_another_attempt_sees_the_same(
    store: JobStore, decoder: MediaDecoder
) -> None:
    owner = claimed(store, 3)
    parts = [MediaPart(type="image", url=url) for url in (URL, OTHER_URL, URL)]
    server = ChangingServer(png("red"), png("blue"), png("green"))
    first = reader(store, decoder, server).read(owner, parts)
    assert first == [decoded("red"), decoded("blue"), decoded("red")]
    assert server.urls == [URL, OTHER_URL]

    again = MediaOwner("j", owner.fence, owner.tenant, names(store))
    assert reader(store, decoder, server).read(again, parts) == first
    assert server.urls == [URL, OTHER_URL]


def test_what_cannot_be_decoded_is_not_stored(store: JobStore, decoder: MediaDecoder) -> None:
    owner = claimed(store, 1)
    server = ChangingServer(b"<html>not found</html>")
    with pytest.raises(MediaError) as refusal:
        reader(store, decoder, server).read(owner, [MediaPart(type="image", url=URL)])
    assert refusal.value.code == INVALID
    assert names(store) == ("-",)
    assert not store.client.exists(keys.MEDIA_DUE)


def test_a_job_has_a_limit_for_all_its_pictures_of_which_equal_ones_count_once(
    store: JobStore, decoder: MediaDecoder
) -> None:
    owner = claimed(store, 4)
    urls = (URL, URL, OTHER_URL, "https://pictures.example/c.png")
    parts = [MediaPart(type="image", url=url) for url in urls]
    server = ChangingServer(png("red"), png("blue"), png("green"))
    with pytest.raises(MediaError, match="BATCHMILL_MEDIA_MAX_JOB_BYTES") as refusal:
        reader(store, decoder, server).read(owner, parts)
    assert refusal.value.code == TOO_LARGE
    assert len(server.urls) == 3
