"""When copying a KV block between host and device beats computing its tokens again."""

from __future__ import annotations

from collections import deque

#: Time that copies of one step take besides their bytes, seconds: launches, and waiting for the
#: other stream.
COPY_OVERHEAD_S = 50e-6
#: Steps whose speed is remembered.
_NUM_STEPS = 64


class CopyRule:
    """Compares the time to copy blocks with the time to compute their tokens.

    Copying takes `bytes / bytes_per_s`, and `COPY_OVERHEAD_S` once. Computing takes `tokens *
    seconds_per_token`: the fastest of the last 64 steps that computed prompts. The fastest one,
    because a block that is not copied is computed in a step that is full. Before the first such
    step, copying is taken to be faster.

    Both grow with the number of tokens, so the answer is a property of the model and the machine. A
    small model computes a token faster than a bus carries its keys and values.

    Attributes:
        bytes_per_s: Speed of copies in one direction.
    """

    def __init__(self, *, block_bytes: int, block_size: int, bytes_per_s: float) -> None:
        """Take the sizes of a block and the speed of copies.

        Args:
            block_bytes: Bytes of one block on one rank; ranks copy at the same time.
            block_size: Tokens of one block.
            bytes_per_s: Speed of copies in one direction.
        """
        self.bytes_per_s = bytes_per_s
        self._block_copy_s = block_bytes / bytes_per_s
        self._block_size = block_size
        self._seconds_per_token: deque[float] = deque(maxlen=_NUM_STEPS)

    def note_step(self, num_tokens: int, time_s: float) -> None:
        """Learn from a step that computed prompts."""
        self._seconds_per_token.append(time_s / num_tokens)

    @property
    def seconds_per_token(self) -> float | None:
        """Time to compute a token; None before the first step with a prompt."""
        return min(self._seconds_per_token, default=None)

    def pays_to_restore(self, num_blocks: int) -> bool:
        """Return whether copying blocks to the device takes less time than computing them."""
        computed_s = self._compute_s(num_blocks)
        return computed_s is None or COPY_OVERHEAD_S + num_blocks * self._block_copy_s < computed_s

    def pays_to_store(self) -> bool:
        """Return whether a block is worth its way to the host and back, without overheads."""
        computed_s = self._compute_s(1)
        return computed_s is None or 2 * self._block_copy_s < computed_s

    def _compute_s(self, num_blocks: int) -> float | None:
        per_token = self.seconds_per_token
        return None if per_token is None else num_blocks * self._block_size * per_token
