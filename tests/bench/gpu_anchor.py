"""The same requests through transformers' continuous batching, on the same device."""

from __future__ import annotations

import time
from typing import Any

import torch
from gpu_floors import Work, recipe_a
from gpu_models import make_engine, named_shape, random_model
from gpu_recipes import generate_s, give_back, prompts_of, warm_up
from gpu_report import Bench


def anchor(bench: Bench) -> None:
    """E1: 64 requests on Qwen3-0.6B's shape, ours first; all outputs have one length.

    transformers takes one number of new tokens for all requests, so both get the mean.
    """
    full = recipe_a(4, 5, 9) if bench.toy else recipe_a(64, 100, 512)
    length = 4 if bench.toy else 256
    work = Work(full.prompt_lens, [length] * len(full.prompt_lens))
    config = named_shape("Qwen3-0.6B", toy=bench.toy)
    dtype = torch.float32 if bench.toy else torch.bfloat16
    engine = make_engine(random_model(config, bench.device, dtype=dtype), toy=bench.toy)
    warm_up(engine, config.vocab_size, toy=bench.toy)
    ours_s = generate_s(engine, work, config.vocab_size)
    tokens = sum(work.output_lens)
    del engine
    give_back(bench)
    bench.line("ours", goal="E1", seconds=ours_s, output_tokens_per_s=tokens / ours_s)
    bench.check_time()
    theirs_s = _transformers_s(bench, config, work, dtype)
    bench.line(
        "transformers generate_batch",
        goal="E1",
        seconds=theirs_s,
        output_tokens_per_s=tokens / theirs_s,
        ours_is_faster_by=theirs_s / ours_s,
        requests=len(work.prompt_lens),
    )


def _transformers_s(bench: Bench, config: Any, work: Work, dtype: torch.dtype) -> float:
    """Return the seconds of the second of two runs."""
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

    hf_config = Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(bench.device):
        model: Any = AutoModelForCausalLM.from_config(
            hf_config, dtype=dtype, attn_implementation="sdpa"
        )
    model.eval()
    options = GenerationConfig(
        max_new_tokens=work.output_lens[0],
        do_sample=True,
        temperature=0.6,
        eos_token_id=-1,
        pad_token_id=0,
    )
    prompts = prompts_of(work, config.vocab_size)
    sizes = _toy_sizes() if bench.toy else {}
    elapsed_s = 0.0
    for _ in range(1 if bench.toy else 2):
        bench.check_time()
        started_at_s = time.perf_counter()
        outputs = model.generate_batch(inputs=prompts, generation_config=options, **sizes)
        elapsed_s = time.perf_counter() - started_at_s
        made = [len(each.generated_tokens) for each in outputs.values()]
        bench.line("transformers round", seconds=elapsed_s, tokens=sum(made))
    return elapsed_s


def _toy_sizes() -> dict[str, Any]:
    """Return a small cache: by default transformers takes most of the machine's memory."""
    from transformers import ContinuousBatchingConfig

    sizes = ContinuousBatchingConfig(page_size=16, num_blocks=32, max_batch_tokens=64)
    return {"continuous_batching_config": sizes}
