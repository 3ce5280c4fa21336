"""From sampled tokens to outputs: the text, the stop conditions, and what each report adds."""

from __future__ import annotations

import time
from dataclasses import replace

from batchmill.engine.contract.structure_check import TOO_COMPLEX
from batchmill.engine.request.outputs import (
    FinishReason,
    OutputSource,
    RequestEnd,
    RequestFailure,
    RequestOutput,
)
from batchmill.engine.request.request import Request
from batchmill.engine.request.thinking_budget import ThinkingBudget
from batchmill.engine.text.detokenizer import TextStream
from batchmill.engine.text.stop_strings import StopStrings
from batchmill.engine.text.structure import Structure
from batchmill.engine.text.tool_calls import ToolCall
from batchmill.engine.text.tool_reader import ToolCallReader


class OutputText:
    """The final text of one output, in pieces; text that may still change is held back."""

    def __init__(
        self,
        stream: TextStream,
        stop_strings: StopStrings | None,
        *,
        echoed: str = "",
        tool_calls: ToolCallReader | None = None,
        thinking: ThinkingBudget | None = None,
    ) -> None:
        """Begin a text.

        Args:
            stream: Turns tokens into text.
            stop_strings: Finds stop strings; None if there are none.
            echoed: The text begins with it; it is not searched for stop strings or calls.
            tool_calls: Takes the calls out of the text; None if there can be none.
            thinking: Budget of its thoughts, which `tool_calls` finds; None if they have none.
        """
        self.pieces: list[str] = [echoed] if echoed else []
        #: The stream, if its text needs no search for stop strings or calls; else None.
        self.plain_stream = stream if stop_strings is None and tool_calls is None else None
        #: Tokens of thoughts that are not in the text: each that begins, continues or ends one.
        self.num_thought_tokens = 0
        self._stream = stream
        self._stop_strings = stop_strings
        self._reader = tool_calls
        self._thinking = thinking

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls, once the text has ended."""
        return () if self._reader is None else self._reader.calls

    @property
    def thought_pieces(self) -> list[str]:
        """The thoughts that were taken out of the text, in pieces; only ever appended to."""
        thoughts = None if self._reader is None else self._reader.thoughts
        return [] if thoughts is None else thoughts.pieces

    @property
    def is_for_single_call(self) -> bool:
        """Whether the output ends with its first call."""
        return self._reader is not None and self._reader.is_for_single_call

    @property
    def has_call(self) -> bool:
        """Whether the text has a call so far."""
        return self._reader is not None and self._reader.has_call

    def append(self, token_id: int, *, may_stop: bool) -> str | None:
        """Append one token.

        Args:
            token_id: The token.
            may_stop: Whether a stop string may end the output here.

        Returns:
            The stop string that ends the output, or None.
        """
        was_thinking = self._is_thinking
        text, stop = self._stream.append(token_id), None
        if self._stop_strings is not None:
            if may_stop:
                text, stop = self._stop_strings.append(text)
            else:
                text = self._stop_strings.flush() + text
        self._add(text)
        if was_thinking or self._is_thinking:
            self.num_thought_tokens += 1
        if self._thinking is not None and self._reader is not None:
            self._thinking.append(self._reader.end_of_thought)
        if stop is not None:
            self._end_calls()
        return stop

    def flush(self) -> None:
        """End the text with the part that was held back."""
        held = "" if self._stop_strings is None else self._stop_strings.flush()
        self._add(held + self._stream.flush())
        self._end_calls()

    @property
    def _is_thinking(self) -> bool:
        return self._reader is not None and self._reader.is_thinking

    def _add(self, text: str) -> None:
        if self._reader is not None and text:
            text = self._reader.append(text)
        if text:
            self.pieces.append(text)

    def _end_calls(self) -> None:
        if self._reader is not None and (text := self._reader.finish()):
            self.pieces.append(text)


class OutputTracker:
    """Follows one request's output tokens until it finishes, and reports what is new.

    Its state is a function of the prompt and the output tokens, so replaying a resumed request's
    tokens restores it.
    """

    def __init__(
        self, request: Request, text: OutputText | None, eos_token_ids: frozenset[int]
    ) -> None:
        params = request.params
        self.request = request
        #: Whether the scheduler has the request.
        self.is_scheduled = False
        self._structure = None if request.controls is None else request.controls.structure
        #: None until the request finishes.
        self.finish_reason: FinishReason | None = None
        self._ends_with_first_call = text is not None and text.is_for_single_call
        self._end: RequestEnd | None = None
        self._text = text
        self._plain_stream = None if text is None else text.plain_stream
        self._eos_token_ids = frozenset[int]() if params.ignore_eos else eos_token_ids
        self._stop_token_ids = frozenset(params.stop_token_ids or ())
        self._ending_token_ids = self._eos_token_ids | self._stop_token_ids
        self._max_output_tokens = request.max_num_tokens - len(request.prompt_token_ids)
        self._metrics = request.metrics
        self._awaits_first_token = True
        self._pieces: list[str] = [] if text is None else text.pieces
        self._thought_pieces: list[str] = [] if text is None else text.thought_pieces
        guide = None if request.guidance is None else request.guidance.partner
        self._source = OutputSource(
            request.request_id,
            request.prompt_token_ids,
            request.output_token_ids,
            self._pieces,
            request.metrics,
            request.scores,
            request.pooling,
            None if request.watermark is None else request.watermark.key.name,
            self._thought_pieces,
            0 if guide is None else len(guide.prompt_token_ids),
            None if guide is None else guide.metrics,
        )
        self._num_tokens = 0
        self._num_reported_tokens = 0
        self._num_reported_pieces = 0
        self._num_reported_thoughts = 0
        # `time.monotonic()` at the report of the latest token; unused before there is one.
        self._last_token_at_s = 0.0

    @property
    def has_pending_scores(self) -> bool:
        """Whether tokens that the request came with have no scores yet."""
        scores = self.request.scores
        return scores is not None and scores.is_pending

    @property
    def failure(self) -> RequestFailure | None:
        """Why the request failed; None if it did not."""
        return None if self._end is None else self._end.error

    def replay(self) -> int:
        """Append the tokens that the request was resumed with, without reporting them.

        Returns:
            The number of appended tokens: fewer than there are if the request finishes before.
        """
        for token_id in self.request.output_token_ids:
            if self.finish_reason is not None:
                break
            self.append_token(token_id)
        self._num_reported_tokens = self._num_tokens
        # An echoed prompt was reported together with the first of the resumed tokens.
        self._num_reported_pieces = len(self._pieces) if self._num_tokens else 0
        self._num_reported_thoughts = len(self._thought_pieces)
        return self._num_tokens

    def append_token(self, token_id: int) -> bool:
        """Append the next output token: extend the text, and finish if a stop condition holds.

        Precedence: end-of-text and stop tokens, then the structure's end, stop strings, and the
        length.

        Returns:
            Whether the request has finished.
        """
        self._num_tokens += 1
        if (
            self._structure is not None
            or token_id in self._ending_token_ids
            or self._num_tokens >= self._max_output_tokens
        ):
            self._append_possibly_last(token_id)
        elif self._plain_stream is not None:
            piece = self._plain_stream.append(token_id)
            if piece:
                self._pieces.append(piece)
            return False
        elif self._text is not None:
            may_stop = self._num_tokens > self.request.params.min_tokens
            stop = self._text.append(token_id, may_stop=may_stop)
            if stop is not None:
                self._finish(RequestEnd(FinishReason.STOP, stop))
            elif self._ends_with_first_call and self._text.has_call:
                self.finish(FinishReason.STOP)
        return self._end is not None

    def _append_possibly_last(self, token_id: int) -> None:
        """Append a token, already counted, that may end the output whatever its text is."""
        may_stop = self._num_tokens > self.request.params.min_tokens
        if self._structure is not None and not self._follows_structure(token_id):
            self.finish(FinishReason.ERROR, _structure_failure(self._structure))
        elif may_stop and token_id in self._eos_token_ids and self._may_end:
            self._finish_at_token(token_id, None)
        elif may_stop and token_id in self._stop_token_ids:
            self._finish_at_token(token_id, token_id)
        else:
            stop = None if self._text is None else self._text.append(token_id, may_stop=may_stop)
            if self._structure is not None and self._structure.is_complete:
                self.finish(FinishReason.STOP)
            elif stop is not None:
                self._finish(RequestEnd(FinishReason.STOP, stop))
            elif self._ends_with_first_call and self._text is not None and self._text.has_call:
                self.finish(FinishReason.STOP)
            elif self._num_tokens >= self._max_output_tokens:
                self.finish(FinishReason.LENGTH)

    def finish(self, reason: FinishReason, error: RequestFailure | None = None) -> None:
        """End the request for a reason other than its tokens, and flush its text."""
        if self._text is not None:
            self._text.flush()
        self._finish(RequestEnd(reason, error=error))

    def take_output(self, now_s: float) -> RequestOutput:
        """Return an output with what is new since the last call.

        Args:
            now_s: `time.monotonic()`.
        """
        num_tokens, num_old_tokens = self._num_tokens, self._num_reported_tokens
        if num_tokens > num_old_tokens:
            self._num_reported_tokens = num_tokens
            self._last_token_at_s = now_s
            if self._awaits_first_token:
                self._awaits_first_token = False
                self._metrics.first_token_s = now_s - self._metrics.arrived_at_s
        num_old_pieces = self._num_reported_pieces
        num_pieces = self._num_reported_pieces = len(self._pieces)
        num_old_thoughts = self._num_reported_thoughts
        num_thoughts = self._num_reported_thoughts = len(self._thought_pieces)
        end = self._end
        if end is not None:
            self._set_inter_token_s()
        return RequestOutput(
            None if end is None else end.reason,
            self._source,
            end,
            num_old_tokens,
            num_tokens,
            num_old_pieces,
            num_pieces,
            num_old_thoughts,
            num_thoughts,
        )

    def peek_output(self) -> RequestOutput:
        """Return an output of the request's current state, in which nothing is new."""
        num_tokens, num_pieces = self._num_tokens, len(self._pieces)
        num_thoughts = len(self._thought_pieces)
        return RequestOutput(
            self.finish_reason,
            self._source,
            self._end,
            num_tokens,
            num_tokens,
            num_pieces,
            num_pieces,
            num_thoughts,
            num_thoughts,
        )

    def _set_inter_token_s(self) -> None:
        metrics = self._metrics
        num_new = self._num_tokens - metrics.num_resumed_tokens
        if metrics.first_token_s is not None and num_new > 1:
            last_token_s = self._last_token_at_s - metrics.arrived_at_s
            metrics.inter_token_s = (last_token_s - metrics.first_token_s) / (num_new - 1)

    @property
    def _may_end(self) -> bool:
        """Whether an end token may end the output: a grammar may have one in its middle."""
        return self._structure is None or self._structure.can_end

    def _follows_structure(self, token_id: int) -> bool:
        assert self._structure is not None
        if token_id in self._eos_token_ids and self._structure.can_end:
            return True
        return self._structure.append(token_id)

    def _finish_at_token(self, token_id: int, stop_reason: int | None) -> None:
        if self._text is not None:
            if self.request.params.include_stop_str_in_output:
                self._text.append(token_id, may_stop=False)
            self._text.flush()
        self._finish(RequestEnd(FinishReason.STOP, stop_reason))

    def _finish(self, end: RequestEnd) -> None:
        if self._text is not None and self._text.num_thought_tokens:
            num_tokens = self._text.num_thought_tokens
            end = replace(end, num_reasoning_tokens=num_tokens)
        if self._text is not None and self._text.tool_calls:
            is_stop = end.reason is FinishReason.STOP
            reason = FinishReason.TOOL_CALLS if is_stop else end.reason
            end = replace(end, reason=reason, tool_calls=self._text.tool_calls)
        self._end, self.finish_reason = end, end.reason
        self._metrics.finished_s = time.monotonic() - self._metrics.arrived_at_s


class PooledTracker(OutputTracker):
    """Follows a pooled request, whose only token stands for its vector and is not reported."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, None, frozenset())

    def append_token(self, token_id: int) -> bool:
        """Finish: the vector is there."""
        self.finish(FinishReason.STOP)
        return True


def _structure_failure(structure: Structure) -> RequestFailure:
    if structure.limit_error is not None:
        return RequestFailure(TOO_COMPLEX, structure.limit_error)
    return RequestFailure("engine_error", "a token does not follow the structured output")
