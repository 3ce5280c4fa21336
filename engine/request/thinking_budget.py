"""A budget of tokens for the thoughts of one output: once it is spent, the thought is ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class ThinkingBudget:
    """Counts the tokens of an output's thoughts, and forces the end of a thought beyond them.

    The tokens that write the beginning and the end of a thought are not counted, except those of an
    end that is not complete yet. All thoughts of an output share the budget.

    Its state is a function of the output tokens: replaying a resumed request's tokens restores it.

    Source: `thinking_token_budget` of vLLM.
    """

    __slots__ = ("_end_of_thought", "_end_token_ids", "_forced", "_is_closing", "_num_left")

    def __init__(
        self,
        num_tokens: int,
        end_token_ids: Mapping[str, Sequence[int]],
        *,
        end_of_thought: str = "",
    ) -> None:
        """Begin an output.

        Args:
            num_tokens: Most tokens of its thoughts; 0 ends each where it begins.
            end_token_ids: The tokens of each text that ends a thought.
            end_of_thought: What ends the thought that the prompt began; "" if it began none.
        """
        self._num_left = num_tokens
        self._end_token_ids = end_token_ids
        self._end_of_thought = ""
        self._forced: tuple[int, ...] = ()
        # All of the end is written, and the text that is known may lack a part of it.
        self._is_closing = False
        self._enter(end_of_thought)

    @property
    def forced_token_id(self) -> int | None:
        """The only token that may come next; None if the model may choose."""
        return self._forced[0] if self._forced else None

    def append(self, end_of_thought: str) -> None:
        """Count one output token.

        Args:
            end_of_thought: What ends the thought that the output is in after it; "" if in none.
        """
        if not end_of_thought:
            self._forced, self._is_closing = (), False
            self._end_of_thought = ""
        elif self._forced:
            self._forced = self._forced[1:]
            self._is_closing = not self._forced
        elif not self._is_closing:
            self._num_left -= bool(self._end_of_thought)
            self._enter(end_of_thought)

    def _enter(self, end_of_thought: str) -> None:
        self._end_of_thought = end_of_thought
        if end_of_thought and self._num_left <= 0:
            self._forced = tuple(self._end_token_ids[end_of_thought])
