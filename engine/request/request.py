"""A request as the scheduler sees it: its tokens, its blocks and how far it is computed."""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .outputs import RequestMetrics
from .sampling_params import SamplingParams
from .scores import TokenScores

if TYPE_CHECKING:
    from .prompt_lookup import PromptLookup
    from .token_controls import RequestControls


class RequestStatus(enum.Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    #: Waiting again, after its blocks were given to others.
    PREEMPTED = "preempted"
    FINISHED = "finished"


class Request:
    """Owns one request's tokens and progress.

    Invariant: the KV of `token_ids[:num_computed_tokens]` lies in `block_ids` once the launched
    steps are done, and a running request has at least one token that is not computed. There is no
    prefill or decode phase: a step computes some of the tokens that are not computed yet, and
    samples when it reaches the last.

    Attributes:
        request_id: The caller's name for it.
        prompt_token_ids: Never changed.
        output_token_ids: Appended to, never changed otherwise; resumed tokens are in it at once.
        params: The controls it came with.
        seed: Fixes its random draws, 64-bit signed.
        cache_salt: It shares blocks with requests of the same salt only; None is a salt as well.
        max_num_tokens: It is finished when prompt and output together have that many tokens.
        num_computed_tokens: Tokens whose KV is in the cache, or will be by steps that are launched.
        num_pending_tokens: Tokens drawn by launched steps, not known on the host yet.
        num_steps_in_flight: Steps launched with it and not collected.
        block_ids: Its block table.
        num_slots: Tokens that its blocks hold.
        num_releases: How often its blocks were given back: tells one of its stays from another.
        priority: Lower goes first, and may take the place of a higher one that runs.
        rank: What the scheduler orders by, lowest first; fixed when it is added there.
        num_overtaken: How often a later request was admitted before it.
        block_hashes: Chained hashes of its first full blocks, extended as they are needed.
        num_cached_blocks: Leading blocks already in the prefix cache.
        is_kv_finite: Whether its KV is known to be finite: a finite token came out of all of it.
        controls: What its params forbid, favour or penalise; None where they ask for nothing.
        scores: What is reported of its distributions; None where nothing is asked for.
        drafter: Proposes draft tokens; None if it decodes without.
        status: Where it is in its life.
        metrics: Its times and counts, shared with its outputs.
    """

    __slots__ = (
        "block_hashes",
        "block_ids",
        "cache_salt",
        "controls",
        "drafter",
        "is_kv_finite",
        "max_num_tokens",
        "metrics",
        "num_cached_blocks",
        "num_computed_tokens",
        "num_overtaken",
        "num_pending_tokens",
        "num_releases",
        "num_slots",
        "num_steps_in_flight",
        "output_token_ids",
        "params",
        "priority",
        "prompt_token_ids",
        "rank",
        "request_id",
        "scores",
        "seed",
        "status",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        max_num_tokens: int,
        resumed_token_ids: Sequence[int] = (),
        cache_salt: str | None = None,
        controls: RequestControls | None = None,
        scores: TokenScores | None = None,
        drafter: PromptLookup | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = list(prompt_token_ids)
        self.output_token_ids = list(resumed_token_ids)
        self.params = params
        self.seed = seed
        self.cache_salt = cache_salt
        self.max_num_tokens = max_num_tokens
        self.priority = 0
        self.rank = (0.0, 0)
        self.num_overtaken = 0
        self.is_kv_finite = True
        self.controls = controls
        self.scores = scores
        self.drafter = drafter
        self.num_computed_tokens = 0
        self.num_pending_tokens = 0
        self.num_steps_in_flight = 0
        self.block_ids: list[int] = []
        self.num_slots = 0
        self.num_releases = 0
        self.block_hashes: list[bytes] = []
        self.num_cached_blocks = 0
        self.status = RequestStatus.WAITING
        self.metrics = RequestMetrics(
            arrived_at_s=time.monotonic(), num_resumed_tokens=len(self.output_token_ids)
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens drawn or known that are not in the cache; 1 for a request that decodes."""
        return self.num_tokens + self.num_pending_tokens - self.num_computed_tokens

    def token_ids_slice(self, start: int, stop: int) -> list[int]:
        """Tokens `start` to `stop` (exclusive) of prompt and output, without copying the rest."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - num_prompt]


def derive_seed(engine_seed: int, request_id: str) -> int:
    """The seed of a request that names none: the same one in every process and on every host.

    Returns:
        A 64-bit signed integer.
    """
    text = f"{engine_seed}\0{request_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
