"""Filters over whole rows of logits: masks, min-p and locally typical sampling.

On the CPU, numpy computes them: a row of 50,000 logits is too little work for torch's threads,
which would spin afterwards and take cores from the model's kernels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.step.upload import Uploader
from batchmill.kernels.ops.sample import min_p_gap

#: Bins over the range of distances, so that only the bin in which the mass is reached is sorted.
_NUM_BINS = 4096


def uses_numpy(logits: Tensor) -> bool:
    """Return whether numpy filters these logits in place; otherwise torch does."""
    return logits.device.type == "cpu"


def are_empty(logits: Tensor, rows: list[int]) -> Tensor:
    """Return which rows have all their tokens forbidden, [num_rows] bool, on the logits' device.

    Args:
        logits: [num_rows, vocab_size] float32.
        rows: The rows to look at; on a CPU the others count as not empty.
    """
    if uses_numpy(logits):
        found = torch.zeros(len(logits), dtype=torch.bool)
        for row in rows:
            found[row] = bool(logits[row].numpy().max() == -np.inf)
        return found
    return logits.amax(dim=-1) == -torch.inf


def keep_masked(logits: Tensor, rows: list[int], masks: NDArray[np.int32]) -> None:
    """Forbid the tokens whose bit is not set.

    Args:
        logits: [num_rows, vocab_size] float32, changed in place.
        rows: The rows that have a mask.
        masks: [len(rows), ceil(vocab_size / 32)] int32, one bit per token, lowest first.
    """
    vocab_size = logits.shape[1]
    if uses_numpy(logits):
        bits = np.unpackbits(masks.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
        values = logits.numpy()
        for row, allowed in zip(rows, bits, strict=True):
            np.copyto(values[row], -np.inf, where=allowed == 0)
        return
    words, index = Uploader(logits.device).upload(masks, np.array(rows, dtype=np.int64))
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed_bits = ((words[:, :, None] >> shifts) & 1).flatten(1)[:, :vocab_size]
    logits[index] = logits[index].masked_fill(allowed_bits == 0, -torch.inf)


def keep_only(logits: Tensor, rows: list[int], allowed: list[NDArray[np.int64]]) -> None:
    """Forbid all but some token ids, in place.

    Args:
        logits: [num_rows, vocab_size] float32, changed in place.
        rows: The rows that have a list of allowed tokens.
        allowed: Their token ids, each [num_allowed] int64.
    """
    if uses_numpy(logits):
        for row, token_ids in zip(rows, allowed, strict=True):
            values = logits[row].numpy()
            kept_values = values[token_ids]
            values.fill(-np.inf)
            values[token_ids] = kept_values
        return
    whole, repeated, columns = Uploader(logits.device).upload(
        np.array(rows, dtype=np.int64),
        np.repeat(np.array(rows, dtype=np.int64), [len(each) for each in allowed]),
        np.concatenate(allowed),
    )
    kept = logits[repeated, columns]
    logits.index_fill_(0, whole, -torch.inf)
    logits[repeated, columns] = kept


def keep_min_p(
    logits: Tensor, rows: list[int], min_p: list[float], temperatures: list[float]
) -> None:
    """Forbid tokens less probable than `min_p` times the likeliest of their row, in place.

    Args:
        logits: [num_rows, vocab_size] float32, changed in place.
        rows: The rows that have a `min_p`.
        min_p: One per row, above 0.
        temperatures: One per row; probabilities are compared at this temperature.
    """
    gaps = np.array(list(map(min_p_gap, min_p, temperatures)), dtype=np.float32)
    if uses_numpy(logits):
        for row, gap in zip(rows, gaps, strict=True):
            values = logits[row].numpy()
            np.copyto(values, -np.inf, where=values < values.max() + gap)
        return
    index, gaps_there = Uploader(logits.device).upload(np.array(rows, dtype=np.int64), gaps)
    chosen = logits.index_select(0, index)
    least = chosen.amax(dim=-1) + gaps_there
    logits.index_copy_(0, index, chosen.masked_fill_(chosen < least[:, None], -torch.inf))


def keep_typical(
    logits: Tensor, rows: list[int], masses: list[float], temperatures: list[float]
) -> None:
    """Keep the tokens whose surprisal is nearest to the entropy until they reach a mass, in place.

    Args:
        logits: [num_rows, vocab_size] float32, changed in place.
        rows: The rows that have a `typical_p`.
        masses: One per row, below 1.
        temperatures: One per row, above 0.

    Source: Meister et al. 2023, "Locally Typical Sampling", section 3.
    """
    if uses_numpy(logits):
        for row, mass, temperature in zip(rows, masses, temperatures, strict=True):
            values = logits[row].numpy()
            if np.isfinite(values.max()):  # NaN, or a row without tokens, has no distribution
                np.copyto(values, -np.inf, where=~_typical_numpy(values, mass, temperature))
        return
    index, wanted, heat = Uploader(logits.device).upload(
        np.array(rows, dtype=np.int64),
        np.array(masses, dtype=np.float32)[:, None],
        np.array(temperatures, dtype=np.float32)[:, None],
    )
    chosen = logits.index_select(0, index)
    logits.index_copy_(0, index, drop_untypical(chosen, wanted, heat))


def drop_untypical(logits: Tensor, masses: Tensor, temperatures: Tensor) -> Tensor:
    """Forbid the tokens that `keep_typical` drops, in place, and return the logits.

    Args:
        logits: [num_rows, vocab_size] float32.
        masses: [num_rows, 1] float32; above 1 keeps all tokens.
        temperatures: [num_rows, 1] float32, above 0.
    """
    log_probs = torch.log_softmax(logits / temperatures, dim=-1)
    probs = log_probs.exp()
    # A forbidden token has probability 0, and 0 * -inf is not a number.
    entropy = -(probs * log_probs.nan_to_num(neginf=0.0)).sum(dim=-1, keepdim=True)
    distances = (-log_probs - entropy).abs()
    ascending, order = distances.sort(dim=-1)
    reached = probs.gather(1, order).cumsum(dim=-1)
    last = (reached < masses).sum(dim=-1, keepdim=True).clamp(max=logits.shape[1] - 1)
    farthest = ascending.gather(1, last)
    return logits.masked_fill_(distances > farthest, -torch.inf)


def _typical_numpy(
    values: NDArray[np.float32], mass: float, temperature: float
) -> NDArray[np.bool]:
    """Return which tokens are typical, [vocab_size]; sort only a small part of them."""
    scaled = values / np.float32(temperature)
    scaled -= scaled.max()
    weights = np.exp(scaled)
    total = float(weights.sum(dtype=np.float64))
    surprisals = np.float32(math.log(total)) - scaled
    possible = np.flatnonzero(weights)
    probs = weights[possible].astype(np.float64) / total
    distances = np.abs(surprisals[possible] - np.float32(probs @ surprisals[possible]))
    # Bin the tokens by distance; the mass is reached inside one of the bins.
    scale = _NUM_BINS / max(float(distances.max()), 1e-6)
    bins = np.minimum((distances * scale).astype(np.int64), _NUM_BINS - 1)
    reached = np.cumsum(np.bincount(bins, weights=probs, minlength=_NUM_BINS))
    bin_ = min(int(np.searchsorted(reached, mass)), int(bins.max()))
    inside = np.flatnonzero(bins == bin_)
    inside = inside[np.argsort(distances[inside], kind="stable")]
    before = reached[bin_ - 1] if bin_ else 0.0
    last = int(np.searchsorted(before + np.cumsum(probs[inside]), mass))
    limit = distances[inside[min(last, len(inside) - 1)]]
    typical = np.zeros(len(values), dtype=np.bool_)
    typical[possible[distances <= limit]] = True
    return typical
