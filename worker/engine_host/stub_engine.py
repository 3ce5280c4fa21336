"""A stub of the engine: no model, deterministic tokens, faults on demand.

For tests, and for measuring the worker alone (`BATCHMILL_ENGINE=stub`). A token is a pure function
of prompt, seed and position, so any attempt on any worker can continue any other.

A prompt may contain one marker, which acts when the token at its output position is due:
`<<crash@N>>` ends the process, `<<hang@N>>` blocks the step forever, `<<raise@N>>` raises an
exception in the step, `<<error@N>>` fails that one request, and `<<oom@N>>` and `<<bug@N>>` fail it
with errors that are retried; `<<refuse>>` is refused when added. `<<oom@NxM>>` acts on the first M
attempts only.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchmill.engine.contract.decision import messages_of
from batchmill.engine.contract.media import MEDIA_KINDS, media_kinds

from .hosted_engine import RequestRefused, StepOutput
from .messages import (
    AddRequest,
    DraftCounts,
    EngineLoad,
    EngineWork,
    Finished,
    MediaCounts,
    OffloadCounts,
    Ready,
)
from .stub_output import (
    extra_output,
    split_thoughts,
    stub_decision,
    stub_explanation,
    stub_text,
    stub_thoughts,
    stub_token,
)

_MARKER = re.compile(r"<<(crash|hang|raise|error|oom|bug|refuse)(?:@(\d+))?(?:x(\d+))?>>")
_DEFAULT_MAX_TOKENS = 16
_MARKED_ERRORS = {
    "error": ("the logits are not finite", "numerical_error"),
    "bug": ("a token does not follow the output", "engine_error"),
    "oom": ("memory ran out for this request alone", "out_of_memory"),
}
#: Exit status of a process that a crash marker ended.
CRASH_STATUS = 86


@dataclass(frozen=True, slots=True)
class StubConfig:
    """How the stub behaves."""

    #: Seconds per step, for any batch size.
    step_time_s: float = 0.002
    #: Further seconds per running request in each step.
    seq_time_s: float = 0.0
    #: Seconds until the engine is ready.
    load_time_s: float = 0.0
    max_num_seqs: int = 64
    max_model_len: int = 4096
    num_blocks: int = 4096
    block_size: int = 16
    #: The engine's identity. Tokens of another identity cannot be continued.
    identity: str = "stub"
    #: Tokens of each prompt that are said to come from the prefix cache, if it has more.
    num_cached_tokens: int = 0
    #: File that gets a line "request_id position" per computed token; for tests.
    trace_path: str | None = None


@dataclass(slots=True)
class _StubRequest:
    request_id: str
    prompt: str
    params: Mapping[str, Any]
    token_ids: list[int]
    chat: Mapping[str, Any] | None = None
    num_cached_tokens: int = 0
    sections: Mapping[str, Any] = field(default_factory=dict)
    #: Parts of an explanation of the output.
    explained: Sequence[str] = ()
    has_reported: bool = False
    #: Seconds of `time.monotonic()`.
    added_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    first_token_at: float | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return max(1, len(self.prompt) // 4)

    @property
    def max_tokens(self) -> int:
        return int(self.params.get("max_tokens", _DEFAULT_MAX_TOKENS))

    def num_blocks(self, block_size: int) -> int:
        return -(-(self.num_prompt_tokens + len(self.token_ids) + 1) // block_size)

    def end(
        self, finish_reason: str, error: str | None = None, error_code: str | None = None
    ) -> Finished:
        more: dict[str, Any] = {"finish_reason": finish_reason}
        if error is None and finish_reason != "abort":
            more = extra_output(self.prompt, self.chat, self.params, self.token_ids, finish_reason)
        thoughts, answer = split_thoughts(self.prompt, self.token_ids)
        sections = self.sections
        if self.explained and finish_reason != "abort":
            sections = {"explain": stub_explanation(self.explained, self.prompt, self.token_ids)}
        return Finished(
            request_id=self.request_id,
            text=stub_text(answer),
            reasoning=stub_thoughts(thoughts),
            num_reasoning_tokens=len(thoughts),
            token_ids=list(self.token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=min(self.num_cached_tokens, self.num_prompt_tokens - 1),
            queued_s=self._since_added(self.admitted_at),
            first_token_s=self._since_added(self.first_token_at),
            finished_s=time.monotonic() - self.added_at,
            error=error,
            error_code=error_code,
            sections=sections if error is None else {},
            **more,
        )

    def take_new_text(self) -> tuple[str, str]:
        """Return the text and the thoughts of the last token; of all tokens the first time."""
        thoughts, answer = split_thoughts(self.prompt, self.token_ids)
        if not self.has_reported:
            self.has_reported = True
            return stub_text(answer), stub_thoughts(thoughts)
        # Not the text of all tokens: at 2,000 of them that took as long as half a step.
        piece = stub_text(self.token_ids[-1:])
        if answer:
            return piece, ""
        return "", piece if len(thoughts) > 1 else piece.strip()

    def _since_added(self, at: float | None) -> float | None:
        return None if at is None else at - self.added_at


class StubEngine:
    """Owns the requests; first come, first served, while there are blocks and slots."""

    def __init__(self, config: StubConfig) -> None:
        time.sleep(config.load_time_s)
        self._config = config
        self._waiting: deque[_StubRequest] = deque()
        self._running: dict[str, _StubRequest] = {}
        self._aborted: list[Finished] = []
        self._steps: list[tuple[int, int, float]] = []

    def describe(self) -> Ready:
        """Return the engine's identity and limits."""
        config = self._config
        return Ready(
            config.identity,
            config.num_blocks,
            config.block_size,
            config.max_model_len,
            kinds=("generate", "decide"),
            media=MEDIA_KINDS,
        )

    def add(self, request: AddRequest) -> None:
        """Queue a request.

        Raises:
            RequestRefused: the prompt has a refuse marker or is longer than `max_model_len`, the
                request has an adapter, or its media do not agree with its placeholders.
        """
        if request.lora is not None:
            raise RequestRefused(
                "unsupported_parameter",
                "lora names an adapter, and the stub engine computes none: use the real one",
            )
        if request.steering is not None:
            raise RequestRefused(
                "unsupported_parameter",
                "steering names a vector, and the stub engine adds none: use the real one",
            )
        stub = _StubRequest(
            request.request_id,
            _render(request),
            request.params,
            list(request.resumed_token_ids),
            request.chat,
            self._config.num_cached_tokens,
            sections=_sections(request),
        )
        if stub.sections:
            stub.params = {"max_tokens": 0}
        if request.section == "explain":
            stub.explained = request.section_fields["parts"]
        marker = _MARKER.search(stub.prompt)
        if marker and marker[1] == "refuse":
            raise RequestRefused("unsupported_parameter", "the prompt asks to be refused")
        if stub.num_prompt_tokens >= self._config.max_model_len:
            raise RequestRefused(
                "context_length_exceeded",
                f"prompt has {stub.num_prompt_tokens} tokens, max_model_len is "
                f"{self._config.max_model_len}; shorten it or raise max_model_len",
            )
        self._waiting.append(stub)

    def abort(self, request_id: str) -> None:
        """End a request early; the next step reports its end. Ignore an unknown request."""
        request = self._running.pop(request_id, None)
        if request is None:
            request = next((r for r in self._waiting if r.request_id == request_id), None)
            if request is None:
                return
            self._waiting.remove(request)
        self._aborted.append(request.end("abort"))

    def has_unfinished(self) -> bool:
        """Return whether there is any request to compute or report."""
        return bool(self._waiting or self._running or self._aborted)

    def prepare(self, timeout_s: float) -> bool:
        """Return True: there is nothing to prepare."""
        return True

    def load(self) -> EngineLoad:
        """Return how full the engine is."""
        return EngineLoad(len(self._running), len(self._waiting), self._num_free_blocks())

    def set_draft_corpus(self, name: str, outputs: Sequence[Sequence[int]]) -> None:
        """Ignore the outputs: there are no draft tokens."""

    def drafts(self) -> DraftCounts | None:
        """Return None: there are no draft tokens."""
        return None

    def media_counts(self) -> MediaCounts | None:
        """Return None: there is no tower."""
        return None

    def offload_counts(self) -> OffloadCounts | None:
        """Return None: a stub has no KV cache."""
        return None

    def step(self) -> StepOutput:
        """Generate one token for every running request."""
        num_prompt_tokens = self._admit()
        started_at, num_running = time.monotonic(), len(self._running)
        time.sleep(self._config.step_time_s + num_running * self._config.seq_time_s)
        result = StepOutput()
        for request in list(self._running.values()):
            self._advance(request, result)
        for finished in result.finished:
            del self._running[finished.request_id]
        if num_running:
            num_tokens = len(result.new_outputs) + num_prompt_tokens
            self._steps.append((num_running, num_tokens, time.monotonic() - started_at))
        result.finished += self._aborted
        self._aborted = []
        return result

    def take_work(self) -> EngineWork:
        """Return what was computed since the last call."""
        steps, self._steps = self._steps, []
        return EngineWork(steps)

    def _num_free_blocks(self) -> int:
        size = self._config.block_size
        return self._config.num_blocks - sum(r.num_blocks(size) for r in self._running.values())

    def _admit(self) -> int:
        """Admit requests; return how many prompt tokens they have."""
        num_prompt_tokens = 0
        size = self._config.block_size
        while self._waiting and len(self._running) < self._config.max_num_seqs:
            if self._running and self._waiting[0].num_blocks(size) > self._num_free_blocks():
                break
            request = self._waiting.popleft()
            request.admitted_at = time.monotonic()
            num_prompt_tokens += request.num_prompt_tokens
            self._running[request.request_id] = request
        return num_prompt_tokens

    def _advance(self, request: _StubRequest, result: StepOutput) -> None:
        position = len(request.token_ids)
        if position < request.max_tokens:
            error = _act_on_marker(request.prompt, request.request_id, position)
            if error is not None:
                result.finished.append(request.end("error", *error))
                return
            self._trace(request.request_id, position)
            token_id = stub_token(request.prompt, int(request.params.get("seed") or 0), position)
            request.token_ids.append(token_id)
            request.first_token_at = request.first_token_at or time.monotonic()
            result.new_outputs.append((request.request_id, [token_id], *request.take_new_text()))
        if len(request.token_ids) >= min(request.max_tokens, self._room(request)):
            result.finished.append(request.end("length"))

    def _room(self, request: _StubRequest) -> int:
        """Return how many tokens a request can generate, as in the real engine."""
        return self._config.max_model_len - request.num_prompt_tokens

    def _trace(self, request_id: str, position: int) -> None:
        if self._config.trace_path is not None:
            with open(self._config.trace_path, "a", encoding="utf-8") as file:
                file.write(f"{request_id} {position}\n")


def _sections(request: AddRequest) -> Mapping[str, Any]:
    """Return the section of a request that asks for one.

    Raises:
        RequestRefused: the stub does not make it.
    """
    if request.section in (None, "explain"):
        return {}
    if request.section != "decision":
        raise RequestRefused(
            "unsupported_parameter",
            f"{request.section} is not served by the stub engine; use BATCHMILL_ENGINE=real",
        )
    return {request.section: stub_decision(request.section_fields)}


def _render(request: AddRequest) -> str:
    """Return the prompt's text; media stand in it with their digests, so tokens follow them.

    Raises:
        RequestRefused: the media do not agree with the placeholders.
    """
    messages = [] if request.chat is None else request.chat["messages"]
    if request.section == "decision":
        messages = messages_of(request.section_fields["state"]) or ()
    wanted, given = media_kinds(messages), [each.kind for each in request.media]
    if wanted != given:
        raise RequestRefused(
            "invalid_request",
            f"messages have placeholders of {wanted} and media holds {given}: give one medium for "
            "each placeholder, in the same order",
        )
    if request.chat is not None:
        text = "".join(f"<{each['role']}>{each.get('content', '')}" for each in messages)
        return text + "".join(f"<{each.content_digest().hex()}>" for each in request.media)
    if isinstance(request.prompt, str):
        return request.prompt
    return " ".join(str(token_id) for token_id in request.prompt or ())


def _act_on_marker(prompt: str, request_id: str, position: int) -> tuple[str, str] | None:
    """Act on the prompt's marker if it is due; return an error if only the request must fail."""
    marker = _MARKER.search(prompt)
    if marker is None or position != int(marker[2] or 0):
        return None
    # The id is made of the job's id, the number of the claim and a nonce.
    if marker[3] and int(request_id.split(".")[1]) > int(marker[3]):
        return None
    if marker[1] == "crash":
        os._exit(CRASH_STATUS)
    if marker[1] == "hang":
        while True:
            time.sleep(3600)
    if marker[1] == "raise":
        raise RuntimeError("the prompt asks the stub engine to raise")
    return _MARKED_ERRORS.get(marker[1])
