"""One row of arrays per request, kept from step to step: its controls and its last token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch
from batchmill.kernels.ops.sample import min_p_gap

#: The least `top_p` that float32 holds as a normal number. Smaller ones, such as 1e-50, would be
#: 0, at which no token is kept; the likeliest one should be.
_LEAST_TOP_P = float(np.finfo(np.float32).tiny)


class RequestRows:
    """Assigns a row to each request, which holds its controls and the last token sampled for it.

    A row is assigned with a request's first chunk and filled once; decoding reads it with one
    indexed load for the whole batch. Rows are a cache: if none is free, the rows of requests
    outside the batch are reassigned, and a request that lost its row gets another one with its next
    chunk.

    Invariant: a request that decodes had a chunk, or decoded, in a step launched after its last
    admission. So it still has its row, and `last_tokens` has its last token.

    Attributes:
        num_rows: Most requests of one step.
        last_tokens: [num_rows + 1] int64 on the device: the last token sampled for each row's
            request, which need not be known on the host yet. Row `num_rows` is unused padding.
        temperature: [num_rows] float32, on the host like all that follow.
        top_k: [num_rows] int64.
        top_p: [num_rows] float32.
        min_p_gaps: [num_rows] float32; -inf where another filter has to go between `min_p` and the
            sampler (`LogitsProcessor`), or none is asked for.
        seeds: [num_rows] int64.
        num_prompt_tokens: [num_rows] int64.
        is_plain: [num_rows] bool: whether these numbers are all the controls of the request, and
            none of its tokens are scored or marked.
        position_offset: [num_rows] int64: `PromptMedia.position_offset`, 0 without media.
        follows_tokens: [num_rows] bool: whether sampling needs the request's tokens on the host.
        num_releases: [num_rows] int64: `Request.num_releases` when the row's block table was
            begun; -1 if it was not. A difference means that the table is stale.

    Source: stable rows per request, as in vLLM's second model runner; one row index per request in
    SGLang's request pool.
    """

    def __init__(self, num_rows: int, device: torch.device | str) -> None:
        self.num_rows = num_rows
        self.last_tokens: Tensor = torch.zeros(num_rows + 1, dtype=torch.int64, device=device)
        self.temperature = np.zeros(num_rows, dtype=np.float32)
        self.top_k = np.zeros(num_rows, dtype=np.int64)
        self.top_p = np.ones(num_rows, dtype=np.float32)
        self.min_p_gaps = np.full(num_rows, -np.inf, dtype=np.float32)
        self.seeds = np.zeros(num_rows, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(num_rows, dtype=np.int64)
        self.position_offset = np.zeros(num_rows, dtype=np.int64)
        self.is_plain = np.ones(num_rows, dtype=np.bool_)
        self.follows_tokens = np.zeros(num_rows, dtype=np.bool_)
        self.num_releases = np.full(num_rows, -1, dtype=np.int64)
        self._row_by_request: dict[Request, int] = {}
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._batch: ScheduledBatch | None = None
        self._decodes: tuple[Request, ...] = ()
        self._decode_rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._decode_starts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def rows_of(self, batch: ScheduledBatch) -> NDArray[np.int64]:
        """Return the rows of a batch's requests, in its order, [num_seqs] int64.

        The array is the one of the step before if the same requests just continue to decode.
        """
        if batch is self._batch:
            return self._rows
        self._decode_starts = np.array(batch.decode_starts, dtype=np.int64)
        if batch.decodes != self._decodes:
            rows = [self._row_by_request[each] for each in batch.decodes]
            self._decode_rows = np.array(rows, dtype=np.int64)
            self._decodes = batch.decodes
        self._rows = self._decode_rows
        if batch.chunks:
            rows = [self._get_or_fill(item.request, batch) for item in batch.chunks]
            self._rows = np.concatenate([self._decode_rows, np.array(rows, dtype=np.int64)])
        self._batch = batch
        return self._rows

    def decode_starts(self, batch: ScheduledBatch) -> NDArray[np.int64]:
        """Return `batch.decode_starts` as an array, [num_decodes] int64."""
        self.rows_of(batch)
        return self._decode_starts

    def sampling_rows_of(self, batch: ScheduledBatch) -> NDArray[np.int64]:
        """Return the rows of `batch.request_of_each_row`, [num_sampled] int64."""
        rows = self.rows_of(batch)
        if all(item.num_sampled_tokens == 1 for item in batch.chunks):
            return rows
        counts = [1] * len(batch.decodes) + [item.num_sampled_tokens for item in batch.chunks]
        return np.repeat(rows, counts)

    @contextmanager
    def restored_on_failure(self) -> Iterator[None]:
        """Put `last_tokens` back if the work inside fails, because its step is computed again."""
        before = self.last_tokens.clone()
        try:
            yield
        except BaseException:
            self.last_tokens.copy_(before)
            raise

    def put_last_token(self, request: Request, token_id: int) -> None:
        """Set the last accepted token of a request with draft tokens, once the host knows it."""
        self.last_tokens[self._row_by_request[request]] = token_id

    def _get_or_fill(self, request: Request, batch: ScheduledBatch) -> int:
        """Return the row of a request with a chunk; fill it if it is new."""
        row = self._row_by_request.get(request)
        if row is None:
            if not self._free_rows:
                self._reclaim(batch)
            row = self._row_by_request[request] = self._free_rows.pop()
            self.num_releases[row] = -1
            params = request.params
            self.temperature[row] = params.temperature
            self.top_k[row] = params.num_top_k
            self.top_p[row] = max(params.top_p, _LEAST_TOP_P)
            self.min_p_gaps[row] = _min_p_gap(params)
            self.seeds[row] = request.seed
            self.num_prompt_tokens[row] = len(request.prompt_token_ids)
            self.is_plain[row] = _is_plain(request)
            media = request.media
            self.position_offset[row] = 0 if media is None else media.position_offset
            self.follows_tokens[row] = _follows_tokens(request)
        return row

    def _reclaim(self, batch: ScheduledBatch) -> None:
        """Free the rows of all requests outside the batch."""
        in_batch = set(batch.requests)
        for request in [each for each in self._row_by_request if each not in in_batch]:
            self._free_rows.append(self._row_by_request.pop(request))


def _min_p_gap(params: SamplingParams) -> float:
    return min_p_gap(params.min_p if params.typical_p == 1 else 0, params.temperature)


def _is_plain(request: Request) -> bool:
    params = request.params
    is_filtered = params.temperature > 0 and params.typical_p < 1
    has_own_rows = request.controls is not None or request.scores is not None
    is_alone = request.guidance is None
    return not has_own_rows and request.watermark is None and not is_filtered and is_alone


def _follows_tokens(request: Request) -> bool:
    has_such_controls = request.controls is not None and request.controls.follows_tokens
    return has_such_controls or request.watermark is not None
