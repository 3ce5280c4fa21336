"""Compares the logits of a transformers model with our attention and its own, once, at load."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from batchmill.engine.errors import UnsupportedModelError
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.step.step_inputs import StepInputs

from .attention import PAGED, register_paged_attention
from .model import TransformersModel

_BLOCK_SIZE = 4
#: Tokens of two sequences that each step computes. The second step is long, so that its positions
#: are far from what they would be if they were counted along the batch.
_STEPS = ((3, 6), (9, 7))
#: Tolerated error of a row of logits, relative to its norm: rounding stays far below, and a wrong
#: mask, position or head is far above.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
#: Share of the rows that may exceed it: in half precision, rounding occasionally sends a token to
#: another expert.
_OUTLIERS = {torch.float32: 0.0, torch.bfloat16: 0.25, torch.float16: 0.25}


def check_against_own_attention(ours: TransformersModel, model: PreTrainedModel) -> None:
    """Run two short sequences in one batch, in chunks, and compare the logits with the model's own.

    The model keeps our attention.

    Raises:
        UnsupportedModelError: the logits differ from those with the model's own attention.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [sum(cuts) for cuts in zip(*_STEPS, strict=True)]
    sequences = [
        torch.randint(ours.config.vocab_size, (length,), generator=generator).to(ours.device)
        for length in lengths
    ]
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        own = [
            # With its cache, as in generation: layers share keys only then.
            model(input_ids=tokens[None], use_cache=True).logits[0].float()
            for tokens in sequences
        ]
        register_paged_attention()
        model.set_attn_implementation(PAGED)
        paged = _paged_logits(ours, sequences)
    errors = torch.cat(
        [
            (got - want).norm(dim=-1) / (want - want.mean(dim=-1, keepdim=True)).norm(dim=-1)
            for got, want in zip(paged, own, strict=True)
        ]
    )
    # Not "errors > tolerance": a logit that is not finite must not pass.
    within = (errors <= _TOLERANCE[ours.dtype]).float().mean().item()
    if within < 1 - _OUTLIERS[ours.dtype]:
        raise UnsupportedModelError(
            f"sequences in a shared batch get other logits than alone (relative error "
            f"{errors.max():.2g}, at most {_TOLERANCE[ours.dtype]} is allowed): its attention does "
            "not depend on position_ids alone"
        )


def _paged_logits(ours: TransformersModel, sequences: list[Tensor]) -> list[Tensor]:
    """Compute the logits of every token, [length, vocab_size] float32 per sequence."""
    config = ours.config
    blocks_each = -(-max(map(len, sequences)) // _BLOCK_SIZE)
    kv_cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=blocks_each * len(sequences),
        block_size=_BLOCK_SIZE,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=ours.dtype,
        device=ours.device,
    )
    starts = [0] * len(sequences)
    logits: list[list[Tensor]] = [[] for _ in sequences]
    for cuts in _STEPS:
        stops = [start + cut for start, cut in zip(starts, cuts, strict=True)]
        step = torch.empty(sum(cuts), config.vocab_size, device=ours.device)
        ours.forward(_inputs(sequences, starts, stops, blocks_each), kv_cache, step)
        for of_sequence, part in zip(logits, torch.split(step, list(cuts)), strict=True):
            of_sequence.append(part)
        starts = stops
    return [torch.cat(parts) for parts in logits]


def _inputs(
    sequences: list[Tensor], starts: list[int], stops: list[int], blocks_each: int
) -> StepInputs:
    """Build a step over a part of every sequence; sequence i starts at block i * blocks_each."""
    device = sequences[0].device
    spans = list(zip(starts, stops, strict=True))
    positions = torch.cat([torch.arange(*span) for span in spans])
    counts = torch.tensor([stop - start for start, stop in spans])
    first_slots = torch.arange(len(spans)) * blocks_each * _BLOCK_SIZE
    cu_seqlens_q = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    blocks = torch.arange(len(spans) * blocks_each).view(len(spans), blocks_each)
    return StepInputs(
        input_ids=torch.cat(
            [tokens[slice(*span)] for tokens, span in zip(sequences, spans, strict=True)]
        ),
        positions=positions.to(device),
        slot_mapping=(positions + first_slots.repeat_interleave(counts)).to(device),
        block_tables=blocks.int().to(device),
        cu_seqlens_q=cu_seqlens_q.int().to(device),
        seq_lens=torch.tensor(stops, dtype=torch.int32, device=device),
        sample_rows=torch.arange(len(positions), device=device),
        max_query_len=int(counts.max()),
        max_seq_len=max(stops),
    )
