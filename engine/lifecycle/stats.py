"""Statistics of an engine: running totals, and how full it is now."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from batchmill.engine.drafts.drafter import DraftSource
from batchmill.engine.request.outputs import FinishReason, RequestOutput
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, StepKind
from batchmill.engine.scheduling.scheduler import Scheduler

if TYPE_CHECKING:  # it imports torch
    from batchmill.engine.media.feature_cache import FeatureCache
    from batchmill.engine.offload.host_index import OffloadCounts

#: Steps are kept up to this many, about a minute.
NUM_RECENT_STEPS = 1024


class StepFacts(NamedTuple):
    """What one step computed."""

    num_seqs: int
    num_tokens: int
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot. Counts are totals since the engine was made, unless they say "now"."""

    #: Requests that wait now, preempted ones included.
    num_waiting: int
    #: Requests that are computed now.
    num_running: int
    #: Blocks of the KV cache.
    num_blocks: int
    #: Blocks that no request holds now.
    num_free_blocks: int
    #: Blocks that can be found by their content now.
    num_cached_blocks: int
    #: Steps run.
    num_steps: int
    #: Tokens that went through the model, recomputed ones and rejected drafts included.
    num_computed_tokens: int
    #: Output tokens sampled.
    num_generated_tokens: int
    #: Draft tokens computed; see `EngineConfig.num_speculative_tokens`.
    num_draft_tokens: int
    #: Accepted draft tokens, which are part of an output.
    num_accepted_tokens: int
    #: Prompt tokens of finished requests.
    num_prompt_tokens: int
    #: Prompt tokens of finished requests that came from the prefix cache.
    num_cached_tokens: int
    #: Times that a request lost its blocks to others.
    num_preemptions: int
    #: Steps that ran out of memory and were retried with fewer requests.
    num_out_of_memory: int
    #: Steps run, by kind.
    num_steps_by_kind: dict[StepKind, int]
    #: Requests in a step, mean over all steps; 0 before the first.
    mean_batch_size: float
    #: Median seconds of the last `NUM_RECENT_STEPS` steps; 0 before the first.
    step_time_p50_s: float
    #: 99th percentile of the same.
    step_time_p99_s: float
    #: Pictures and sounds whose features were computed, and those whose features were in memory.
    num_encoded_media: int
    num_found_media: int
    #: KV blocks in host memory now, those copied there and back, and those that it gave up.
    num_host_blocks: int
    num_stored_blocks: int
    num_restored_blocks: int
    num_evicted_host_blocks: int
    #: Finished requests, by reason. Each sample of a request counts as one, here and above.
    num_finished: dict[FinishReason, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentLoad:
    """How full an engine is now."""

    #: Requests that are computed.
    num_running: int
    #: Requests that wait, preempted ones included.
    num_waiting: int
    #: Blocks of the KV cache that no request holds.
    num_free_blocks: int

    @classmethod
    def of(cls, scheduler: Scheduler) -> CurrentLoad:
        """Read the load from a scheduler and its block pool."""
        return cls(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_free_blocks=scheduler.block_pool.num_free_blocks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """Draft tokens since the engine was made; see `EngineStats`."""

    num_draft_tokens: int
    num_accepted_tokens: int
    #: The same two numbers by source; without those of which there were no draft tokens.
    by_source: Mapping[DraftSource, tuple[int, int]]


@dataclass(slots=True)
class StatsCounter:
    """The running totals behind `EngineStats`."""

    num_steps: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_drafts_by_source: Counter[DraftSource] = field(default_factory=Counter)
    num_accepted_by_source: Counter[DraftSource] = field(default_factory=Counter)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_out_of_memory: int = 0
    num_scheduled: int = 0
    num_steps_by_kind: Counter[StepKind] = field(default_factory=Counter)
    recent_steps: deque[StepFacts] = field(default_factory=lambda: deque(maxlen=NUM_RECENT_STEPS))
    num_finished: Counter[FinishReason] = field(default_factory=Counter)

    def count_step(self, batch: ScheduledBatch, kind: StepKind, step_time_s: float) -> None:
        """Count a collected step."""
        self.num_steps += 1
        self.num_steps_by_kind[kind] += 1
        self.num_scheduled += batch.num_seqs
        self.recent_steps.append(StepFacts(batch.num_seqs, batch.num_tokens, step_time_s))
        self.num_computed_tokens += batch.num_tokens
        self.num_preemptions += len(batch.preempted)

    def count_out_of_memory(self, batch: ScheduledBatch, num_preempted: int) -> None:
        """Count a step that ran out of memory, and the requests preempted because of it."""
        self.num_out_of_memory += 1
        self.num_preemptions += len(batch.preempted) + num_preempted

    def count_finished(self, output: RequestOutput) -> None:
        """Count a finished request by its last output."""
        if output.finish_reason is not None:
            self.num_prompt_tokens += output.num_prompt_tokens
            self.num_cached_tokens += output.num_cached_tokens
            self.num_finished[output.finish_reason] += 1

    def steps_after(self, num_steps: int) -> list[StepFacts]:
        """Return the steps after the first `num_steps`, at most the last `NUM_RECENT_STEPS`."""
        num_new = min(self.num_steps - num_steps, len(self.recent_steps))
        return list(islice(self.recent_steps, len(self.recent_steps) - num_new, None))

    @property
    def drafts(self) -> DraftCounts:
        """Computed and accepted draft tokens."""
        accepted = self.num_accepted_by_source
        return DraftCounts(
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
            by_source={
                source: (count, accepted[source])
                for source, count in self.num_drafts_by_source.items()
            },
        )

    @property
    def num_draft_tokens(self) -> int:
        """Draft tokens computed."""
        return self.num_drafts_by_source.total()

    @property
    def num_accepted_tokens(self) -> int:
        """Draft tokens that are part of an output."""
        return self.num_accepted_by_source.total()

    def snapshot(
        self,
        scheduler: Scheduler,
        features: FeatureCache | None = None,
        offload: OffloadCounts | None = None,
    ) -> EngineStats:
        """Return the totals, with the current state of the scheduler and its block pool."""
        pool = scheduler.block_pool
        times = sorted(step.time_s for step in self.recent_steps)
        return EngineStats(
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free_blocks,
            num_cached_blocks=pool.num_cached_blocks,
            num_steps=self.num_steps,
            num_computed_tokens=self.num_computed_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_preemptions=self.num_preemptions,
            num_out_of_memory=self.num_out_of_memory,
            num_steps_by_kind=dict(self.num_steps_by_kind),
            mean_batch_size=self.num_scheduled / self.num_steps if self.num_steps else 0.0,
            step_time_p50_s=quantile(times, 0.5) or 0.0,
            step_time_p99_s=quantile(times, 0.99) or 0.0,
            num_encoded_media=0 if features is None else features.counts.num_encoded,
            num_found_media=0 if features is None else features.counts.num_found,
            num_host_blocks=0 if offload is None else offload.num_held,
            num_stored_blocks=0 if offload is None else offload.num_stored,
            num_restored_blocks=0 if offload is None else offload.num_restored,
            num_evicted_host_blocks=0 if offload is None else offload.num_evicted,
            num_finished=dict(self.num_finished),
        )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that a share of the values does not exceed; None without values."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
