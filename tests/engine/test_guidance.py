"""Guided outputs equal those of transformers, in any batch, after preemption and after a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from batchmill.engine import Chat, Engine, EngineConfig, RequestError, RequestOutput, SamplingParams
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.request.request import RequestStatus
from batchmill.engine.sampling.guided_rows import GuidedRows

from ..support.chat_model import save_chat_model
from .tiny_model import Fuse, check_nothing_is_lost, tiny_engine

MakeEngine = Callable[..., Engine]
PROMPT = "The quick brown fox jumps"
NEGATIVE = "A lazy dog that sleeps all day long, and then some more"


def params_of(**others: Any) -> SamplingParams:
    base = {"temperature": 0, "max_tokens": 20, "ignore_eos": True, "guidance_scale": 2.5}
    return SamplingParams(**{**base, "negative_prompt": NEGATIVE, **others})


def run(engine: Engine) -> dict[str, RequestOutput]:
    last: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        last |= {output.request_id: output for output in engine.step()}
    return last


@pytest.mark.feature("guidance_scale", "negative_prompt")
@pytest.mark.parametrize("scale", [1.5, 4.0])
@pytest.mark.parametrize("negative", [NEGATIVE, None], ids=["negative", "last_token"])
def test_guided_tokens_are_those_of_transformers(
    byte_engine: MakeEngine, byte_model_path: Path, scale: float, negative: str | None
) -> None:
    engine = byte_engine()
    model = LlamaForCausalLM.from_pretrained(byte_model_path, dtype=torch.float32).eval()
    prompt = engine.tokenizer.encode(PROMPT)
    given = None
    if negative is not None:
        given = torch.tensor([engine.tokenizer.encode(negative)])
    expected = model.generate(
        torch.tensor([prompt]),
        negative_prompt_ids=given,
        guidance_scale=scale,
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
    )[0, len(prompt) :].tolist()
    params = params_of(guidance_scale=scale, negative_prompt=negative, ignore_eos=False)
    params = SamplingParams(**{**_fields(params), "min_tokens": 20})
    (output,) = engine.generate([PROMPT], params)
    assert output.token_ids == expected
    (free,) = engine.generate([PROMPT], params_of(guidance_scale=1, negative_prompt=None))
    assert output.token_ids != free.token_ids
    num_negative_tokens = len(prompt[-1:] if negative is None else negative)
    assert output.usage.prompt_tokens == len(prompt) + num_negative_tokens
    assert free.usage.prompt_tokens == len(prompt)


def _fields(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in SamplingParams.__dataclass_fields__}


@pytest.mark.feature("guidance_scale", "negative_prompt")
def test_a_guided_output_depends_neither_on_the_batch_nor_on_preemption_or_resumption(
    byte_engine: MakeEngine,
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampled": {"temperature": 1.3, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.2},
        "structured": {"structured_outputs": {"regex": "[a-f]{30}"}, "ignore_eos": False},
        "scored": {"logprobs": 2, "prompt_logprobs": 1},
        "long": {"negative_prompt": NEGATIVE * 3, "n": 1},
        "free": {"guidance_scale": 1, "negative_prompt": None},
    }
    alone = byte_engine(max_num_seqs=2, enable_prefix_caching=False)
    whole = {name: alone.generate([PROMPT], params_of(**given))[0] for name, given in kinds.items()}
    tight = {"kv_cache_bytes": 110 * 1024, "max_model_len": 256}
    small = {"max_num_batched_tokens": 16, "max_num_seqs": 5}
    for options in ({}, {"overlap": False, **tight}, {"overlap": True, **tight}, small):
        engine = byte_engine(**options)
        for number in range(2):
            for name, given in kinds.items():
                engine.add_request(f"{name} {number}", PROMPT, params_of(**given))
        outputs = run(engine)
        assert len(outputs) == 2 * len(kinds)
        for name, output in outputs.items():
            expected = whole[name.split()[0]]
            assert (output.token_ids, output.text) == (expected.token_ids, expected.text), name
            assert output.finish_reason == expected.finish_reason
        if options.get("kv_cache_bytes"):
            assert engine.stats().num_preemptions > 0
    for cut in (0, 1, 7, 20):
        saved = whole["sampled"].token_ids[:cut]
        alone.add_request(f"r{cut}", PROMPT, params_of(**kinds["sampled"]), saved)
    for output in run(alone).values():
        assert output.token_ids == whole["sampled"].token_ids


@pytest.mark.feature("guidance_scale")
def test_both_requests_of_a_pair_lose_their_blocks_together(byte_engine: MakeEngine) -> None:
    engine = byte_engine(kv_cache_bytes=110 * 1024, max_model_len=256)
    for number in range(6):
        engine.add_request(str(number), PROMPT, params_of())
    pairs = [
        (tracker.request, tracker.request.guidance.partner)
        for tracker in engine._unfinished._trackers.values()
        if tracker.request.guidance is not None
    ]
    num_together = 0
    while engine.has_unfinished():
        before = [tuple((each.status, each.num_releases) for each in pair) for pair in pairs]
        engine.step()
        engine._scheduler.check_invariants()
        for pair, states in zip(pairs, before, strict=True):
            if all(status is RequestStatus.RUNNING for status, _ in states):
                lost = [
                    each.num_releases - old for each, (_, old) in zip(pair, states, strict=True)
                ]
                assert lost[0] == lost[1]
                num_together += lost[0]
            assert pair[0].output_token_ids == pair[1].output_token_ids
    assert num_together > len(pairs)


@pytest.mark.feature("guidance_scale")
def test_steps_that_run_out_of_memory_keep_room_for_a_pair(
    tiny_model: LoadedModel, fuse: Fuse
) -> None:
    params = params_of(max_tokens=6, negative_prompt="ab")
    (expected,) = tiny_engine(tiny_model).generate(["abcdefgh"], params)
    engine = tiny_engine(tiny_model)
    fuse.error = torch.OutOfMemoryError("CUDA out of memory")
    fuse.max_num_tokens = 2
    try:
        (output,) = engine.generate(["abcdefgh"], params)
        assert output.token_ids == expected.token_ids
        fuse.max_num_tokens = 1
        (output,) = engine.generate(["abcdefgh"], params)
        assert output.error is not None
        assert output.error.code == "out_of_memory"
    finally:
        fuse.reset()
    check_nothing_is_lost(engine)


@pytest.mark.feature("guidance_scale", "n")
def test_samples_are_guided_each_and_an_abort_frees_both_requests(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    given = {"temperature": 1.5, "seed": 2}
    (three,) = engine.generate([PROMPT], params_of(**given, n=3))
    (one,) = engine.generate([PROMPT], params_of(**given))
    assert three.completions[0].token_ids == one.token_ids
    assert len({tuple(each.token_ids) for each in three.completions}) == 3
    for num_steps in range(5):
        engine.add_request("r", PROMPT, params_of())
        for _ in range(num_steps):
            engine.step()
        engine.abort("r")
        assert run(engine)["r"].finish_reason == "abort"


@pytest.mark.feature("negative_prompt")
def test_a_negative_prompt_of_a_chat_is_a_message_of_the_user(tmp_path: Path) -> None:
    save_chat_model(tmp_path, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}:")
    engine = Engine(
        EngineConfig(
            model=str(tmp_path),
            device="cpu",
            dtype="float32",
            max_model_len=256,
            kv_cache_bytes=1 << 20,
        )
    )
    chat = Chat(messages=[{"role": "user", "content": "hi"}])
    (output,) = engine.generate([chat], params_of(negative_prompt="bye"))
    (same,) = engine.generate(["<user>hi:"], params_of(negative_prompt="<user>bye:"))
    assert output.token_ids == same.token_ids
    assert output.usage.prompt_tokens == same.usage.prompt_tokens == len("<user>hi:<user>bye:")


def test_guidance_that_cannot_be_is_refused(byte_engine: MakeEngine) -> None:
    for given, match in (
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"guidance_scale": 1}, "negative_prompt has no effect"),
        ({"negative_prompt": ""}, "negative_prompt"),
        ({"negative_prompt": [1, -1]}, "negative_prompt"),
    ):
        with pytest.raises(RequestError, match=match):
            params_of(**given)
    engine = byte_engine(max_model_len=64)
    for negative in ("a" * 80, [9999]):
        with pytest.raises(RequestError, match=r"^negative_prompt: prompt"):
            engine.generate([PROMPT], params_of(negative_prompt=negative, max_tokens=2))
    with pytest.raises(RequestError, match="negative_prompt has") as refused:
        engine.generate([PROMPT], params_of(max_tokens=30))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="max_num_seqs is 1"):
        byte_engine(max_num_seqs=1).generate([PROMPT], params_of())


@pytest.mark.feature("guidance_scale", "negative_prompt")
def test_an_output_without_max_tokens_ends_where_the_longer_prompt_reaches_the_models_length(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine(max_model_len=64)
    (output,) = engine.generate([PROMPT], params_of(max_tokens=None))
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 64 - len(NEGATIVE) < 64 - len(PROMPT)
    (shorter,) = engine.generate([PROMPT], params_of(max_tokens=None, negative_prompt="a"))
    assert len(shorter.token_ids) == 64 - len(PROMPT)


@pytest.mark.feature("guidance_scale")
def test_a_guide_is_not_counted_as_a_request(byte_engine: MakeEngine) -> None:
    engine = byte_engine(max_num_seqs=2)
    for number in range(2):
        engine.add_request(str(number), f"{number}{PROMPT}", params_of(max_tokens=3))
    assert (engine.load().num_running, engine.load().num_waiting) == (0, 2)
    while not engine.load().num_running:
        engine.step()
    assert (engine.load().num_running, engine.load().num_waiting) == (1, 1)
    assert engine.stats().num_running == 1
    run(engine)


@pytest.mark.feature("guidance_scale")
def test_a_pair_of_which_all_but_the_last_tokens_are_cached_starts_at_once(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine()
    params = params_of(negative_prompt=None)
    whole = PROMPT[:-1]
    assert len(whole) % 4 == 0
    for prompt in (whole + "x", whole + "x"):
        (output,) = engine.generate([prompt], params)
    assert output.num_cached_tokens == len(whole)
    (expected,) = byte_engine(enable_prefix_caching=False).generate([whole + "x"], params)
    assert output.token_ids == expected.token_ids


@pytest.mark.feature("guidance_scale")
def test_tokens_that_are_impossible_leave_guided_rows_finite() -> None:
    inf = float("inf")
    logits = torch.tensor([[1.0, -inf, 0.5, -inf], [0.0, -inf, -inf, 2.0]])
    own = logits[0].log_softmax(dim=-1)
    one = torch.tensor([0])
    pair = GuidedRows(guided=one, guides=one + 1, scales=torch.tensor([[2.0]]))
    is_finite = torch.tensor([True, True])
    pair.guide(logits, is_finite)
    assert logits[0, [1, 3]].tolist() == [-inf, -inf]  # after the prompt they are impossible
    assert logits[0, 2] == own[2]  # after the negative prompt only
    assert torch.isfinite(logits[0, :1]).all()
    assert is_finite.tolist() == [True, True]
