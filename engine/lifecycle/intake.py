"""Request intake: a caller's prompt and params become requests, or are refused before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from batchmill.engine.config import EngineConfig
from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.media import Media
from batchmill.engine.contract.reasoning import check_budget
from batchmill.engine.contract.structure_check import TOO_COMPLEX
from batchmill.engine.drafts.corpus import CorpusLookup, DraftCorpus
from batchmill.engine.drafts.drafter import Drafter
from batchmill.engine.drafts.prompt_lookup import PromptLookup
from batchmill.engine.errors import RequestError
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.request.adapter import Adapter
from batchmill.engine.request.outputs import FinishReason, ResumedTokens
from batchmill.engine.request.request import Request, derive_seed
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.scores import TokenScores
from batchmill.engine.request.steering import Steering
from batchmill.engine.request.token_controls import RequestControls
from batchmill.engine.scheduling.scheduler import Scheduler
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.detokenizer import Detokenizer
from batchmill.engine.text.reasoning_effort import effort_budget
from batchmill.engine.text.stop_strings import StopStrings
from batchmill.engine.text.structure import StructureCompiler
from batchmill.engine.watermark.key import read_keys
from batchmill.engine.watermark.noise import WatermarkNoise

from .guiding import add_guide
from .media_intake import MediaIntake
from .output_tracker import OutputText, OutputTracker
from .parallel_sampling import sample_id, sample_seed
from .tool_use import ToolUse, check_agreement, plan_tool_use

#: A prompt: text, its token ids, or a conversation for the model's chat template.
Prompt = str | Sequence[int] | Chat


class RequestIntake:
    """Checks requests against the limits of the model and the engine, and prepares them.

    Every refusal happens here, before anything is computed.
    """

    def __init__(self, config: EngineConfig, loaded: LoadedModel, scheduler: Scheduler) -> None:
        self._config = config
        self._scheduler = scheduler
        self._tokenizer = loaded.tokenizer
        self._vocab_size = loaded.config.vocab_size
        self._generates = loaded.config.generates
        self._eos_token_ids = loaded.eos_token_ids
        self._detokenizer = Detokenizer(loaded.tokenizer.backend)
        # Only the name, because errors go to whoever sent the job.
        self._model_name = Path(config.model).name
        self._media_intake = MediaIntake(config, loaded)
        self._watermark_keys = read_keys(config.watermark_keys)
        self._structures = StructureCompiler(
            loaded.tokenizer.backend, self._vocab_size, loaded.eos_token_ids
        )

    def token_bytes(self, token_ids: Iterable[int]) -> dict[int, bytes]:
        """Return the bytes of tokens, for the readers of their log probabilities."""
        return {token_id: self._detokenizer.token_bytes(token_id) for token_id in token_ids}

    def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        resumed_token_ids: ResumedTokens = (),
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        adapter: Adapter | None = None,
        steering: Steering | None = None,
        media: Sequence[Media] = (),
        corpus: DraftCorpus | None = None,
    ) -> list[OutputTracker]:
        """Check a request, and replay its resumed tokens.

        Returns:
            One tracker per sample, `params.n` in all.

        Raises:
            RequestError: `context_length_exceeded`, `unsupported_parameter` or `invalid_request`.
        """
        check_arguments(request_id, params, SamplingParams, priority, cache_salt)
        self._check_generates()
        expanded = self._media_intake.expand(prompt, media, params, cache_salt)
        if expanded is None:
            prompt_token_ids = self._prompt_token_ids(prompt, params)
        else:
            prompt_token_ids = expanded.token_ids
            self._check_text_token_ids("messages", prompt_token_ids)
            self._check_length(prompt_token_ids)
        params = self._with_special_stops(params)
        self._check_vocabulary(params)
        _check_budget(prompt, params)
        tools = self._tool_use(prompt, params) if isinstance(prompt, Chat) else None
        seed = derive_seed(self._config.seed, request_id) if params.seed is None else params.seed
        negative = self._negative_token_ids(prompt, prompt_token_ids, params)
        trackers = []
        for index, resumed in enumerate(self._resumed_by_sample(resumed_token_ids, params.n)):
            controls = self._controls(prompt_token_ids, params, tools)
            scores = _scores(len(prompt_token_ids), len(resumed), params, index)
            request = Request(
                sample_id(request_id, index),
                prompt_token_ids,
                params,
                seed=sample_seed(seed, index),
                max_num_tokens=self._max_num_tokens(len(prompt_token_ids), params),
                resumed_token_ids=resumed,
                cache_salt=cache_salt,
                adapter=adapter,
                media=None if expanded is None else expanded.media,
                steering=steering,
                controls=controls,
                scores=scores,
                drafter=self._drafter(prompt_token_ids, controls, scores, corpus),
                watermark=self._watermark(params),
            )
            request.priority = priority
            if negative:
                add_guide(
                    request,
                    negative,
                    max_model_len=self._config.max_model_len,
                    max_num_seqs=self._config.max_num_seqs,
                )
                request.drafter = None
            text = self._output_text(request, prompt, tools)
            trackers.append(OutputTracker(request, text, self._eos_token_ids))
            _replay_resumed(trackers[-1])
            self._scheduler.check_fits(request)
        return trackers

    def _negative_token_ids(
        self, prompt: Prompt, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> Sequence[int]:
        """Return the negative prompt of a guided request; empty if it is not guided.

        In a chat, a text stands for a message of the user. As in transformers, what is missing is
        the last token of the prompt.
        """
        if params.guidance_scale == 1 or params.max_tokens == 0:
            return ()
        negative = params.negative_prompt
        if negative is None:
            return prompt_token_ids[-1:]
        if isinstance(prompt, Chat) and isinstance(negative, str):
            negative_chat = replace(
                prompt,
                messages=[{"role": "user", "content": negative}],
                tools=(),
                tool_choice=None,
                documents=(),
                continue_final_message=False,
            )
            given: Prompt = negative_chat
        else:
            given = negative if isinstance(negative, str) else list(negative)
        whole = replace(params, truncate_prompt_tokens=None)
        try:
            return self._prompt_token_ids(given, whole)
        except RequestError as refusal:
            raise RequestError(refusal.code, f"negative_prompt: {refusal}") from None

    def _prompt_token_ids(self, prompt: Prompt, params: SamplingParams) -> Sequence[int]:
        token_ids: Sequence[int]
        limit = self._config.max_model_len
        most = limit - 1 if params.truncate_prompt_tokens is None else None
        if isinstance(prompt, Chat):
            token_ids = self._tokenizer.apply_chat_template(
                prompt, model_name=self._model_name, max_num_tokens=most
            )
            self._check_text_token_ids("messages", token_ids)
        elif isinstance(prompt, str):
            token_ids = self._tokenizer.encode(prompt, max_num_tokens=most)
            self._check_text_token_ids("prompt", token_ids)
        else:
            self._check_token_ids("prompt", prompt)
            token_ids = prompt
        if not token_ids:
            raise RequestError("invalid_request", "prompt has 0 tokens: it needs at least 1")
        if params.truncate_prompt_tokens is not None:
            num_kept = params.truncate_prompt_tokens
            if num_kept == -1:
                num_kept = max(1, limit - (params.max_tokens or 1))
            token_ids = token_ids[-num_kept:]
        self._check_length(token_ids)
        return token_ids

    def _check_length(self, prompt_token_ids: Sequence[int]) -> None:
        limit = self._config.max_model_len
        if len(prompt_token_ids) >= limit:
            raise RequestError(
                "context_length_exceeded",
                f"prompt has {len(prompt_token_ids)} tokens, max_model_len is {limit} and one "
                "token has to be left for the output: shorten the prompt, set "
                "truncate_prompt_tokens or raise max_model_len",
            )

    def _check_generates(self) -> None:
        if not self._generates:
            raise RequestError(
                "unsupported_parameter",
                f"{self._model_name} has no output layer and generates no text: ask it for "
                "embeddings or scores, or use a causal language model",
            )

    def _with_special_stops(self, params: SamplingParams) -> SamplingParams:
        """Return params in which a stop string that is a special token is a stop token.

        The text leaves special tokens out, so a stop string would never be found in it.
        """
        if not params.skip_special_tokens:
            return params
        texts, token_ids = [], list(params.stop_token_ids or ())
        for stop in params.stop_strings:
            token_id = self._detokenizer.special_token_id(stop)
            if token_id is not None:
                token_ids.append(token_id)
            elif any(special in stop for special in self._detokenizer.special_texts):
                raise RequestError(
                    "invalid_request",
                    "stop has a string with a special token and other text, and the output leaves "
                    "special tokens out: stop at the special token alone, or set "
                    "skip_special_tokens to false",
                )
            else:
                texts.append(stop)
        if len(texts) == len(params.stop_strings):
            return params
        return replace(params, stop=texts or None, stop_token_ids=token_ids)

    def _check_vocabulary(self, params: SamplingParams) -> None:
        """Refuse token ids that the model does not have."""
        self._check_token_ids("stop_token_ids", params.stop_token_ids or ())
        self._check_token_ids("allowed_token_ids", params.allowed_token_ids or ())
        self._check_token_ids("logprob_token_ids", params.logprob_token_ids or ())
        self._check_token_ids("logit_bias", list(params.bias_by_token_id))
        for word in params.bad_words or ():
            if not isinstance(word, str):
                self._check_token_ids("bad_words", word)

    def _check_token_ids(self, name: str, token_ids: Sequence[int]) -> None:
        if not isinstance(token_ids, Sequence) or isinstance(token_ids, bytes | bytearray):
            raise RequestError(
                "invalid_request",
                f"{name} is a {type(token_ids).__name__}: use a list of token ids",
            )
        for index, token_id in enumerate(token_ids):
            if not isinstance(token_id, int) or not 0 <= token_id < self._vocab_size:
                shown = token_id if isinstance(token_id, int) else type(token_id).__name__
                raise RequestError(
                    "invalid_request",
                    f"{name}[{index}] is {shown}: token ids are integers from 0 to "
                    f"{self._vocab_size - 1}",
                )

    def _check_text_token_ids(self, name: str, token_ids: Sequence[int]) -> None:
        """Refuse a text with a token that the tokenizer has and the model does not.

        Tokenizers of some models (Gemma 3 1B, CodeLlama 34B, many fine-tunes) have more tokens.
        """
        largest = max(token_ids, default=0)
        if largest >= self._vocab_size:
            raise RequestError(
                "invalid_request",
                f"{name} contains a special token that this model does not have (its tokenizer "
                f"gives it the id {largest}, and the model has ids from 0 to "
                f"{self._vocab_size - 1}): leave it out",
            )

    def _tool_use(self, chat: Chat, params: SamplingParams) -> ToolUse | None:
        check_agreement(chat, params)
        # A structure applies from the first token on, so no thought can come before it.
        may_think = params.detokenize and params.grammar is None and not chat.must_call
        budget = params.thinking_token_budget
        if may_think and budget is None and chat.reasoning_effort is not None:
            template = self._tokenizer.chat_template(chat)
            budget = effort_budget(chat.reasoning_effort, template)
        return plan_tool_use(
            chat,
            self._tokenizer,
            self._detokenizer,
            tool_call_parser=self._config.tool_call_parser,
            separates_thoughts=may_think and self._config.reasoning_parser == "auto",
            thinking_token_budget=budget,
            model_name=self._model_name,
        )

    def _resumed_by_sample(self, resumed: ResumedTokens, n: int) -> Sequence[Sequence[int]]:
        """Return one checked list of resumed tokens per sample."""
        by_sample = [resumed] if n == 1 else resumed or [()] * n
        if n > 1 and (len(by_sample) != n or any(isinstance(each, int) for each in by_sample)):
            raise RequestError(
                "invalid_request",
                f"resumed_token_ids must be a list of {n} lists, one for each of the {n} samples",
            )
        for token_ids in by_sample:
            self._check_token_ids("resumed_token_ids", cast("Sequence[int]", token_ids))
        return cast("Sequence[Sequence[int]]", by_sample)

    def _max_num_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """Return the length at which the request ends, prompt included."""
        if params.max_tokens is None:
            return self._config.max_model_len
        return min(num_prompt_tokens + params.max_tokens, self._config.max_model_len)

    def _controls(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, tools: ToolUse | None
    ) -> RequestControls | None:
        grammar = params.grammar if tools is None else tools.grammar
        ending = frozenset(params.stop_token_ids or ())
        if not params.ignore_eos:
            ending |= self._eos_token_ids
        controls = RequestControls(
            params,
            prompt_token_ids,
            ending_token_ids=ending,
            bad_word_token_ids=self._bad_word_token_ids(params),
            structure=None if grammar is None else self._structures.compile(grammar),
            thinking=None if tools is None else tools.thinking_budget(prompt_token_ids),
        )
        return controls if controls.is_needed else None

    def _drafter(
        self,
        prompt_token_ids: Sequence[int],
        controls: RequestControls | None,
        scores: TokenScores | None,
        corpus: DraftCorpus | None,
    ) -> Drafter | None:
        """Return the drafter of a request, or None if it must decode without draft tokens.

        Controls but a structure follow the tokens one by one, and scores are recorded one by one.
        """
        if scores is not None:
            return None
        config, lookup = self._config, None
        if config.num_speculative_tokens:
            lookup = PromptLookup(
                prompt_token_ids,
                min_ngram=config.prompt_lookup_min,
                max_ngram=config.prompt_lookup_max,
            )
        earlier = CorpusLookup(corpus) if corpus and config.num_corpus_tokens else None
        if controls is None:
            return Drafter(corpus=earlier, lookup=lookup) if earlier or lookup else None
        if controls.structure is None or not controls.is_structure_alone:
            return None
        if lookup is None and earlier is None and not config.num_forced_tokens:
            return None
        return Drafter(structure=controls.structure, corpus=earlier, lookup=lookup)

    def _watermark(self, params: SamplingParams) -> WatermarkNoise | None:
        """Return what marks an output; None if nothing does, as in greedy ones without a name."""
        name = params.watermark
        if name is None:
            name = self._config.watermark if params.temperature > 0 else None
        if name is None:
            return None
        key = self._watermark_keys.get(name)
        if key is None:
            raise RequestError(
                "invalid_request",
                f"watermark names the key {name!r}, which this worker does not hold: use the name "
                "of a key in its BATCHMILL_WATERMARK_KEYS, or leave watermark out",
            )
        return WatermarkNoise(key)

    def _bad_word_token_ids(self, params: SamplingParams) -> list[list[int]]:
        """Return the token sequences of the bad words, inside a text and at its start."""
        sequences: list[list[int]] = []
        for word in params.bad_words or ():
            if not isinstance(word, str):
                sequences.append(list(word))
                continue
            for space in ("", " "):
                token_ids = self._tokenizer.encode_plain(f"{space}{word.lstrip()}")
                if token_ids:
                    self._check_text_token_ids("bad_words", token_ids)
                    sequences.append(token_ids)
        return sequences

    def _output_text(
        self, request: Request, prompt: Prompt, tools: ToolUse | None
    ) -> OutputText | None:
        params = request.params
        if not params.detokenize:
            return None
        stream = self._detokenizer.stream(
            request.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            kept=() if tools is None else tools.markers,
        )
        echoed = ""
        if params.echo and isinstance(prompt, str) and params.truncate_prompt_tokens is None:
            echoed = prompt
        elif params.echo:
            echoed = self._tokenizer.decode(
                request.prompt_token_ids, skip_special_tokens=params.skip_special_tokens
            )
        stops = None
        if params.stop_strings:
            include = params.include_stop_str_in_output
            stops = StopStrings(params.stop_strings, include_in_text=include)
        reader = None if tools is None else tools.reader(request.prompt_token_ids, request.seed)
        thinking = None if request.controls is None else request.controls.thinking
        return OutputText(stream, stops, echoed=echoed, tool_calls=reader, thinking=thinking)


def _check_budget(prompt: Prompt, params: SamplingParams) -> None:
    try:
        check_budget(
            params.thinking_token_budget,
            is_chat=isinstance(prompt, Chat),
            is_structured=params.grammar is not None,
            must_call=isinstance(prompt, Chat) and prompt.must_call,
        )
    except ContractError as refusal:
        raise RequestError.of(refusal) from None


def check_deadline(deadline_s: float | None) -> None:
    """Refuse a deadline that is not in the future.

    Raises:
        RequestError: `invalid_request`.
    """
    if deadline_s is not None and not deadline_s > 0:
        raise RequestError(
            "invalid_request", f"deadline_s is {deadline_s!r}: use seconds from now, more than 0"
        )


def check_arguments(
    request_id: str,
    params: object,
    params_class: type[object],
    priority: int,
    cache_salt: str | None,
) -> None:
    """Refuse arguments of the wrong type; callers need not run a type checker."""
    if not isinstance(request_id, str) or not request_id:
        raise RequestError("invalid_request", "request_id must be a non-empty string")
    if not isinstance(params, params_class):
        raise RequestError(
            "invalid_request",
            f"params is a {type(params).__name__}: use {params_class.__name__}",
        )
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise RequestError("invalid_request", f"priority is {priority!r}: use an integer")
    if cache_salt is not None and not (isinstance(cache_salt, str) and cache_salt):
        raise RequestError("invalid_request", "cache_salt must be a non-empty string")


def _scores(
    num_prompt_tokens: int, num_resumed_tokens: int, params: SamplingParams, index: int
) -> TokenScores | None:
    return TokenScores.of(
        num_prompt_tokens=num_prompt_tokens,
        num_resumed_tokens=num_resumed_tokens,
        # All samples share the prompt, so only the first reports its scores.
        prompt_logprobs=params.num_prompt_logprobs if index == 0 else None,
        logprobs=params.num_logprobs,
        entropy=params.entropy,
        asked_token_ids=params.logprob_token_ids or (),
    )


def _replay_resumed(tracker: OutputTracker) -> None:
    """Bring a tracker to the state in which its resumed tokens left the request."""
    request = tracker.request
    if request.params.max_tokens == 0:
        tracker.finish(FinishReason.LENGTH)
    num_resumed = len(request.output_token_ids)
    num_replayed = tracker.replay()
    failure = tracker.failure
    if failure is not None and failure.code == TOO_COMPLEX:
        raise RequestError(failure.code, failure.message)
    if num_replayed < num_resumed or failure is not None:
        raise RequestError(
            "invalid_request",
            f"resumed_token_ids has {num_resumed} tokens, the request ends after "
            f"{num_replayed} of them (finish reason {tracker.finish_reason}): resume it with the "
            "params that it was started with",
        )
    if tracker.finish_reason is not None and request.scores is not None:
        # It is computed once more for its scores, up to its last token and no further.
        request.max_num_tokens = request.num_tokens + 1
