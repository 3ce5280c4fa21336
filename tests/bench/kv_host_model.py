"""Predicts what KV in host memory gains on a GPU: `python tests/bench/kv_host_model.py`.

The real scheduler, block pool and host index run against a clock. A step takes the time of its
matrices, LM head and attention at the rates of an H200 (`RATES`); a copy takes its bytes over the
bus. Copies for a step run beside the step before it, as they do on a stream of their own, so the
clock advances by the longer one of the two. Nothing is computed and no bytes are moved: these are
predictions of a model, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from batchmill.engine.offload.copy_rule import COPY_OVERHEAD_S, CopyRule
from batchmill.engine.offload.host_index import HostIndex
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.block_pool import BlockPool
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.engine.scheduling.scheduler import Scheduler

BLOCK_SIZE = 64


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches, not its data sheet: bytes and operations per second."""

    memory: float = 3.8e12
    matrices: float = 600e12
    attention: float = 450e12
    bus: float = 25e9


@dataclass(frozen=True)
class Shape:
    """Sizes of a dense model in bf16."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 151936

    @property
    def weights(self) -> int:
        """Numbers in all layers' matrices."""
        heads = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * self.hidden * (heads + 3 * self.inner)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


#: Qwen3's configurations.
SHAPES = (
    Shape("Qwen3-0.6B", 28, 1024, 3072, 16, 8),
    Shape("Qwen3-8B", 36, 4096, 12288, 32, 8),
    Shape("Qwen3-32B", 64, 5120, 25600, 64, 8),
)


def step_s(shape: Shape, batch: ScheduledBatch, rates: Rates) -> float:
    """Return how long a step takes."""
    num_rows = len(batch.sampled_requests)
    head = shape.hidden * shape.vocab
    total = max(
        2 * shape.weights / rates.memory, 2 * shape.weights * batch.num_tokens / rates.matrices
    )
    total += max(2 * head / rates.memory, 2 * head * num_rows / rates.matrices)
    read, operations = 0, 0.0
    for item in batch.scheduled:
        context = item.num_computed_tokens + item.num_new_tokens
        read += context * shape.token_bytes
        pairs = item.num_new_tokens * (item.num_computed_tokens + item.num_new_tokens / 2)
        operations += 4 * shape.layers * shape.heads * shape.head_dim * pairs
    return total + max(read / rates.memory, operations / rates.attention) + 0.3e-3


@dataclass
class Clock:
    """Runs requests on the real scheduler, in modelled time."""

    shape: Shape
    num_device_tokens: int
    num_host_tokens: int
    rates: Rates = field(default_factory=Rates)
    time_s: float = 0.0
    copy_s: float = 0.0
    num_tokens: int = 0
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        block_bytes = BLOCK_SIZE * self.shape.token_bytes
        self.rule = CopyRule(
            block_bytes=block_bytes, block_size=BLOCK_SIZE, bytes_per_s=self.rates.bus
        )
        self.block_s = block_bytes / self.rates.bus
        num_slots = self.num_host_tokens // BLOCK_SIZE
        self.host = HostIndex(num_slots, self.rule) if num_slots else None
        self.scheduler = Scheduler(
            BlockPool(self.num_device_tokens // BLOCK_SIZE, BLOCK_SIZE, evicted_blocks=self.host),
            max_num_seqs=256,
            max_num_batched_tokens=8192,
        )
        self.ids = count()

    def run(self, prompts: list[list[int]], num_output: int, num_together: int) -> float:
        """Compute all prompts, some at a time; return output tokens per second."""
        waiting, before_s = list(prompts), 0.0
        params = SamplingParams(max_tokens=num_output, ignore_eos=True)
        while waiting or self.scheduler.has_requests:
            while (
                waiting and len(self.scheduler.running) + len(self.scheduler.waiting) < num_together
            ):
                prompt = waiting.pop(0)
                length = len(prompt) + num_output
                self.scheduler.add(
                    Request(f"{next(self.ids)}", prompt, params, seed=0, max_num_tokens=length)
                )
            batch = self.scheduler.schedule()
            self.num_preemptions += len(batch.preempted)
            copies_s = self._move()
            self.time_s += max(before_s, copies_s)
            before_s = self._compute(batch)
        self.time_s += before_s
        return len(prompts) * num_output / self.time_s

    def _move(self) -> float:
        if self.host is None:
            return 0.0
        stores, restores = self.host.planned
        num_blocks = len(stores) + len(restores)
        self.host.note_copied()
        copies_s = COPY_OVERHEAD_S + num_blocks * self.block_s if num_blocks else 0.0
        self.copy_s += copies_s
        return copies_s

    def _compute(self, batch: ScheduledBatch) -> float:
        taken_s = step_s(self.shape, batch, self.rates)
        self.num_tokens += batch.num_tokens
        if batch.chunks:
            self.rule.note_step(batch.num_tokens, taken_s)
        self.scheduler.mark_launched(batch)
        requests = batch.sampled_requests
        self.scheduler.update(batch, [7] * len(requests))
        for request in requests:
            if request.num_tokens == request.max_num_tokens:
                self.scheduler.finish(request)
        return taken_s


def prefixes() -> list[list[int]]:
    """Return prompts with 64 prefixes of 4,096 tokens, four times in the same order."""
    return [
        [which * 8192 + at for at in range(4096)] + [turn, which]
        for turn in range(4)
        for which in range(64)
    ]


def alone() -> list[list[int]]:
    """Return 256 prompts of 512 tokens that share nothing."""
    return [[which * 8192 + at for at in range(512)] for which in range(256)]


def main() -> None:
    """Print a line per model, load and speed of the bus."""
    for shape in SHAPES:
        for bus in (25e9, 50e9):
            for name, prompts, num_output, num_together in (
                ("prefixes", prefixes(), 64, 16),
                ("preemption", alone(), 1024, 256),
            ):
                found = []
                for num_host_tokens in (0, 1_048_576):
                    clock = Clock(shape, 131_072, num_host_tokens, Rates(bus=bus))
                    found.append((clock.run(prompts, num_output, num_together), clock))
                (off, without), (on, kept) = found
                counts = kept.host.counts if kept.host else None
                print(
                    f"{shape.name} bus {bus / 1e9:.0f} GB/s {name}: computed "
                    f"{without.num_tokens} -> {kept.num_tokens} tokens, preemptions "
                    f"{without.num_preemptions} -> {kept.num_preemptions}, {off:.0f} -> {on:.0f} "
                    f"tokens/s, ratio {on / off:.2f}; {counts}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
