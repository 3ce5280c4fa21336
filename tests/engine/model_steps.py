"""Runs a model's steps without an engine, to compare their logits."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from batchmill.engine.execution.step_pipeline import ModelRunner
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.model import Model
from batchmill.engine.request.request import Request
from batchmill.engine.request.sampling_params import SamplingParams
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledRequest
from batchmill.engine.step.step_inputs import build_step_inputs

BLOCK_SIZE = 4


def make_runner(model: Model, num_blocks: int = 120) -> ModelRunner:
    kv_cache = KVCache(
        num_layers=model.config.num_layers,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=model.config.num_kv_heads,
        head_dim=model.config.head_dim,
        dtype=model.dtype,
        device="cpu",
    )
    return ModelRunner(model, kv_cache, "cpu")


def make_requests(lengths: list[int], vocab_size: int, num_blocks: int = 120) -> list[Request]:
    """Return requests over random tokens, with blocks in shuffled order."""
    rng = random.Random(3)
    order = list(range(num_blocks))
    rng.shuffle(order)
    requests = []
    for index, length in enumerate(lengths):
        token_ids = [rng.randrange(vocab_size) for _ in range(length)]
        request = Request(
            f"r{index}", token_ids, SamplingParams(), seed=0, max_num_tokens=length + 1
        )
        request.block_ids = [order.pop() for _ in range(-(-length // BLOCK_SIZE))]
        requests.append(request)
    return requests


def run_step(runner: ModelRunner, work: list[tuple[Request, int, bool]]) -> Tensor:
    """Compute some tokens of some requests; the flag says whose last row is wanted."""
    scheduled = tuple(
        ScheduledRequest(request, request.num_computed_tokens, count, samples)
        for request, count, samples in work
    )
    batch = ScheduledBatch(chunks=scheduled)
    logits = runner.compute_logits(build_step_inputs(batch, BLOCK_SIZE, "cpu")).clone()
    for request, count, _ in work:
        request.num_computed_tokens += count
    return logits


def full_logits(model: PreTrainedModel, requests: list[Request]) -> list[Tensor]:
    with torch.inference_mode():
        return [
            model(torch.tensor([request.prompt_token_ids])).logits[0].float()
            for request in requests
        ]


def largest_error(
    runner: ModelRunner, requests: list[Request], want: list[Tensor], cuts: list[int]
) -> float:
    """Compute all requests in one batch, cut alike; return the largest error of a last row."""
    errors = []
    for cut in cuts:
        work = [
            (request, min(cut, request.num_uncomputed_tokens), True)
            for request in requests
            if request.num_uncomputed_tokens
        ]
        logits = run_step(runner, work)
        for row, (request, _, _) in enumerate(work):
            expected = want[requests.index(request)][request.num_computed_tokens - 1]
            errors.append((logits[row] - expected).abs().max().item())
    assert all(request.num_uncomputed_tokens == 0 for request in requests)
    return max(errors)
