"""A caller's prompt and params become a request, or are refused before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from .config import EngineConfig
from .detokenizer import Detokenizer
from .errors import RequestError
from .loading import LoadedModel
from .request import Request, derive_seed
from .sampling_params import SamplingParams
from .stop import StopStrings
from .tracker import OutputText, RequestTracker

#: A prompt: text, or the token ids that it is made of.
Prompt = str | Sequence[int]


class RequestIntake:
    """Checks requests against the model's and the engine's limits, and sets them up."""

    def __init__(self, config: EngineConfig, loaded: LoadedModel) -> None:
        self._config = config
        self._tokenizer = loaded.tokenizer
        self._vocab_size = loaded.config.vocab_size
        self._eos_token_ids = loaded.eos_token_ids
        self._detokenizer = Detokenizer(loaded.tokenizer.backend)

    def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        resumed_token_ids: Sequence[int] = (),
    ) -> RequestTracker:
        """Check a request and bring it to where its resumed tokens left it.

        Raises:
            RequestError: `context_length_exceeded` or `invalid_request`.
        """
        if not isinstance(request_id, str) or not request_id:
            raise RequestError("invalid_request", "request_id is no text: use a non-empty string")
        if not isinstance(params, SamplingParams):
            raise RequestError(
                "invalid_request", f"params is a {type(params).__name__}: use SamplingParams"
            )
        prompt_token_ids = self._prompt_token_ids(prompt)
        self._check_token_ids("resumed_token_ids", resumed_token_ids)
        self._check_token_ids("stop_token_ids", params.stop_token_ids or ())
        seed = params.seed
        request = Request(
            request_id,
            prompt_token_ids,
            params,
            seed=derive_seed(self._config.seed, request_id) if seed is None else seed,
            max_num_tokens=self._max_num_tokens(len(prompt_token_ids), params),
            resumed_token_ids=resumed_token_ids,
        )
        tracker = RequestTracker(request, self._output_text(request), self._eos_token_ids)
        self._replay(tracker)
        return tracker

    def _prompt_token_ids(self, prompt: Prompt) -> Sequence[int]:
        token_ids: Sequence[int]
        if isinstance(prompt, str):
            token_ids = self._tokenizer.encode(prompt)
        else:
            self._check_token_ids("prompt", prompt)
            token_ids = prompt
        if not token_ids:
            raise RequestError("invalid_request", "prompt has 0 tokens: it needs at least 1")
        limit = self._config.max_model_len
        if len(token_ids) >= limit:
            raise RequestError(
                "context_length_exceeded",
                f"prompt has {len(token_ids)} tokens, max_model_len is {limit} and one token has "
                "to be left for the output: shorten the prompt or raise max_model_len",
            )
        return token_ids

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

    def _output_text(self, request: Request) -> OutputText | None:
        params = request.params
        if not params.detokenize:
            return None
        stream = self._detokenizer.stream(
            request.prompt_token_ids, skip_special_tokens=params.skip_special_tokens
        )
        if not params.stop_strings:
            return OutputText(stream, None)
        include = params.include_stop_str_in_output
        return OutputText(stream, StopStrings(params.stop_strings, include_in_text=include))

    def _replay(self, tracker: RequestTracker) -> None:
        num_resumed = len(tracker.request.output_token_ids)
        num_replayed = tracker.replay()
        if num_replayed < num_resumed:
            raise RequestError(
                "invalid_request",
                f"resumed_token_ids has {num_resumed} tokens, the request ends after "
                f"{num_replayed} of them (finish reason {tracker.finish_reason}): resume it with "
                "the params that it was started with",
            )


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
