"""Sample the next token of every row: temperature, min-p, top-k, top-p, then Gumbel-max.

    token = argmax(logits / temperature + gumbel(seed, position, token id))   over the kept tokens

The noise is a hash of (seed, position, token id), so there is no generator state: every worker
computes the same token, in any batch, and a small change of the logits seldom changes it.

Source: Gumbel-max, Maddison et al. 2014, "A* Sampling", section 2; MurmurHash3_x86_32, Appleby;
counter noise for sampling as in vLLM's V2 model runner and SGLang's seeded sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, wraps

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.kernels.cpu.bindings import sample_cpp
from batchmill.kernels.reference.sample import sample_reference

from .dispatch import Backend, lazy_triton, select_backend

#: Part of every model identity: raise it with any change that can alter a sampled token.
SAMPLER_VERSION = "gumbel-murmur3-1"

#: Largest Gumbel value: -log of the smallest exponential sample, 2**-32.
_MAX_GUMBEL = np.float32(22.2)
_HASHED_BYTES = np.uint32(16)  # seed low, seed high, position, token id
_LARGEST_UNIFORM = np.float32(1 - 2**-24)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Sample one token per row; each row's result depends on that row alone.

    Min-p is applied first, then top-k, then top-p to the kept tokens, renormalised. Tokens that tie
    with the last one of top-k or top-p are kept too, so the kept set does not depend on a sort's
    order. A row with NaN or +inf gets some valid id: `sample_and_check` tells which rows have one.

    Args:
        logits: [num_rows, vocab_size] float32; -inf forbids a token.
        temperature: [num_rows] float32; 0 takes the most likely token (the lowest id among equals).
        top_k: [num_rows] int64; 0 is off.
        top_p: [num_rows] float32; 1 is off.
        min_p_gaps: [num_rows] float32, `min_p_gap` of each row: how far below the row's largest
            logit a token may be; -inf is off.
        seeds: [num_rows] int64.
        positions: [num_rows] int64; index of the sampled token, from the start of the output.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        [num_rows] int64.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    _check(logits, temperature, top_k, top_p, min_p_gaps, seeds, positions)
    compute = select_backend("sample", _BACKENDS, backend, logits.device)
    return compute(logits, temperature, top_k, top_p, min_p_gaps, seeds, positions)


def sample_and_check(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Sample as `sample` does, and check the logits: on a GPU in the same pass over them.

    Returns:
        The tokens, [num_rows] int64; and `have_finite_maximum` of the logits.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    _check(logits, temperature, top_k, top_p, min_p_gaps, seeds, positions)
    compute = select_backend("sample", _CHECKED_BACKENDS, backend, logits.device)
    return compute(logits, temperature, top_k, top_p, min_p_gaps, seeds, positions)


def have_finite_maximum(logits: Tensor) -> Tensor:
    """Return whether each row has a finite maximum, [num_rows] bool; NaN makes it not finite."""
    if logits.device.type == "cpu":  # numpy, because torch's threads would spin afterwards
        return torch.from_numpy(np.isfinite(logits.numpy().max(axis=-1)))
    return torch.isfinite(logits.amax(dim=-1))


def min_p_gap(min_p: float, temperature: float) -> float:
    """Return how far below the largest logit a token may be to have `min_p` of its probability.

    It is computed once per request, on the host, so that no two backends round it differently.

    Args:
        min_p: Above 0 and up to 1, or 0 for off.
        temperature: Probabilities are compared at this temperature; 0 is greedy.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling", section 3.
    """
    if min_p == 0 or temperature == 0:
        return -math.inf
    return temperature * math.log(min_p)


def sample_numpy(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Compute `sample` on CPU tensors in numpy, for machines without a C++ compiler.

    2 to 10 times as fast as torch's argmax, log and sort.
    """
    rows = logits.numpy()
    temperatures = temperature.tolist()
    if not any(temperatures):
        return torch.from_numpy(rows.argmax(axis=-1))
    states = _murmur_states(seeds.numpy(), positions.numpy())
    tokens = np.empty(len(rows), dtype=np.int64)
    controls = zip(temperatures, top_k.tolist(), top_p.tolist(), min_p_gaps.numpy(), strict=True)
    for row, (heat, k, p, gap) in enumerate(controls):
        logits_of_row = rows[row]
        tokens[row] = logits_of_row.argmax()
        highest = logits_of_row[tokens[row]]
        if heat == 0 or not np.isfinite(highest):
            continue  # NaN and infinities have no distribution; they must not fail the batch
        if gap > -np.inf:
            logits_of_row = np.where(logits_of_row < highest + gap, -np.inf, logits_of_row)
        scaled = logits_of_row / np.float32(heat)
        kept = _kept_token_ids(scaled, k, p)
        tokens[row] = _gumbel_argmax(scaled, kept, states[row])
    return torch.from_numpy(tokens)


_BACKENDS = {
    "reference": sample_reference,
    "numpy": sample_numpy,
    "cpp": sample_cpp,
    "triton": lazy_triton("batchmill.kernels.gpu.sample", "sample_triton", like=sample_reference),
}


def _checked(compute: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `sample_and_check` of a backend that reads the logits twice."""

    @wraps(compute)
    def sample_then_check(logits: Tensor, *controls: Tensor) -> tuple[Tensor, Tensor]:
        return compute(logits, *controls), have_finite_maximum(logits)

    return sample_then_check


_sample_and_check_reference = _checked(sample_reference)
_CHECKED_BACKENDS = {
    "reference": _sample_and_check_reference,
    "numpy": _checked(sample_numpy),
    "cpp": _checked(sample_cpp),
    "triton": lazy_triton(
        "batchmill.kernels.gpu.sample",
        "sample_and_check_triton",
        like=_sample_and_check_reference,
    ),
}


def _check(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> None:
    """Compare shapes and dtypes on the host, without reading any tensor."""
    if logits.dim() != 2 or logits.dtype != torch.float32:
        raise ValueError(
            f"logits must be [num_rows, vocab_size] float32, got {list(logits.shape)} "
            f"{logits.dtype}"
        )
    for name, values, dtype in (
        ("temperature", temperature, torch.float32),
        ("top_k", top_k, torch.int64),
        ("top_p", top_p, torch.float32),
        ("min_p_gaps", min_p_gaps, torch.float32),
        ("seeds", seeds, torch.int64),
        ("positions", positions, torch.int64),
    ):
        if values.shape != logits.shape[:1] or values.dtype != dtype:
            raise ValueError(
                f"{name} must be [{logits.shape[0]}] {dtype}, got {list(values.shape)} "
                f"{values.dtype}"
            )


def _kept_token_ids(scaled: NDArray[np.float32], k: int, p: float) -> NDArray[np.int64] | None:
    """Return the ids that remain after top-k and top-p, or None for all ids."""
    kept = None
    if 0 < k < len(scaled):
        smallest = np.partition(scaled, len(scaled) - k)[len(scaled) - k]
        kept = np.flatnonzero(scaled >= smallest)
    if p < 1:
        values = scaled if kept is None else scaled[kept]
        inside = _nucleus(values, p)
        kept = inside if kept is None else kept[inside]
    return kept


def _nucleus(values: NDArray[np.float32], p: float) -> NDArray[np.int64]:
    """Return the indices of the fewest most likely entries whose probability reaches p.

    Entries below (1 - p) / n of the mass sum to less than 1 - p, so none of them is inside.
    Leaving them out first avoids sorting the vocabulary.
    """
    weights = np.exp(values - values.max())
    total = weights.sum(dtype=np.float64)
    candidates = np.flatnonzero(weights >= np.float32(total * (1 - p) / len(values)))
    descending = np.sort(weights[candidates])[::-1]
    reached = np.cumsum(descending, dtype=np.float64)
    last = min(int(np.searchsorted(reached, p * total)), len(descending) - 1)
    inside: NDArray[np.int64] = candidates[weights[candidates] >= descending[last]]
    return inside


def _gumbel_argmax(
    scaled: NDArray[np.float32], kept: NDArray[np.int64] | None, state: np.uint32
) -> int:
    """Return the id of the kept token with the largest logit plus noise.

    Noise is bounded, so tokens too far below the most likely one plus its noise cannot win: their
    noise is not computed.
    """
    token_blocks = _token_blocks(len(scaled))
    values = scaled if kept is None else scaled[kept]
    best = int(values.argmax())
    best_id = best if kept is None else int(kept[best])
    floor = values[best] + _gumbel(token_blocks[best_id : best_id + 1], state)[0] - _MAX_GUMBEL
    able = np.flatnonzero(values >= floor)
    kept = able if kept is None else kept[able]
    scores = values[able] + _gumbel(token_blocks[kept], state)
    return int(kept[scores.argmax()])


def _gumbel(token_blocks: NDArray[np.uint32], state: np.uint32) -> NDArray[np.float32]:
    """Return the Gumbel noise of tokens in the row whose seed and position hash to `state`."""
    hashed = token_blocks ^ state
    hashed = _rotate_left(hashed, 13)
    hashed *= np.uint32(5)
    hashed += np.uint32(0xE6546B64)
    hashed ^= _HASHED_BYTES
    hashed ^= hashed >> np.uint32(16)
    hashed *= np.uint32(0x85EBCA6B)
    hashed ^= hashed >> np.uint32(13)
    hashed *= np.uint32(0xC2B2AE35)
    hashed ^= hashed >> np.uint32(16)
    # 31 bits, so that the conversion is a signed one. The large values of the noise decide; they
    # come from uniforms near 0, where float32 is fine-grained. 1 itself is excluded.
    uniform = (hashed & np.uint32(0x7FFFFFFF)).view(np.int32).astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(2**-31)
    np.minimum(uniform, _LARGEST_UNIFORM, out=uniform)
    exponential = np.log1p(np.negative(uniform, out=uniform), out=uniform)
    np.log(np.negative(exponential, out=exponential), out=exponential)
    return np.negative(exponential, out=exponential)


def _murmur_states(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return MurmurHash3's state after the blocks (seed low, seed high, position), [num_rows]."""
    low_bits = np.int64(0xFFFFFFFF)
    state = np.zeros(len(seeds), dtype=np.uint32)
    for block in (seeds & low_bits, (seeds >> np.int64(32)) & low_bits, positions & low_bits):
        state ^= _scramble(block.astype(np.uint32))
        state = _rotate_left(state, 13)
        state *= np.uint32(5)
        state += np.uint32(0xE6546B64)
    return state


@lru_cache(maxsize=8)
def _token_blocks(vocab_size: int) -> NDArray[np.uint32]:
    """Return every token id, scrambled like a block of MurmurHash3; the same for all rows."""
    blocks = _scramble(np.arange(vocab_size, dtype=np.uint32))
    blocks.flags.writeable = False
    return blocks


def _scramble(block: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Scramble a 32-bit block as MurmurHash3 does before it enters the state."""
    return _rotate_left(block * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)


def _rotate_left(values: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    return (values << np.uint32(bits)) | (values >> np.uint32(32 - bits))
