"""The engine: requests in, outputs out, one step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from batchmill.engine.contract.media import Media
from batchmill.engine.contract.steering import SteeringSpec
from batchmill.engine.drafts.corpus import DraftCorpora
from batchmill.engine.lifecycle.failures import (
    NOT_FINITE,
    failure_without_token,
    out_of_memory_alone,
)
from batchmill.engine.lifecycle.intake import Prompt, RequestIntake, check_deadline
from batchmill.engine.lifecycle.named_versions import find_adapter, find_steering
from batchmill.engine.lifecycle.output_tracker import OutputTracker
from batchmill.engine.lifecycle.pooled_intake import (
    PooledIntake,
    PooledPrompt,
    PoolingSupport,
)
from batchmill.engine.lifecycle.stats import (
    CurrentLoad,
    DraftCounts,
    EngineStats,
    StatsCounter,
    StepFacts,
)
from batchmill.engine.lifecycle.unfinished_requests import UnfinishedRequests
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.media.feature_cache import FeatureCounts
from batchmill.engine.memory.device_memory import dtype_name, make_current
from batchmill.engine.models.model_length import check_max_model_len
from batchmill.engine.offload.host_index import OffloadCounts
from batchmill.engine.request.outputs import (
    RequestFailure,
    RequestOutput,
    ResumedTokens,
)
from batchmill.engine.request.pooling import PoolingParams
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, StepKind
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.tokenizer import Tokenizer

from .config import EngineConfig
from .engine_parts import (
    load,
    make_adapter_pool,
    make_feature_cache,
    make_kv_cache,
    make_offload,
    make_pipeline,
    make_scheduler,
    make_steering,
)
from .errors import EngineError, RequestError, is_out_of_memory


class Engine:
    """Generates for many requests at once, in one continuous batch over a paged KV cache.

    Owns the model, its KV cache and all requests. Call it from one thread.

    A request's tokens do not depend on the rest of the batch, on how its prompt was split into
    chunks, on preemption, or on the prefix cache, except by rounding: batches of different sizes
    add numbers in different orders, so two tokens of almost equal probability may swap.

    Length: a prompt that leaves no room for one token (more than `max_model_len - 1`) is refused.
    If prompt and `max_tokens` together exceed `max_model_len`, the output ends there, with finish
    reason `length`.
    """

    def __init__(self, config: EngineConfig, *, loaded: LoadedModel | None = None) -> None:
        """Load the model and allocate the KV cache.

        Args:
            config: The configuration; it cannot be changed later.
            loaded: A model that is already loaded, to share it between engines of one process.

        Raises:
            ConfigError: the configuration does not suit the model, or the memory.
            ModelLoadError: the model cannot be read, or is not supported.
        """
        self.config = config
        loaded = load(config) if loaded is None else loaded
        if loaded.config.keeps_kv:
            check_max_model_len(config.max_model_len, loaded.config.max_position_embeddings)
        self._loaded = loaded
        make_current(loaded.model.device)
        self._kv_cache = make_kv_cache(config, loaded)
        self._offload = make_offload(config, loaded, self._kv_cache)
        self._adapters = make_adapter_pool(config, loaded)
        self._steering = make_steering(config, loaded)
        num_blocks = self._kv_cache.num_blocks
        self._scheduler = make_scheduler(config, loaded, num_blocks, self._adapters, self._offload)
        self._feature_cache = make_feature_cache(config, loaded)
        self._pipeline = make_pipeline(config, loaded, self._kv_cache, self._feature_cache)
        self._overlaps = config.overlaps_on(loaded.model.device.type)
        self._intake = RequestIntake(config, loaded, self._scheduler)
        self._corpora = DraftCorpora(loaded.config.vocab_size)
        self._counter = StatsCounter()
        self._unfinished = UnfinishedRequests(self._scheduler, self._counter)
        self._pooled_intake = PooledIntake(config, loaded, self._scheduler)
        self._num_generate_requests = 0

    @property
    def identity(self) -> str:
        """Name of weights, tokenizer, dtypes and sampler; engines of one name resume each other."""
        identity = self._loaded.identity
        if self.config.kv_cache_dtype == "auto":
            return identity
        return f"{identity}-kv-fp8" + ("" if self._loaded.kv_scales is None else "-scaled")

    @property
    def dtype(self) -> str:
        """Number format of weights and activations, never "auto"."""
        return dtype_name(self._loaded.model.dtype)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._loaded.tokenizer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an output, unless its request ignores them."""
        return self._loaded.eos_token_ids

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """Sampling controls for requests that leave them out; see `generation_config`."""
        return {} if self.config.generation_config == "none" else self._loaded.sampling_defaults

    @property
    def overlaps(self) -> bool:
        """Whether a step stays in flight while the next one is scheduled."""
        return self._overlaps

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds; blocks that the prefix cache keeps count as free."""
        return self._scheduler.block_pool.num_free_blocks

    def render_chat(self, messages: Chat | Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids that the model's chat template makes of messages."""
        return self.tokenizer.apply_chat_template(messages)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Generate for all prompts, and return when every one is finished.

        Args:
            prompts: Texts, lists of token ids, or `Chat`s.
            params: One for all prompts, or one for each; None is `SamplingParams` with the
                engine's `sampling_defaults`.

        Returns:
            Finished outputs, in the order of the prompts.

        Raises:
            RequestError: a prompt or its params are refused; nothing was computed.
            EngineError: requests added with `add_request` are unfinished; this call would lose
                their outputs.
        """
        if self.has_unfinished():
            raise EngineError(
                f"{len(self._unfinished)} requests are unfinished: run step() until they are "
                "finished, or abort them, before generate()"
            )
        prepared = self._prepare_all(prompts, params)
        finished: dict[str, RequestOutput] = {}
        try:
            for trackers in prepared:
                self._unfinished.add(trackers)
            while self.has_unfinished():
                for output in self.step():
                    if output.finished:
                        finished[output.request_id] = output
        finally:
            self._unfinished.drop_all()
            while self._pipeline.num_in_flight:
                self._collect()
        return [finished[trackers[0].request.request_id] for trackers in prepared]

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        resumed_token_ids: ResumedTokens = (),
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        cache_salt: str | None = None,
        lora: str | None = None,
        steering: SteeringSpec | None = None,
        media: Sequence[Media] = (),
        draft_corpus: str | None = None,
    ) -> None:
        """Add a request; the next calls of `step` compute it and report its output.

        Args:
            request_id: Any name that no unfinished request has. Without `params.seed`, it and the
                engine's seed fix the request's samples.
            prompt: A text, its token ids, or a `Chat`.
            params: Its controls; None is `SamplingParams` with `sampling_defaults`.
            resumed_token_ids: Output tokens that an earlier run of the same request generated. They
                are computed with the prompt, and generation continues after them. If they already
                end the request, the next step reports it finished without computing anything,
                unless they must be scored. If `params.n` is above 1, one list for each sample.
            priority: Lower goes first, and may preempt a running request of a higher number; see
                `EngineConfig.priority_ageing_s` for how long.
            deadline_s: Seconds from now after which an unfinished request is aborted: its output
                has finish reason `abort` and the error `deadline_exceeded`. None sets no deadline.
            cache_salt: The request shares KV blocks only with requests of the same salt. All
                requests without a salt share with each other.
            lora: Digest of its LoRA adapter, which must be in `EngineConfig.lora_folder`; None
                computes the model alone. No two adapters share KV blocks.
            steering: What is added to its hidden states, from `EngineConfig.steering_folder`; None
                adds nothing. No two of them share KV blocks.
            media: Decoded pictures and sounds, one for each part of type image or audio in the
                messages of a `Chat`, in their order.
            draft_corpus: Name of the outputs that it may take draft tokens from; see
                `set_draft_corpus`, which may come later. None takes none.

        Raises:
            RequestError: `context_length_exceeded` if the prompt leaves no room for a token,
                `unsupported_parameter` or `invalid_request`; the engine is unchanged.
        """
        check_deadline(deadline_s)
        self._check_id_is_free(request_id)
        trackers = self._intake.prepare(
            request_id,
            prompt,
            params or SamplingParams(**self.sampling_defaults),
            resumed_token_ids,
            priority=priority,
            cache_salt=cache_salt,
            adapter=find_adapter(self._adapters, lora),
            steering=find_steering(self._steering, steering),
            media=media,
            corpus=self._corpora.find(draft_corpus),
        )
        self._unfinished.add(trackers, deadline_s=deadline_s)

    def set_draft_corpus(self, name: str, outputs: Sequence[Sequence[int]]) -> None:
        """Replace the outputs that requests with this `draft_corpus` take draft tokens from.

        It changes no token, for every draft is checked; see `EngineConfig.num_corpus_tokens`.

        Args:
            name: Any name. Requests of different users need different ones: the time that an
                output takes tells what its corpus has.
            outputs: Token ids of finished outputs of the same kind; some hundred are enough. One
                with a token that the model does not have is left out. Empty forgets the corpus.
        """
        self._corpora.replace(name, outputs)

    def add_pooled_request(
        self,
        request_id: str,
        prompt: PooledPrompt,
        params: PoolingParams | None = None,
        *,
        priority: int = 0,
        deadline_s: float | None = None,
        cache_salt: str | None = None,
        lora: str | None = None,
        steering: SteeringSpec | None = None,
    ) -> None:
        """Add a request for an embedding or scores; it is computed in the same steps as the others.

        Its last output has the result in `RequestOutput.vector`, and no tokens.

        Args:
            request_id: Any name that no unfinished request has.
            prompt: A text, its token ids, a `Chat`, or a `TextPair` to score.
            params: What is asked for; None is an embedding with the model's defaults.
            priority: As in `add_request`, like all that follow.
            deadline_s: Seconds from now.
            cache_salt: Its salt.
            lora: Its adapter.
            steering: What steers it.

        Raises:
            RequestError: `context_length_exceeded`, `unsupported_parameter` (the model has no
                classification head, or no states to pool) or `invalid_request`.
        """
        check_deadline(deadline_s)
        self._check_id_is_free(request_id)
        tracker = self._pooled_intake.prepare(
            request_id,
            prompt,
            params or PoolingParams(),
            priority=priority,
            cache_salt=cache_salt,
            adapter=find_adapter(self._adapters, lora),
            steering=find_steering(self._steering, steering),
        )
        self._unfinished.add([tracker], deadline_s=deadline_s)

    @property
    def max_model_len(self) -> int:
        """Most tokens of one request: an encoder takes no more than it was made for."""
        return self._pooled_intake.limit

    @property
    def pooling(self) -> PoolingSupport:
        """What the model offers to pooled requests."""
        return self._pooled_intake.support

    def step(self) -> list[RequestOutput]:
        """Schedule one step, launch it, and report the steps that are done.

        With `EngineConfig.overlap`, a call launches a step and reports the one that the call before
        launched, so that host and device work at the same time.

        A step that runs out of memory computes nothing: the later half of its requests is
        preempted, and the next steps are smaller. A request that runs out of memory three times
        while it is alone ends with the error `out_of_memory`.

        Returns:
            One output per request that has a new token or has ended. The first of overlapping steps
            is only launched, and reports nothing.

        Raises:
            Exception: the model's own, except out of memory. No token is lost: the next call
                computes the same step again, unless requests are aborted before.
        """
        self._unfinished.abort_overdue()
        self._end_without_adapter()
        batch = self._scheduler.schedule()
        is_launched = batch.num_seqs > 0 and self._launch(batch)
        # Without overlap this collects the step just launched; with it, the one before.
        while self._pipeline.num_in_flight > self._num_steps_ahead(is_launched):
            self._collect()
        self._sample_launched()
        return self._unfinished.take_outputs()

    def abort(self, request_id: str) -> bool:
        """End a request early; the next step reports its output, with finish reason `abort`.

        Returns:
            False if no unfinished request has this id: it is finished, or was never added.
        """
        return self._unfinished.abort(request_id)

    def has_unfinished(self) -> bool:
        """Whether any request has not had its last output yet."""
        return len(self._unfinished) > 0

    def reset_prefix_cache(self) -> int:
        """Evict the KV of finished requests; return the number of blocks that held it."""
        return self._scheduler.block_pool.evict_all()

    @property
    def resident_adapters(self) -> list[str]:
        """Digests of the LoRA adapters in memory; as cheap as `load`."""
        return [] if self._adapters is None else self._adapters.resident

    @property
    def media_kinds(self) -> tuple[str, ...]:
        """Kinds of media that the model takes."""
        return () if self._loaded.media is None else (self._loaded.media.kind,)

    @property
    def sample_rate_hz(self) -> int | None:
        """Rate of the sounds that the model takes; others are resampled. None if it takes none."""
        return None if self._loaded.media is None else self._loaded.media.sample_rate_hz

    def provide_memory(self, timeout_s: float) -> bool:
        """Use spare time to pre-fault the memory of the KV cache, before a step needs it.

        On a CPU, the system provides memory when it is first touched, which slows down the first
        steps that use a block. A new engine spends half a second on it; a service continues when it
        has nothing to compute. On a GPU there is nothing to do.

        Args:
            timeout_s: Seconds to spend; the call may take a few milliseconds more.

        Returns:
            Whether all of the memory is there.
        """
        is_done = self._kv_cache.prefault(timeout_s)
        if self._offload is None or not is_done:
            return is_done
        return self._offload.prefault(timeout_s)

    def token_bytes(self, token_ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bytes of tokens, for example of those in `RequestOutput.logprobs`.

        A token may be a part of a character. A special token has the bytes of its name.
        """
        return self._intake.token_bytes(token_ids)

    def load(self) -> CurrentLoad:
        """Return how full the engine is now; cheap enough for every step, unlike `stats`."""
        return CurrentLoad.of(self._scheduler)

    def draft_counts(self) -> DraftCounts | None:
        """Return the counts of draft tokens, as cheaply as `load`.

        None if prompt lookup is off and there were no draft tokens.
        """
        drafts = self._counter.drafts
        return drafts if self.config.num_speculative_tokens or drafts.by_source else None

    def feature_counts(self) -> FeatureCounts | None:
        """Return counts of pictures and sounds, as cheaply as `load`; None for a text model."""
        return None if self._feature_cache is None else self._feature_cache.counts

    def offload_counts(self) -> OffloadCounts | None:
        """Return counts of KV in host memory, as cheaply as `load`; None if it is off."""
        return None if self._offload is None else self._offload.counts

    @property
    def num_steps(self) -> int:
        """Steps run; as cheap as `load`."""
        return self._counter.num_steps

    @property
    def num_preemptions(self) -> int:
        """Times that a request lost its blocks to others; as cheap as `load`."""
        return self._counter.num_preemptions

    def steps_after(self, num_steps: int) -> list[StepFacts]:
        """Return what the steps after the first `num_steps` computed, as cheaply as `load`.

        Only the last `NUM_RECENT_STEPS` steps are kept.
        """
        return self._counter.steps_after(num_steps)

    def stats(self) -> EngineStats:
        """Return what the engine has done so far, and its current load."""
        return self._counter.snapshot(self._scheduler, self._feature_cache, self.offload_counts())

    def _end_without_adapter(self) -> None:
        """End requests whose adapter could not be loaded, though it was there when they came."""
        for request in self._scheduler.without_adapter():
            adapter, tracker = request.adapter, self._unfinished.tracker_of(request)
            if adapter is not None and adapter.problem is not None:
                error = RequestFailure("adapter_unavailable", adapter.problem)
                self._unfinished.fail(tracker, error)

    def _check_id_is_free(self, request_id: str) -> None:
        if request_id in self._unfinished:
            raise RequestError(
                "invalid_request",
                "request_id belongs to an unfinished request: use another one, or abort that one",
            )

    def _prepare_all(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[list[OutputTracker]]:
        """Check all requests of one `generate`, before any of them runs."""
        if isinstance(prompts, str):
            raise RequestError("invalid_request", "prompts must be a list of prompts, even for one")
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams(**self.sampling_defaults)] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(
                "invalid_request",
                f"there are {len(prompts)} prompts and {len(params)} params: pass one for all, or "
                "one for each",
            )
        start = self._num_generate_requests
        prepared = [
            self._intake.prepare(f"generate-{start + index}", prompt, each)
            for index, (prompt, each) in enumerate(zip(prompts, params, strict=True))
        ]
        self._num_generate_requests += len(prepared)
        return prepared

    def _num_steps_ahead(self, is_launched: bool) -> int:
        """Return how many steps may stay in flight while the next one is scheduled."""
        can_overlap = is_launched and self._scheduler.has_requests
        return int(self._overlaps and can_overlap and not self._scheduler.waits_for_drafts)

    def _launch(self, batch: ScheduledBatch) -> bool:
        """Launch a step on the device; if memory runs out, make the next ones smaller instead."""
        try:
            self._prepare_blocks(self._scheduler.blocks_to_zero)
            self._scheduler.note_blocks_zeroed()
            self._pipeline.launch(batch)
        except Exception as error:
            self._recover(batch, error)
            return False
        self._scheduler.mark_launched(batch)
        return True

    def _prepare_blocks(self, blocks_to_zero: Sequence[int]) -> None:
        if self._offload is None:
            self._kv_cache.zero_blocks(blocks_to_zero)
        else:
            self._offload.move_blocks(blocks_to_zero)

    def _sample_launched(self) -> None:
        """Sample the last step in flight, if it waited for the tokens before it."""
        try:
            self._pipeline.sample()
        except Exception as error:
            batch = self._pipeline.take_back()
            self._scheduler.take_back(batch)
            self._recover(batch, error)

    def _collect(self) -> None:
        """Wait for the oldest step in flight, and append its tokens to their requests."""
        self._sample_launched()
        if not self._pipeline.num_in_flight:
            return
        step = self._pipeline.collect()
        discarded = self._scheduler.update(step.batch, step.token_ids, step.drafts)
        self._counter.count_step(step.batch, step.kind, step.time_s)
        if self._offload is not None and step.kind in (StepKind.PREFILL, StepKind.PADDED):
            self._offload.note_prompt_step(step.batch.num_tokens, step.time_s)
        requests = step.batch.sampled_requests
        for tracker in self._unfinished.append_tokens(requests, step.token_ids, discarded):
            error = failure_without_token(tracker.request)
            self._unfinished.fail(tracker, error, is_kv_finite=error is not NOT_FINITE)
        if step.drafts:
            self._unfinished.append_accepted_drafts(step.drafts, discarded)

    def _recover(self, batch: ScheduledBatch, error: Exception) -> None:
        """Make the next steps smaller if a step ran out of memory; raise any other error again."""
        self._scheduler.note_failed_launch(batch)
        if not is_out_of_memory(error):
            raise error
        preempted, hopeless = self._scheduler.shrink(batch)
        self._counter.count_out_of_memory(batch, len(preempted))
        if hopeless is not None:
            tracker = self._unfinished.tracker_of(hopeless)
            self._unfinished.fail(tracker, out_of_memory_alone(batch))
