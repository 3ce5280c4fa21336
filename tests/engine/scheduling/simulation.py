"""A scheduler driven by a model whose tokens depend on its paged memory alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from batchmill.engine.drafts.drafter import Drafter
from batchmill.engine.offload.copy_rule import CopyRule
from batchmill.engine.offload.host_index import HostIndex
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.scheduling.speculation import Speculation, verify_drafts

VOCAB_SIZE = 7


def next_token(history: list[int]) -> int:
    return zlib.crc32(bytes(history)) % VOCAB_SIZE


def generate_alone(prompt: list[int], max_tokens: int) -> list[int]:
    """Return the tokens that a request must generate, whatever else is scheduled."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class PagedMemory:
    """A model whose next token depends on all tokens that it finds through the block table.

    So a wrong block table, a block that is shared too early or freed too soon, and a chunk that
    starts at the wrong position all change the output.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.token_by_slot: dict[int, int] = {}
        # The last token sampled for each request, which the host need not know yet.
        self.last_tokens: dict[Request, int] = {}

    def slot(self, request: Request, position: int) -> int:
        block_id = request.block_ids[position // self.pool.block_size]
        return block_id * self.pool.block_size + position % self.pool.block_size

    def compute(self, batch: ScheduledBatch) -> list[int]:
        """Write the batch's tokens; return one sampled token per row."""
        written = set()
        for item in batch.scheduled:
            start, stop = item.num_computed_tokens, item.num_computed_tokens + item.num_new_tokens
            tokens = [*item.request.token_ids_slice(start, stop), *item.draft_token_ids]
            if item.request in batch.decodes:
                tokens = [self.last_tokens[item.request]]
            for position, token in zip(range(start, stop), tokens, strict=True):
                slot = self.slot(item.request, position)
                assert slot not in written, "two requests write to one slot"
                written.add(slot)
                self.token_by_slot[slot] = token
        return [
            next_token([self.token_by_slot[self.slot(item.request, i)] for i in range(seen)])
            for item in batch.scheduled
            for stop in [item.num_computed_tokens + item.num_new_tokens]
            for seen in range(stop + 1 - item.num_sampled_tokens, stop + 1)
        ]


@dataclass
class FlawedLookup:
    """Proposes the request's own tokens, except every seventh of its sequence."""

    prompt: list[int]
    output: list[int]

    def propose(self, output_token_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        start = len(output_token_ids)
        return tuple(
            (token + 1) % VOCAB_SIZE if (len(self.prompt) + index) % 7 == 0 else token
            for index, token in enumerate(self.output[start : start + max_tokens], start=start)
        )


@dataclass
class SchedulerSimulation:
    """A scheduler with the memory that it schedules for; checks its invariants after every step."""

    num_blocks: int = 16
    block_size: int = 4
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 8
    enable_prefix_caching: bool = True
    #: Blocks that are kept on the host when they are evicted.
    num_host_blocks: int = 0
    ageing_s: float = 1e6
    #: Steps that stay in flight while the next one is scheduled.
    num_steps_ahead: int = 0
    #: A request finishes with this token; None finishes none.
    stop_token: int | None = None
    #: Most draft tokens per request and step.
    num_speculative_tokens: int = 0
    admitted: list[str] = field(default_factory=list)
    out_of_memory: list[Request] = field(default_factory=list)
    num_accepted_tokens: int = 0
    salt_by_block: dict[int, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rule = CopyRule(block_bytes=1, block_size=self.block_size, bytes_per_s=1)
        self.host = HostIndex(self.num_host_blocks, rule) if self.num_host_blocks else None
        self.pool = BlockPool(
            self.num_blocks,
            self.block_size,
            enable_prefix_caching=self.enable_prefix_caching,
            evicted_blocks=self.host,
        )
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            ageing_s=self.ageing_s,
            speculation=Speculation(self.num_speculative_tokens, max_num_seqs=3),
        )
        self.memory = PagedMemory(self.pool)
        self.in_flight: list[tuple[ScheduledBatch, list[int]]] = []
        # The tokens of each slot of the host, and the salt under which they were written.
        self.stored: dict[int, tuple[list[int], str | None]] = {}

    def add(
        self,
        name: str,
        prompt: list[int],
        max_tokens: int,
        resumed: int = 0,
        *,
        priority: int = 0,
        waited_s: float = 0.0,
        cache_salt: str | None = None,
    ) -> Request:
        request = Request(
            name,
            prompt,
            SamplingParams(max_tokens=max_tokens),
            seed=0,
            max_num_tokens=len(prompt) + max_tokens,
            resumed_token_ids=generate_alone(prompt, max_tokens)[:resumed],
            cache_salt=cache_salt,
            drafter=Drafter(lookup=FlawedLookup(prompt, generate_alone(prompt, max_tokens))),
        )
        request.priority = priority
        request.metrics.arrived_at_s -= waited_s
        self.scheduler.add(request)
        return request

    def step(self, *, fails: bool = False, is_out_of_memory: bool = False) -> ScheduledBatch:
        batch = self.scheduler.schedule()
        self.scheduler.check_invariants()
        assert not (batch.preempted and self.in_flight), "preempted with a step in flight"
        is_launched = batch.num_seqs > 0 and not fails and not is_out_of_memory
        if batch.num_seqs:
            self.move_blocks()
            self.check_batch(batch)
            tokens = self.memory.compute(batch)
        if batch.num_seqs and is_out_of_memory:
            _, hopeless = self.scheduler.shrink(batch)
            if hopeless is not None:
                self.out_of_memory.append(hopeless)
                self.scheduler.finish(hopeless)
        elif is_launched:
            self.scheduler.mark_launched(batch)
            self.memory.last_tokens |= zip(batch.request_of_each_row, tokens, strict=True)
            self.in_flight.append((batch, tokens))
        ahead = self.num_steps_ahead
        while len(self.in_flight) > (ahead if is_launched and self.scheduler.has_requests else 0):
            self.collect()
        self.scheduler.check_invariants()
        return batch

    def move_blocks(self) -> None:
        """Do the copies that are planned, as an engine does before it launches a step."""
        if self.host is None:
            return
        self.host.check_invariants()
        size, tokens = self.block_size, self.memory.token_by_slot
        stores, restores = self.host.planned
        for block_id, slot in stores:
            content = [tokens[block_id * size + offset] for offset in range(size)]
            self.stored[slot] = content, self.salt_by_block[block_id]
        for block_id, slot in restores:
            content, self.salt_by_block[block_id] = self.stored[slot]
            tokens |= {block_id * size + offset: each for offset, each in enumerate(content)}
        self.host.note_copied()

    def collect(self) -> None:
        """Collect the oldest step in flight, and finish the requests that it ends."""
        batch, sampled = self.in_flight.pop(0)
        token_ids, drafts = verify_drafts(batch, sampled)
        num_new = {each.item.request: len(each.token_ids) for each in drafts}
        self.num_accepted_tokens += sum(each.num_accepted for each in drafts)
        discarded = self.scheduler.update(batch, token_ids, drafts)
        for request in batch.sampled_requests:
            if request in discarded:
                continue
            output = request.output_token_ids
            if request in num_new:
                self.memory.last_tokens[request] = output[-1]
            for end in range(len(output) - num_new.get(request, 1) + 1, len(output) + 1):
                is_last = len(request.prompt_token_ids) + end == request.max_num_tokens
                if is_last or output[end - 1] == self.stop_token:
                    del output[end:]  # tokens past the end are never reported
                    self.scheduler.finish(request)
                    break

    def check_batch(self, batch: ScheduledBatch) -> None:
        self.scheduler.check_invariants()
        assert batch.num_tokens <= self.max_num_batched_tokens
        assert 0 < len(self.scheduler.running) <= self.max_num_seqs
        assert all(item.num_new_tokens > 0 for item in batch.scheduled)
        scheduled = [item.request for item in batch.scheduled]
        assert not set(scheduled) & set(batch.preempted), "preempted and admitted in one step"
        assert len(scheduled) == len(set(scheduled))
        for item in batch.scheduled:
            name = item.request.request_id
            if name not in self.admitted:
                self.admitted.append(name)
        self.check_salts(batch)

    def check_salts(self, batch: ScheduledBatch) -> None:
        """Check that no request reads a block that was written under another salt."""
        for item in batch.scheduled:
            start, stop = item.num_computed_tokens, item.num_computed_tokens + item.num_new_tokens
            for position in range(start, stop):
                block_id = item.request.block_ids[position // self.block_size]
                self.salt_by_block[block_id] = item.request.cache_salt
        for item in batch.scheduled:
            num_read = self.pool.blocks_for(item.num_computed_tokens)
            for block_id in item.request.block_ids[:num_read]:
                assert self.salt_by_block[block_id] == item.request.cache_salt

    def run(self, max_steps: int = 2_000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_requests:
                assert self.pool.num_free_blocks == self.num_blocks
                return
            self.step()
        pytest.fail(f"unfinished after {max_steps} steps")
