"""The step pipeline: launches a scheduled batch in one call, collects its tokens in another."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.model import Model
from batchmill.engine.models.score_head import ScoreHead
from batchmill.engine.pooling.pooler import PooledStep, Pooler
from batchmill.engine.sampling.sampled_tokens import SampledTokens
from batchmill.engine.sampling.sampler import Sampler
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, StepKind, VerifiedDrafts
from batchmill.engine.scheduling.speculation import verify_drafts
from batchmill.engine.step.adapter_tiles import AdapterShape
from batchmill.engine.step.feature_rows import FeatureSource
from batchmill.engine.step.request_rows import RequestRows
from batchmill.engine.step.step_inputs import StepInputBuilder, StepInputs

from .decode_graphs import DecodeGraphs, ReplayedStep
from .graph_recorder import recorder_for
from .padded_graphs import PaddedGraphs
from .warm_up import warm_up_kernels


@dataclass(frozen=True, slots=True)
class CollectedStep:
    """A step whose tokens are known."""

    batch: ScheduledBatch
    #: One for each of `batch.sampled_requests`; see `SampledTokens.collect`.
    token_ids: list[int | None]
    #: The outcome of the batch's draft tokens.
    drafts: list[VerifiedDrafts]
    #: How it was computed.
    kind: StepKind
    #: Seconds it took, without the time in which the step before it was still running.
    time_s: float


@dataclass(slots=True)
class _LaunchedStep:
    batch: ScheduledBatch
    kind: StepKind
    launched_at_s: float
    #: The batch as the sampler sees it, and what it samples from.
    sampled_batch: ScheduledBatch
    logits: Tensor | None = None
    replayed: ReplayedStep | None = None
    pooled: PooledStep | None = None
    #: None while sampling waits for the tokens of the step before.
    tokens: SampledTokens | None = None


class StepPipeline:
    """Owns the buffers that a step needs, and the steps in flight.

    `launch` returns when the work is queued on the device; on a CPU, when it is done. `collect`
    waits for the tokens of the oldest step. A step may be launched before the previous one is
    collected: it reads the tokens sampled there on the device. If the controls of any of its rows
    follow the tokens (a structure, penalties), only its logits are computed meanwhile: `sample`
    queues the rest once the step before is collected.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        *,
        max_num_seqs: int,
        max_model_len: int,
        decode_graphs: bool = False,
        score_head: ScoreHead | None = None,
        feature_source: FeatureSource | None = None,
        adapter_shape: AdapterShape | None = None,
    ) -> None:
        """Allocate the buffers; on a GPU, compile every kernel that a step may launch.

        Args:
            model: Computes the steps.
            kv_cache: Holds keys and values between steps.
            max_num_seqs: Most requests of one step.
            max_model_len: Most tokens of one request.
            decode_graphs: Whether to record steps now, and replay them later.
            score_head: The model's classification head, for pooled requests.
            feature_source: Has the features of media; None if the model takes none.
            adapter_shape: Of LoRA adapters; None if no request has one.

        Raises:
            EngineError: the steps cannot be recorded.
        """
        self._rows = RequestRows(max_num_seqs, model.device)
        self._builder = StepInputBuilder(
            self._rows,
            block_size=kv_cache.block_size,
            max_num_blocks=-(-max_model_len // kv_cache.block_size),
            device=model.device,
            feature_source=feature_source,
            uses_grids=model.config.uses_grids,
            splits_drafts=model.device.type != "cpu",
        )
        self._runner = ModelRunner(model, kv_cache, model.device)
        self._sampler = Sampler(model.config.vocab_size, self._rows)
        self._pooler = Pooler(score_head)
        self._graphs: DecodeGraphs | None = None
        self._padded: PaddedGraphs | None = None
        if model.device.type != "cpu":
            warm_up_kernels(model, kv_cache)
        if decode_graphs:
            self._record(model, kv_cache, max_model_len, adapter_shape)
        self._in_flight: deque[_LaunchedStep] = deque()
        self._collected_at_s = 0.0

    def _record(
        self,
        model: Model,
        kv_cache: KVCache,
        max_model_len: int,
        adapter_shape: AdapterShape | None,
    ) -> None:
        """Record steps; the largest first, so that the others fit into their memory."""
        recorder = recorder_for(model.device)  # one, so that all graphs share their memory
        self._graphs = DecodeGraphs(
            model,
            kv_cache,
            self._rows,
            self._builder,
            max_model_len=max_model_len,
            recorder=recorder,
            adapter_shape=adapter_shape,
        )
        if not model.config.uses_grids:
            self._padded = PaddedGraphs(
                model,
                kv_cache,
                self._graphs.logits,
                max_model_len=max_model_len,
                recorder=recorder,
                adapter_shape=adapter_shape,
            )
            self._padded.record_all()
        self._graphs.record_all()

    @property
    def num_in_flight(self) -> int:
        """Steps launched and not collected."""
        return len(self._in_flight)

    def launch(self, batch: ScheduledBatch) -> None:
        """Queue a step on the device.

        Raises:
            Exception: whatever the model or the device raised; the step is then not in flight.
        """
        sampled = batch.without_pooled_samples()
        step = _LaunchedStep(batch, _kind(batch), time.perf_counter(), sampled)
        graphs = self._graphs if self._graphs and self._graphs.can_replay(batch) else None
        if graphs is not None and graphs.can_sample(batch):
            step.kind, step.tokens = StepKind.GRAPH, graphs.launch(batch)
        elif graphs is not None and (special := graphs.special_step(batch)) is not None:
            step.kind, step.tokens = StepKind.GRAPH, graphs.launch(batch, special)
        else:
            waits = bool(self._in_flight) and self._follows_tokens(sampled)
            if not waits:
                self._sampler.prepare(sampled)
            self._compute(step, graphs)
            if not waits:
                self._sample(step)
        self._in_flight.append(step)

    def sample(self) -> None:
        """Queue the sampling of the last step, if it waited for tokens that are known now.

        Raises:
            Exception: whatever the device raised; the step is still in flight, see `take_back`.
        """
        if self.num_in_flight == 1 and self._in_flight[0].tokens is None:
            self._sample(self._in_flight[0])

    def take_back(self) -> ScheduledBatch:
        """Take the last step, which could not be sampled, out of flight, and return its batch."""
        step = self._in_flight.pop()
        assert step.tokens is None, "a sampled step is collected"
        return step.batch

    def collect(self) -> CollectedStep:
        """Wait for the oldest step in flight, and return its tokens."""
        step = self._in_flight[0]
        assert step.tokens is not None, "a step is sampled before it is collected"
        token_ids = step.tokens.collect(step.batch.discarded)
        if step.pooled is not None:
            token_ids += step.pooled.collect()  # pooled requests are the last of the batch
        self._in_flight.popleft()
        drafts: list[VerifiedDrafts] = []
        if step.batch.has_drafts:
            token_ids, drafts = self._verify_drafts(step.batch, token_ids)
        started_at_s = max(step.launched_at_s, self._collected_at_s)
        self._collected_at_s = time.perf_counter()
        time_s = self._collected_at_s - started_at_s
        return CollectedStep(step.batch, token_ids, drafts, step.kind, time_s)

    def _verify_drafts(
        self, batch: ScheduledBatch, sampled: list[int | None]
    ) -> tuple[list[int | None], list[VerifiedDrafts]]:
        """Verify the drafts, and let the next step decode from the last accepted token."""
        token_ids, drafts = verify_drafts(batch, sampled)
        for each in drafts:
            if each.token_ids:
                self._rows.put_last_token(each.item.request, each.token_ids[-1])
        return token_ids, drafts

    def _follows_tokens(self, batch: ScheduledBatch) -> bool:
        return bool(self._rows.follows_tokens[self._rows.sampling_rows_of(batch)].any())

    def _compute(self, step: _LaunchedStep, graphs: DecodeGraphs | None) -> None:
        """Compute the logits of a step: replay it if there are graphs, or launch its kernels."""
        if graphs is not None:
            step.replayed = graphs.compute(step.batch)
            step.logits, step.kind = step.replayed.logits, StepKind.GRAPH
            return
        if self._graphs is not None:
            self._graphs.unload()
        inputs = self._builder.build(step.sampled_batch)
        if self._padded is not None and self._padded.can_replay(inputs):
            step.logits, step.kind = self._padded.compute(inputs), StepKind.PADDED
            return
        step.logits, states = self._runner.compute(inputs)
        step.pooled = self._pooler.launch(states, step.batch)

    def _sample(self, step: _LaunchedStep) -> None:
        assert step.logits is not None, "a step is computed before it is sampled"
        step.tokens = self._sampler.sample(step.logits, step.sampled_batch, step.replayed)


def _kind(batch: ScheduledBatch) -> StepKind:
    """Return the kind of a step that is not replayed."""
    if not batch.chunks:
        return StepKind.DECODE
    is_prefill = not all(item.draft_token_ids for item in batch.chunks)
    return StepKind.PREFILL if is_prefill else StepKind.SPECULATION


class ModelRunner:
    """Computes a step's logits from its inputs; owns the buffer of the logits."""

    def __init__(self, model: Model, kv_cache: KVCache, device: torch.device | str) -> None:
        """Bind a model to its cache.

        Args:
            model: Computes the steps.
            kv_cache: Holds the keys and values between steps.
            device: Device of both.
        """
        self._model = model
        self._kv_cache = kv_cache
        self._logits = torch.empty(0, model.config.vocab_size, dtype=torch.float32, device=device)

    def compute_logits(self, inputs: StepInputs) -> Tensor:
        """Compute one step without pooled requests, and return its logits as `compute` does."""
        return self.compute(inputs)[0]

    def compute(self, inputs: StepInputs) -> tuple[Tensor, Tensor | None]:
        """Compute one step.

        Returns:
            Logits, [num_logits, vocab_size] float32: the caller may change them, and the next
            call overwrites them. And the final states of `Model.forward`.
        """
        num_samples = inputs.num_logits
        if num_samples > len(self._logits):
            # Allocated outside inference mode, so that the sampler may change it in place. Kept,
            # because fresh memory of this size costs a page fault for every 4 KiB.
            self._logits = torch.empty(
                num_samples,
                self._logits.shape[1],
                dtype=torch.float32,
                device=self._logits.device,
            )
        logits = self._logits[:num_samples]
        with torch.inference_mode():
            states = self._model.forward(inputs, self._kv_cache, logits)
        return logits, states
