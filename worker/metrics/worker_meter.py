"""What a worker counts, each event where it is seen."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from . import worker_series as names
from .series import Counter, Histogram, Reading


class EngineMeter:
    """Counts of the engine's requests, tokens and steps. One thread calls it: the engine link's."""

    def __init__(self, max_num_seqs: int) -> None:
        """Begin at 0.

        Args:
            max_num_seqs: requests that the engine computes together at most.
        """
        self._max_num_seqs = max_num_seqs
        self.generation_tokens = Counter(names.GENERATION_TOKENS)
        self.prompt_tokens = Counter(names.PROMPT_TOKENS)
        self.prompt_tokens_cached = Counter(names.PROMPT_TOKENS_CACHED)
        self.prefix_queries = Counter(names.PREFIX_QUERIES)
        self.prefix_hits = Counter(names.PREFIX_HITS)
        self.preemptions = Counter(names.PREEMPTIONS)
        self.request_success = Counter(names.REQUEST_SUCCESS)
        self.corrupted = Counter(names.CORRUPTED)
        self.rejections = Counter(names.REJECTIONS)
        self.draft_tokens = Counter(names.DRAFT_TOKENS)
        self.accepted_tokens = Counter(names.ACCEPTED_TOKENS)
        self.media_queries = Counter(names.MEDIA_QUERIES)
        self.media_hits = Counter(names.MEDIA_HITS)
        self.tower_runs = Counter(names.TOWER_RUNS)
        self.tower_time = Counter(names.TOWER_TIME)
        self.stored_blocks = Counter(names.KV_STORED)
        self.restored_blocks = Counter(names.KV_RESTORED)
        self.evicted_host_blocks = Counter(names.KV_HOST_EVICTED)
        self.not_stored_blocks = Counter(names.KV_NOT_STORED)
        self.steps = Counter(names.STEPS)
        self.recomputed_tokens = Counter(names.RECOMPUTED_TOKENS)
        self.engine_restarts = Counter(names.ENGINE_RESTARTS)
        self.ttft = Histogram(names.TTFT)
        self.inter_token = Histogram(names.INTER_TOKEN)
        self.per_output_token = Histogram(names.PER_OUTPUT_TOKEN)
        self.e2e = Histogram(names.E2E)
        self.queue_time = Histogram(names.QUEUE_TIME)
        self.prefill_time = Histogram(names.PREFILL_TIME)
        self.decode_time = Histogram(names.DECODE_TIME)
        self.inference_time = Histogram(names.INFERENCE_TIME)
        self.request_prompt = Histogram(names.REQUEST_PROMPT)
        self.request_generation = Histogram(names.REQUEST_GENERATION)
        self.step_tokens = Histogram(names.STEP_TOKENS)
        self.step_time = Histogram(names.STEP_TIME)
        self.occupancy = Histogram(names.OCCUPANCY)
        for cause in ("death", "stall"):
            self.engine_restarts.add(0, (cause,))
        for reason in ("stop", "length", "tool_calls", "abort"):
            self.request_success.add(0, (reason,))

    def note_step(self, num_seqs: int, num_tokens: int, time_s: float) -> None:
        """Count a step."""
        self.steps.add()
        self.step_tokens.observe(num_tokens)
        self.step_time.observe(time_s)
        self.occupancy.observe(num_seqs / self._max_num_seqs)

    def note_tokens(self, num_tokens: int, since_s: float, num_requests: int = 1) -> None:
        """Count tokens that requests got in one step, but for their first ones.

        Args:
            num_tokens: of the step, of each request.
            since_s: seconds since its tokens before, of each request.
            num_requests: that got as many tokens after as long.
        """
        self.generation_tokens.add(num_tokens * num_requests)
        self.inter_token.observe(since_s / num_tokens, num_tokens * num_requests)

    def note_first_tokens(self, num_tokens: int, since_s: float) -> None:
        """Count the first tokens of a request.

        Args:
            num_tokens: of the step.
            since_s: seconds since the job's claim.
        """
        self.generation_tokens.add(num_tokens)
        self.ttft.observe(since_s)
        if num_tokens > 1:
            self.inter_token.observe(0.0, num_tokens - 1)

    def note_times(
        self, queued_s: float | None, first_token_s: float | None, finished_s: float | None
    ) -> None:
        """Count the times of a request that ended, seconds since its arrival in the engine."""
        if queued_s is not None:
            self.queue_time.observe(queued_s)
        if finished_s is None:
            return
        self.e2e.observe(finished_s)
        if queued_s is not None:
            self.inference_time.observe(max(0.0, finished_s - queued_s))
        if first_token_s is not None:
            self.prefill_time.observe(max(0.0, first_token_s - (queued_s or 0.0)))
            self.decode_time.observe(max(0.0, finished_s - first_token_s))

    def note_prompt(self, num_tokens: int, num_cached_tokens: int, num_resumed: int | None) -> None:
        """Count the prompt of a request that ended.

        Args:
            num_tokens: of the prompt.
            num_cached_tokens: of these, those that the prefix cache had.
            num_resumed: output tokens of earlier attempts; None in a job's first attempt.
        """
        self.prompt_tokens.add(num_tokens)
        self.prompt_tokens_cached.add(num_cached_tokens)
        self.prefix_queries.add(num_tokens)
        self.prefix_hits.add(num_cached_tokens)
        self.request_prompt.observe(num_tokens)
        if num_resumed is not None:
            self.recomputed_tokens.add(num_tokens - num_cached_tokens + num_resumed)

    def note_end(self, finish_reason: str, error_code: str | None, num_output_tokens: int) -> None:
        """Count the end of a request."""
        if finish_reason != "error":
            self.request_success.add(1, (finish_reason,))
        elif error_code == "numerical_error":
            self.corrupted.add()
        self.request_generation.observe(num_output_tokens)

    def read(self) -> Iterable[Reading]:
        """Return all numbers. From any thread."""
        return [
            each.read() for each in vars(self).values() if isinstance(each, Counter | Histogram)
        ]


class JobMeter:
    """Counts of jobs and checkpoints.

    Each method is called by one thread only, except `note_params`, `note_objects` and
    `note_media`.
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self.claimed = Counter(names.JOBS_CLAIMED)
        self.processed = Counter(names.JOBS_PROCESSED)
        self.resumed_tokens = Counter(names.RESUMED_TOKENS)
        self.handed_over = Counter(names.JOBS_HANDED_OVER)
        self.taken_over = Counter(names.JOBS_TAKEN_OVER)
        self.sliced = Counter(names.JOBS_SLICED)
        self.fenced_writes = Counter(names.FENCED_WRITES)
        self.objects = Counter(names.OBJECTS)
        self.object_bytes = Counter(names.OBJECT_BYTES)
        self.media_decoded = Counter(names.MEDIA_DECODED)
        self.audio_time = Counter(names.AUDIO_TIME)
        self.decode_time = Counter(names.DECODE_TIME_OF_MEDIA)
        self._lock = threading.Lock()
        self.queue_wait = Histogram(names.QUEUE_WAIT)
        self.max_tokens = Histogram(names.PARAMS_MAX_TOKENS)
        self.n = Histogram(names.PARAMS_N)
        self.checkpoint_lag = Histogram(names.CHECKPOINT_LAG)
        for state in ("completed", "failed", "cancelled", "expired", "queued"):
            self.processed.add(0, (state, ""))

    def note_claim(
        self, *, waited_s: float | None, num_resumed_tokens: int, is_moved: bool = False
    ) -> None:
        """Count a claim.

        Args:
            waited_s: seconds since the job's submission; None if it was claimed before.
            num_resumed_tokens: output tokens of earlier attempts.
            is_moved: whether another worker has handed the job over.
        """
        self.claimed.add()
        self.taken_over.add(int(is_moved))
        self.resumed_tokens.add(num_resumed_tokens)
        if waited_s is not None:
            self.queue_wait.observe(max(0.0, waited_s))

    def note_params(self, max_tokens: int | None, n: int) -> None:
        """Count the controls of a claimed job."""
        with self._lock:
            if max_tokens is not None:
                self.max_tokens.observe(max_tokens)
            self.n.observe(n)

    def note_objects(
        self, action: str, *, num_done: int = 0, num_failed: int = 0, num_bytes: int = 0
    ) -> None:
        """Count objects that were read, written or deleted (`read`, `write`, `delete`)."""
        with self._lock:
            for result, number in (("done", num_done), ("failed", num_failed)):
                if number:
                    self.objects.add(number, (action, result))
            if num_bytes:
                self.object_bytes.add(num_bytes, (action,))

    def note_media(self, kind: str, *, duration_s: float, decode_time_s: float) -> None:
        """Count a picture or a sound that was decoded.

        Args:
            kind: `image` or `audio`.
            duration_s: of a sound; 0 for a picture.
            decode_time_s: that it took.
        """
        with self._lock:
            self.media_decoded.add(1, (kind,))
            self.decode_time.add(decode_time_s, (kind,))
            self.audio_time.add(duration_s)

    def note_settled(self, state: str | None, code: str | None) -> None:
        """Count a job that leaves the worker; its state is None if another claim holds it."""
        if state is None:
            self.fenced_writes.add()
        else:
            self.processed.add(1, (state, code or ""))

    def read(self) -> Iterable[Reading]:
        """Return all numbers. From any thread."""
        return [
            each.read() for each in vars(self).values() if isinstance(each, Counter | Histogram)
        ]
