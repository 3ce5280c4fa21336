"""The metrics of one worker: what its parts counted, and what they hold at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.engine_host.messages import (
    DraftCounts,
    Finished,
    MediaCounts,
    OffloadCounts,
    Refused,
    StepReport,
)
from batchmill.worker.metrics import worker_series as names
from batchmill.worker.metrics.gpu import gpu_source
from batchmill.worker.metrics.probes import Probe
from batchmill.worker.metrics.series import Reading, Source, gauge, number
from batchmill.worker.metrics.worker_meter import EngineMeter, JobMeter
from batchmill.worker.settings import WorkerSettings

from .active_job import ActiveJob
from .active_jobs import ActiveJobs
from .heartbeat import Heartbeat
from .throughput import BusySpeed

_NO_DRAFTS = DraftCounts(0, 0)
#: A longer time between two reports was idle, or a stall: no step took it.
_LONGEST_STEP_S = 60.0


class WorkerMetrics:
    """Counts events of the engine and of jobs. Nothing is opened before `serve`."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Begin at 0."""
        self._settings = settings
        self.engine = EngineMeter(settings.engine_config.max_num_seqs)
        self.jobs = JobMeter()
        self.speed = BusySpeed()
        self._drafts = _NO_DRAFTS
        self._media = MediaCounts()
        self._offload = OffloadCounts()
        # When the engine last reported, if it had requests left; None otherwise.
        self._busy_since: float | None = None
        self._close: Callable[[], None] = lambda: None

    # In the thread of the engine link.

    def note_report(self, report: StepReport) -> None:
        """Count the steps of a report."""
        steps, meter = report.work.steps, self.engine
        for num_seqs, num_tokens, time_s in steps:
            meter.note_step(num_seqs, num_tokens, time_s)
        if steps:
            since = self._busy_since
            time_s = sum(step[2] for step in steps)
            if since is not None and report.at_s - since < _LONGEST_STEP_S:
                time_s = max(time_s, report.at_s - since)  # with what lies between two steps
            num_seqs = max(step[0] for step in steps)
            self.speed.note_step(num_seqs, sum(step[1] for step in steps), time_s)
        self._busy_since = report.at_s if report.load.num_running else None
        meter.preemptions.add(report.work.num_preemptions)
        if report.drafts is not None:
            old, self._drafts = self._drafts, report.drafts
            for source, (num_drafts, num_accepted) in self._drafts.by_source.items():
                drafts_before, accepted_before = old.by_source.get(source, (0, 0))
                meter.draft_tokens.add(num_drafts - drafts_before, (source,))
                meter.accepted_tokens.add(num_accepted - accepted_before, (source,))
        if report.media is not None:
            self._note_media(report.media)
        if report.offload is not None:
            self._note_offload(report.offload)

    def _note_media(self, counts: MediaCounts) -> None:
        meter, old, self._media = self.engine, self._media, counts
        num_hits = counts.num_found - old.num_found
        meter.media_hits.add(num_hits)
        meter.media_queries.add(num_hits + counts.num_encoded - old.num_encoded)
        meter.tower_runs.add(counts.num_runs - old.num_runs)
        meter.tower_time.add(counts.run_time_s - old.run_time_s)

    def _note_offload(self, counts: OffloadCounts) -> None:
        meter, old, self._offload = self.engine, self._offload, counts
        meter.stored_blocks.add(counts.num_stored - old.num_stored)
        meter.restored_blocks.add(counts.num_restored - old.num_restored)
        meter.evicted_host_blocks.add(counts.num_evicted - old.num_evicted)
        meter.not_stored_blocks.add(counts.num_not_stored - old.num_not_stored)

    def note_tokens(self, received: Iterable[tuple[ActiveJob, int]], at_s: float) -> None:
        """Count the new tokens of a report: each job, and how many it received."""
        # Most jobs get as many tokens at the same times.
        num_equal: Counter[tuple[float, int]] = Counter()
        for job, num_tokens in received:
            last, job.last_output_at = job.last_output_at, at_s
            if not num_tokens:
                continue
            if last is None:
                self.engine.note_first_tokens(num_tokens, max(0.0, at_s - job.claimed_at))
            else:
                num_equal[last, num_tokens] += 1
        for (last, num_tokens), num_jobs in num_equal.items():
            self.engine.note_tokens(num_tokens, at_s - last, num_jobs)

    def note_finished(self, job: ActiveJob, finished: Finished) -> None:
        """Count the end of a job's request."""
        meter = self.engine
        meter.note_times(finished.queued_s, finished.first_token_s, finished.finished_s)
        num_resumed = len(job.claim.token_ids) if job.claim.attempts > 1 else None
        meter.note_prompt(finished.num_prompt_tokens, finished.num_cached_tokens, num_resumed)
        meter.note_end(finished.finish_reason, finished.error_code, finished.num_output_tokens)
        if finished.inter_token_s is not None:
            meter.per_output_token.observe(finished.inter_token_s)

    def note_refused(self, refused: Refused) -> None:
        """Count a request that the engine refused."""
        self.engine.rejections.add(1, (refused.code,))

    def note_engine_gone(self, cause: str | None) -> None:
        """Count the end of an engine process; None if it ended in an orderly way."""
        self._drafts = _NO_DRAFTS
        self._media = MediaCounts()
        self._offload = OffloadCounts()
        self._busy_since = None
        if cause is not None:
            self.engine.engine_restarts.add(1, (cause,))

    # At a scrape.

    def serve(self, link: EngineLink, jobs: ActiveJobs, heartbeat: Heartbeat, probe: Probe) -> None:
        """Open the port of the settings, if there is one.

        Raises:
            MetricsFailed: its address is in use.
        """
        settings = self._settings
        if settings.metrics_port is None:
            return
        from batchmill.worker.metrics.server import MetricsServer

        gpu = gpu_source(settings.engine_config.device)
        sources: list[Source] = [
            self.engine.read,
            self.jobs.read,
            lambda: self._gauges(link, jobs, heartbeat),
            *([] if gpu is None else [gpu]),
        ]
        server = MetricsServer(
            settings.metrics_host,
            settings.metrics_port,
            service="worker",
            sources=[lambda: self._labelled(sources)],
            probe=probe,
        )
        server.start()
        self._close = server.close

    def close(self) -> None:
        """Close the port, if one is open."""
        self._close()

    def _labelled(self, sources: Iterable[Source]) -> Iterator[Reading]:
        """Yield the readings with the served model as their first label, as vLLM has it."""
        model = self._settings.served_name
        for source in sources:
            for reading in source():
                series = reading.series
                yield Reading(
                    replace(series, labels=("model_name", *series.labels)),
                    [((model, *labels), value) for labels, value in reading.samples],
                )

    def _gauges(
        self, link: EngineLink, jobs: ActiveJobs, heartbeat: Heartbeat
    ) -> Iterator[Reading]:
        load, ready = link.load, link.ready
        yield from number(names.RUNNING, load.num_running)
        yield from number(names.WAITING, load.num_waiting)
        yield gauge(
            names.WAITING_BY_REASON,
            (("capacity",), float(load.num_waiting)),
            (("isolation",), float(jobs.num_pending)),
        )
        if ready is not None:
            yield from number(names.KV_CACHE_USAGE, 1 - load.num_free_blocks / ready.num_blocks)
            labels = (str(ready.num_blocks), str(ready.block_size), ready.dtype or "")
            yield gauge(names.CACHE_CONFIG, (labels, 1.0))
            yield from number(names.NUM_RANKS, ready.num_ranks)
        yield from number(names.MAX_SEQS, self._settings.engine_config.max_num_seqs)
        yield from number(names.ACTIVE_JOBS, len(jobs))
        yield from number(names.UNSAVED_TOKENS, sum(job.num_unsaved for job in jobs.snapshot()))
        if link.media is not None:
            yield from number(names.MEDIA_CACHE_BYTES, link.media.num_bytes)
        if link.offload is not None:
            num_bytes = link.offload.num_held * link.offload.block_bytes
            yield from number(names.KV_HOST_BYTES, num_bytes)
        yield from number(names.ENGINE_READY, ready is not None)
        yield from number(names.ENGINE_STALLED, link.stalled_s)
        yield from number(names.BROKER_SILENT, heartbeat.silent_s)
        yield from number(names.BUSY_SPEED, self.speed.tokens_per_s)
