"""A request as the scheduler sees it: its tokens, its blocks and its progress."""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .outputs import RequestMetrics
from .sampling_params import SamplingParams
from .scores import TokenScores

if TYPE_CHECKING:
    from batchmill.engine.drafts.drafter import Drafter
    from batchmill.engine.watermark.noise import WatermarkNoise

    from .adapter import Adapter
    from .media import PromptMedia
    from .pooling import PooledStates
    from .steering import Steering
    from .token_controls import RequestControls


class RequestStatus(enum.Enum):
    """Stages in the life of a request."""

    WAITING = "waiting"
    RUNNING = "running"
    #: Waiting again, after its blocks were given to other requests.
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Guidance:
    """Links the two requests of one guided output; both have one.

    The guide has the negative prompt, and the tokens of the guided request as its output. Both are
    sampled in the same steps, where their logits are combined; only the guided one is reported.

    Source: Sanchez et al. 2023, "Stay on topic with Classifier-Free Guidance", section 2.2.
    """

    #: 1 is the guided request's own distribution; above it, further away from the guide's.
    scale: float
    #: The other request of the two.
    partner: Request
    #: Whether this is the link of the guide.
    is_guide: bool


class Request:
    """Owns one request's tokens and progress.

    Invariant: once the launched steps are done, the KV of `token_ids[:num_computed_tokens]` is in
    `block_ids`, and a running request has at least one token that is not computed. There is no
    prefill or decode phase: a step computes some of the uncomputed tokens, and samples when it
    reaches the last.

    Attributes:
        request_id: Id that the caller gave it.
        prompt_token_ids: Never changed.
        output_token_ids: Only ever appended to; begins with the resumed tokens.
        params: Its sampling parameters.
        seed: Fixes its samples, 64-bit signed.
        adapter: Its LoRA adapter, whose blocks it shares with no other; None if it has none.
        steering: What is added to its hidden states, which makes its blocks its own as well; None
            if nothing is.
        cache_salt: It shares blocks only with requests of the same salt; None is a salt as well.
        media: The pictures and sounds of its prompt; None if it has none, or has ended.
        max_num_tokens: It is finished when prompt and output together have this many tokens.
        num_computed_tokens: Tokens whose KV is in the cache, or will be by steps that are launched.
        num_pending_tokens: Tokens sampled by launched steps, not known on the host yet.
        num_steps_in_flight: Steps launched with it and not collected.
        block_ids: Its block table.
        num_slots: Tokens that its blocks hold.
        num_releases: How often its blocks were released: identifies one stay among several.
        priority: Lower goes first, and may preempt a running request of a higher number.
        rank: Sort key of the scheduler, lowest first; fixed when it is added there.
        num_overtaken: How often a later request was admitted before it.
        block_hashes: Chained hashes of its first full blocks, extended as they are needed.
        num_cached_blocks: Leading blocks already in the prefix cache.
        is_kv_finite: Whether its KV is known to be finite: all of it led to a finite token.
        controls: Its controls that depend on its tokens; None if it has none.
        scores: Scores of its tokens; None if it asks for none.
        pooling: Gathers the states of a pooled request, which generates nothing: its only token
            stands for its vector. None if it generates.
        guidance: Its link to the request that guides it, or that it guides; None if there is none.
        drafter: Proposes draft tokens; None if it decodes without them.
        watermark: Marks its output; None if it is sampled with its seed alone.
        status: Stage of its life.
        metrics: Its times and counts, shared with its outputs.
    """

    __slots__ = (
        "adapter",
        "block_hashes",
        "block_ids",
        "cache_salt",
        "controls",
        "drafter",
        "guidance",
        "is_kv_finite",
        "max_num_tokens",
        "media",
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
        "pooling",
        "priority",
        "prompt_token_ids",
        "rank",
        "request_id",
        "scores",
        "seed",
        "status",
        "steering",
        "watermark",
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
        drafter: Drafter | None = None,
        pooling: PooledStates | None = None,
        watermark: WatermarkNoise | None = None,
        adapter: Adapter | None = None,
        media: PromptMedia | None = None,
        steering: Steering | None = None,
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
        self.pooling = pooling
        self.watermark = watermark
        self.adapter = adapter
        self.media = media
        self.steering = steering
        self.guidance: Guidance | None = None
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

    def guide_by(self, guide: Request, scale: float) -> None:
        """Let another request guide this one."""
        self.guidance = Guidance(scale, guide, is_guide=False)
        guide.guidance = Guidance(scale, self, is_guide=True)

    @property
    def is_guide(self) -> bool:
        """Whether it only guides another request, and has no output of its own."""
        return self.guidance is not None and self.guidance.is_guide

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known or sampled that are not in the cache; 1 for a request that decodes."""
        return self.num_tokens + self.num_pending_tokens - self.num_computed_tokens

    def token_ids_slice(self, start: int, stop: int) -> list[int]:
        """Return tokens `start` to `stop` (exclusive) of prompt and output; copies no others."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - num_prompt]


def derive_seed(engine_seed: int, request_id: str) -> int:
    """Return the seed of a request that names none: the same in every process, on every host.

    Returns:
        A 64-bit signed integer.
    """
    text = f"{engine_seed}\0{request_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
