"""What an engine has done so far, and what it is doing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .outputs import FinishReason, RequestOutput
from .schedule import ScheduledBatch
from .scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot. Counts are totals since the engine was made, unless they say now."""

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
    #: Tokens that went through the model, recomputed ones included.
    num_computed_tokens: int
    #: Output tokens sampled.
    num_generated_tokens: int
    #: Prompt tokens of finished requests.
    num_prompt_tokens: int
    #: Prompt tokens of finished requests that came from the prefix cache.
    num_cached_tokens: int
    #: Times that a request lost its blocks to an earlier arrival.
    num_preemptions: int
    #: Requests that ended, by reason; each sample of a request counts, here and above.
    num_finished: dict[FinishReason, int]


@dataclass(slots=True)
class StatsCounter:
    """The running totals behind `EngineStats`."""

    num_steps: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_finished: Counter[FinishReason] = field(default_factory=Counter)

    def count_step(self, batch: ScheduledBatch) -> None:
        """Add a step that was run."""
        self.num_steps += 1
        self.num_computed_tokens += batch.num_tokens
        self.num_preemptions += len(batch.preempted)

    def count_output(self, output: RequestOutput) -> None:
        """Add what an output reports."""
        self.num_generated_tokens += len(output.new_token_ids)
        if output.finish_reason is not None:
            self.num_prompt_tokens += output.num_prompt_tokens
            self.num_cached_tokens += output.metrics.num_cached_tokens
            self.num_finished[output.finish_reason] += 1

    def snapshot(self, scheduler: Scheduler) -> EngineStats:
        """The totals, and how the scheduler and its pool stand."""
        pool = scheduler.block_pool
        return EngineStats(
            num_waiting=len(scheduler.waiting),
            num_running=len(scheduler.running),
            num_blocks=pool.num_blocks,
            num_free_blocks=pool.num_free_blocks,
            num_cached_blocks=pool.num_cached_blocks,
            num_steps=self.num_steps,
            num_computed_tokens=self.num_computed_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_preemptions=self.num_preemptions,
            num_finished=dict(self.num_finished),
        )
