"""Puts together what prepares the pictures and sounds of a worker's jobs."""

from __future__ import annotations

from batchmill.engine.contract.media import Audio
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.media.decoder import DecodeLimits, MediaDecoder
from batchmill.worker.media.fetcher import MediaFetcher
from batchmill.worker.media.reader import MediaReader
from batchmill.worker.metrics.worker_meter import JobMeter
from batchmill.worker.settings import WorkerSettings

from .media_threads import MediaThreads


def media_threads(
    settings: WorkerSettings, store: JobStore, link: EngineLink, meter: JobMeter
) -> MediaThreads:
    """Return what prepares media, as the settings of a worker say; nothing is started yet."""
    limits = DecodeLimits(
        max_pixels=settings.media_max_pixels,
        max_audio_s=settings.media_max_audio_s,
        timeout_s=settings.media_decode_timeout_s,
        memory_bytes=settings.media_decode_memory_bytes,
    )
    reader = MediaReader(
        store,
        MediaDecoder(limits, num_processes=settings.media_processes),
        MediaFetcher(
            settings.media_policy,
            timeout_s=settings.media_fetch_timeout_s,
            max_bytes=settings.max_media_bytes,
        ),
        ttl_s=settings.media_ttl_s,
        max_memory_percent=settings.max_memory_percent,
        max_job_bytes=settings.media_max_job_bytes,
        read_rate_hz=lambda: getattr(link.ready, "sample_rate_hz", None),
        note=lambda medium, time_s: meter.note_media(
            medium.kind,
            duration_s=medium.duration_s if isinstance(medium, Audio) else 0.0,
            decode_time_s=time_s,
        ),
    )
    return MediaThreads(
        reader, settings.served_name, read_kinds=lambda: getattr(link.ready, "media", None)
    )
