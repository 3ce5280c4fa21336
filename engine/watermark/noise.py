"""The noise of one watermarked output: the key's where its context is new, else the request's own.

A marked place hashes (secret, the tokens before it) where an unmarked one hashes (seed, position).
The hash of a context behaves like fresh noise the first time, so the distribution of a text is that
of the model. It would not be the second time: the same noise again would favour the same token, and
lead into loops. So a context that occurred before in the output is not marked.

Source: Aaronson and Kirchner 2022 (a watermark in Gumbel noise), Kirchenbauer et al. 2023 (noise
from a window of tokens), Hu et al. 2023 (skipping repeated contexts).
"""

from __future__ import annotations

from collections.abc import Sequence

from .key import CONTEXT_WIDTH, MARKED_POSITION, WatermarkKey


class WatermarkNoise:
    """Decides for each place of one output which seed and position its noise is made of.

    Its state is a function of the output tokens, so a resumed or preempted request, and a step that
    is computed again, find the same noise. The first `CONTEXT_WIDTH` tokens are never marked: the
    prompt is not in the text that a detector sees.
    """

    __slots__ = ("_first_places", "_num_seen", "key")

    def __init__(self, key: WatermarkKey) -> None:
        self.key = key
        # Where each context occurred first: the place of the token after it.
        self._first_places: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def of_next(
        self, output_token_ids: Sequence[int], draft_token_ids: Sequence[int] = ()
    ) -> list[tuple[int, int] | None]:
        """Return the noise of the next token, and of the token after each draft.

        Args:
            output_token_ids: All output tokens; those of the last call, and possibly more.
            draft_token_ids: Tokens that may follow them. They leave no trace here.

        Returns:
            Seed and position for the op `sample`, or None for a place that keeps the request's own.
        """
        self._catch_up(output_token_ids)
        num_tokens = len(output_token_ids)
        tail = [*output_token_ids[-CONTEXT_WIDTH:], *draft_token_ids]
        drafted: set[tuple[int, ...]] = set()
        noise: list[tuple[int, int] | None] = []
        for number in range(len(draft_token_ids) + 1):
            place = num_tokens + number
            end = len(tail) - len(draft_token_ids) + number
            context = tuple(tail[max(0, end - CONTEXT_WIDTH) : end])
            is_new = (
                place >= CONTEXT_WIDTH
                and context not in drafted
                and self._first_places.get(context, place) == place
            )
            drafted.add(context)
            noise.append((self.key.seed_of(context), MARKED_POSITION) if is_new else None)
        return noise

    def _catch_up(self, output_token_ids: Sequence[int]) -> None:
        """Note the contexts of all places up to the last output token."""
        for place in range(max(self._num_seen, CONTEXT_WIDTH), len(output_token_ids)):
            context = tuple(output_token_ids[place - CONTEXT_WIDTH : place])
            self._first_places.setdefault(context, place)
        self._num_seen = max(self._num_seen, len(output_token_ids))
