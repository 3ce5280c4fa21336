"""A caller's prompt and params become requests, or are refused before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from batchmill.engine.config import EngineConfig
from batchmill.engine.errors import RequestError
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.request.outputs import FinishReason, ResumedTokens
from batchmill.engine.request.prompt_lookup import PromptLookup
from batchmill.engine.request.request import Request, derive_seed
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.request.scores import TokenScores
from batchmill.engine.request.token_controls import RequestControls
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.detokenizer import Detokenizer
from batchmill.engine.text.stop_strings import StopStrings
from batchmill.engine.text.structure import StructureCompiler

from .output_tracker import OutputText, OutputTracker
from .parallel_sampling import sample_id, sample_seed
from .tool_use import ChatIntake, ToolUse

#: A prompt: text, the token ids that it is made of, or a conversation for the model's template.
Prompt = str | Sequence[int] | Chat


class RequestIntake:
    """Checks requests against the model's and the engine's limits, and sets them up."""

    def __init__(self, config: EngineConfig, loaded: LoadedModel) -> None:
        self._config = config
        self._tokenizer = loaded.tokenizer
        self._vocab_size = loaded.config.vocab_size
        self._eos_token_ids = loaded.eos_token_ids
        self._detokenizer = Detokenizer(loaded.tokenizer.backend)
        self._chats = ChatIntake(config, loaded.tokenizer, self._detokenizer)
        self._structures = StructureCompiler(
            loaded.tokenizer.backend, self._vocab_size, loaded.eos_token_ids
        )

    def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        resumed_token_ids: ResumedTokens = (),
        cache_salt: str | None = None,
    ) -> list[OutputTracker]:
        """Check a request and bring it to where its resumed tokens left it.

        Returns:
            One tracker for each of `params.n` samples.

        Raises:
            RequestError: `context_length_exceeded`, `unsupported_parameter` or `invalid_request`.
        """
        if not isinstance(request_id, str) or not request_id:
            raise RequestError("invalid_request", "request_id is no text: use a non-empty string")
        if not isinstance(params, SamplingParams):
            raise RequestError(
                "invalid_request", f"params is a {type(params).__name__}: use SamplingParams"
            )
        if cache_salt is not None and not (isinstance(cache_salt, str) and cache_salt):
            raise RequestError("invalid_request", "cache_salt is no text, or is empty")
        prompt_token_ids = self._prompt_token_ids(prompt, params)
        self._check_vocabulary(params)
        tools = self._chats.tool_use(prompt, params) if isinstance(prompt, Chat) else None
        grammar = params.grammar if tools is None else tools.grammar
        seed = params.seed
        if seed is None:
            seed = derive_seed(self._config.seed, request_id)
        trackers = []
        for index, resumed in enumerate(_resumed_by_sample(resumed_token_ids, params.n)):
            self._check_token_ids("resumed_token_ids", resumed)
            controls = self._controls(prompt_token_ids, params, grammar)
            scores = _scores(len(prompt_token_ids), len(resumed), params, index)
            request = Request(
                sample_id(request_id, index),
                prompt_token_ids,
                params,
                seed=sample_seed(seed, index),
                max_num_tokens=self._max_num_tokens(len(prompt_token_ids), params),
                resumed_token_ids=resumed,
                cache_salt=cache_salt,
                controls=controls,
                scores=scores,
                drafter=self._drafter(prompt_token_ids, controls, scores),
            )
            text = self._output_text(request, prompt, tools)
            tracker = OutputTracker(request, text, self._eos_token_ids)
            if params.max_tokens == 0:
                tracker.finish(FinishReason.LENGTH)
            self._replay(tracker)
            trackers.append(tracker)
        return trackers

    def _prompt_token_ids(self, prompt: Prompt, params: SamplingParams) -> Sequence[int]:
        token_ids: Sequence[int]
        if isinstance(prompt, Chat):
            token_ids = self._chats.token_ids(prompt)
        elif isinstance(prompt, str):
            token_ids = self._tokenizer.encode(prompt)
        else:
            self._check_token_ids("prompt", prompt)
            token_ids = prompt
        if not token_ids:
            raise RequestError("invalid_request", "prompt has 0 tokens: it needs at least 1")
        limit = self._config.max_model_len
        if params.truncate_prompt_tokens is not None:
            num_kept = params.truncate_prompt_tokens
            if num_kept == -1:
                num_kept = max(1, limit - (params.max_tokens or 1))
            token_ids = token_ids[-num_kept:]
        if len(token_ids) >= limit:
            raise RequestError(
                "context_length_exceeded",
                f"prompt has {len(token_ids)} tokens, max_model_len is {limit} and one token has "
                "to be left for the output: shorten the prompt, set truncate_prompt_tokens or "
                "raise max_model_len",
            )
        return token_ids

    def _check_vocabulary(self, params: SamplingParams) -> None:
        """Refuse token ids that the model does not have."""
        self._check_token_ids("stop_token_ids", params.stop_token_ids or ())
        self._check_token_ids("allowed_token_ids", params.allowed_token_ids or ())
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

    def _max_num_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """Tokens at which the request ends: `max_tokens` after its prompt, or `max_model_len`."""
        if params.max_tokens is None:
            return self._config.max_model_len
        return min(num_prompt_tokens + params.max_tokens, self._config.max_model_len)

    def _controls(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, grammar: str | None
    ) -> RequestControls | None:
        ending = frozenset(params.stop_token_ids or ())
        if not params.ignore_eos:
            ending |= self._eos_token_ids
        controls = RequestControls(
            params,
            prompt_token_ids,
            ending_token_ids=ending,
            bad_word_token_ids=self._bad_word_token_ids(params),
            structure=None if grammar is None else self._structures.compile(grammar),
        )
        return controls if controls.is_needed else None

    def _drafter(
        self,
        prompt_token_ids: Sequence[int],
        controls: RequestControls | None,
        scores: TokenScores | None,
    ) -> PromptLookup | None:
        """What guesses the request's tokens, where they may be drawn several at once.

        Controls follow the tokens one by one, and scores are noted one by one.
        """
        if not self._config.num_speculative_tokens or controls is not None or scores is not None:
            return None
        return PromptLookup(
            prompt_token_ids,
            min_ngram=self._config.prompt_lookup_min,
            max_ngram=self._config.prompt_lookup_max,
        )

    def _bad_word_token_ids(self, params: SamplingParams) -> list[list[int]]:
        """The runs of tokens that spell the bad words: inside a text, and at its start."""
        runs: list[list[int]] = []
        for word in params.bad_words or ():
            if not isinstance(word, str):
                runs.append(list(word))
                continue
            spelt = [self._tokenizer.encode_plain(f"{space}{word.lstrip()}") for space in ("", " ")]
            runs += [run for run in spelt if run]
        return runs

    def _output_text(
        self, request: Request, prompt: Prompt, tools: ToolUse | None
    ) -> OutputText | None:
        params = request.params
        if not params.detokenize:
            return None
        stream = self._detokenizer.stream(
            request.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            kept=() if tools is None else tools.form.markers,
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
        return OutputText(stream, stops, echoed=echoed, tool_calls=reader)

    def _replay(self, tracker: OutputTracker) -> None:
        request = tracker.request
        num_resumed = len(request.output_token_ids)
        num_replayed = tracker.replay()
        if num_replayed < num_resumed or tracker.finish_reason == "error":
            raise RequestError(
                "invalid_request",
                f"resumed_token_ids has {num_resumed} tokens, the request ends after "
                f"{num_replayed} of them (finish reason {tracker.finish_reason}): resume it with "
                "the params that it was started with",
            )
        if tracker.finish_reason is not None and request.scores is not None:
            # It is computed once more, for its scores, up to its last token and no further.
            request.max_num_tokens = request.num_tokens + 1


def check_order(priority: int, deadline_s: float | None) -> None:
    """Refuse a priority or a deadline that cannot work.

    Raises:
        RequestError: `invalid_request`.
    """
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise RequestError("invalid_request", f"priority is {priority!r}: use an integer")
    if deadline_s is not None and not deadline_s > 0:
        raise RequestError(
            "invalid_request", f"deadline_s is {deadline_s!r}: use seconds from now, more than 0"
        )


def _resumed_by_sample(resumed: ResumedTokens, n: int) -> Sequence[Sequence[int]]:
    if n == 1:
        return [cast("Sequence[int]", resumed)]
    if not resumed:
        return [()] * n
    if len(resumed) != n or any(isinstance(each, int) for each in resumed):
        raise RequestError(
            "invalid_request",
            f"resumed_token_ids is not a list of {n} lists: give one for each of the {n} samples",
        )
    return cast("Sequence[Sequence[int]]", resumed)


def _scores(
    num_prompt_tokens: int, num_resumed_tokens: int, params: SamplingParams, index: int
) -> TokenScores | None:
    return TokenScores.of(
        num_prompt_tokens=num_prompt_tokens,
        num_resumed_tokens=num_resumed_tokens,
        # All samples have the same prompt: the first one's scores stand for it.
        prompt_logprobs=params.prompt_logprobs if index == 0 else None,
        logprobs=params.logprobs,
        entropy=params.entropy,
    )
