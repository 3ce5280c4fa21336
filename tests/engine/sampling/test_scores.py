"""Log probabilities and entropies equal those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from batchmill.engine import Engine, RequestError, SamplingParams
from batchmill.engine.scheduling import batch_builder

MakeEngine = Callable[..., Engine]
PROMPT = list(range(30, 71))


@pytest.fixture(scope="session")
def log_probs(byte_model_path: Path) -> Callable[[list[int]], torch.Tensor]:
    """Return the log probabilities of the token after each token, [num_tokens, vocab_size]."""
    model = LlamaForCausalLM.from_pretrained(byte_model_path, dtype=torch.float32).eval()

    def compute(token_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
        return logits.log_softmax(-1)

    return compute


def check_logprobs(found: dict[int, float], expected: torch.Tensor, token: int, top: int) -> None:
    assert next(iter(found)) == token
    ids = expected.topk(top).indices
    assert set(found) == {token, *ids.tolist()}
    for token_id, value in found.items():
        assert value == pytest.approx(expected[token_id].item(), abs=2e-4)
    likeliest = [token_id for token_id in found if token_id in ids.tolist()][bool(top) :]
    assert [found[each] for each in likeliest] == sorted(
        (found[each] for each in likeliest), reverse=True
    )


@pytest.mark.feature("logprobs", "entropy")
@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_logprobs_and_entropies_are_the_models_own(
    byte_engine: MakeEngine, log_probs: Callable[[list[int]], torch.Tensor], top: int
) -> None:
    # Penalties, temperature and top-k change the sampled tokens, not the reported scores.
    scored = SamplingParams(
        logprobs=top,
        entropy=True,
        temperature=1.4,
        top_k=20,
        seed=3,
        repetition_penalty=1.5,
        ignore_eos=True,
    )
    plain = SamplingParams(seed=4, ignore_eos=True)
    output, other = byte_engine().generate([PROMPT, PROMPT], [scored, plain])
    expected = log_probs(PROMPT + output.token_ids)[len(PROMPT) - 1 : -1]
    assert output.logprobs is not None
    for found, row, token_id in zip(output.logprobs, expected, output.token_ids, strict=True):
        check_logprobs(found, row, token_id, top)
    entropies = -(expected.exp() * expected).sum(-1)
    assert output.entropies == pytest.approx(entropies.tolist(), abs=1e-3)
    own = sum(
        row[token_id].item() for row, token_id in zip(expected, output.token_ids, strict=True)
    )
    assert output.cumulative_logprob == pytest.approx(own, abs=1e-2)
    assert output.completions[0].cumulative_logprob == output.cumulative_logprob
    assert (other.logprobs, other.entropies, other.prompt_logprobs) == (None, None, None)


@pytest.mark.feature("prompt_logprobs")
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 16}, {"max_num_seqs": 1}],
    ids=["whole", "chunked", "serial"],
)
def test_prompt_logprobs_are_those_of_the_prompts_tokens(
    byte_engine: MakeEngine,
    log_probs: Callable[[list[int]], torch.Tensor],
    settings: dict[str, Any],
) -> None:
    engine = byte_engine(**settings)
    scored = SamplingParams(temperature=0, prompt_logprobs=2, max_tokens=3, ignore_eos=True)
    plain = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    engine.generate([PROMPT], plain)  # caches blocks that must not be shared here
    first, second, third = engine.generate([PROMPT, PROMPT, [7]], [scored, plain, scored])
    expected = log_probs(PROMPT)
    assert first.prompt_logprobs is not None
    assert first.prompt_logprobs[0] is None
    pairs = zip(first.prompt_logprobs[1:], expected[:-1], PROMPT[1:], strict=True)
    for found, row, token_id in pairs:
        assert found is not None
        check_logprobs(found, row, token_id, 2)
    assert first.token_ids == second.token_ids
    assert third.prompt_logprobs == [None]
    assert first.logprobs is None


@pytest.mark.feature("prompt_logprobs", "logprobs")
def test_few_tokens_are_scored_per_step_and_all_in_the_end(
    byte_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(prompt_logprobs=0, logprobs=0, seed=1, max_tokens=6, ignore_eos=True)
    prompts = [PROMPT, PROMPT[5:], PROMPT[9:]]
    expected = byte_engine().generate(prompts, params)
    monkeypatch.setattr(batch_builder, "MAX_SCORED_TOKENS", 7)
    engine = byte_engine(max_num_batched_tokens=32)
    for found, whole in zip(engine.generate(prompts, params), expected, strict=True):
        assert found.token_ids == whole.token_ids
        for mine, theirs in zip(
            (found.prompt_logprobs or [])[1:], (whole.prompt_logprobs or [])[1:], strict=True
        ):
            assert mine == pytest.approx(theirs, abs=1e-4)
    assert engine.stats().num_steps > (3 * len(PROMPT) - 17) // 7


@pytest.mark.feature("prompt_logprobs", "logprobs", "entropy")
@pytest.mark.parametrize("cut", [0, 1, 5, 6])
def test_resumed_tokens_are_scored_again_even_if_they_finish_the_request(
    byte_engine: MakeEngine, cut: int
) -> None:
    engine = byte_engine(max_model_len=len(PROMPT) + 6)
    params = SamplingParams(
        prompt_logprobs=1, logprobs=2, entropy=True, seed=1, max_tokens=6, ignore_eos=True
    )
    (whole,) = engine.generate([PROMPT], params)
    engine.add_request("again", PROMPT, params, whole.token_ids[:cut])
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    last = outputs[-1]
    assert (last.token_ids, last.text) == (whole.token_ids, whole.text)
    assert last.finish_reason == "length"
    assert sum(len(output.new_token_ids) for output in outputs) == 6 - cut
    assert last.entropies == pytest.approx(whole.entropies, abs=1e-4)
    for mine, theirs in zip(last.logprobs or [], whole.logprobs or [], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert len(last.prompt_logprobs or []) == len(PROMPT)


def test_scored_requests_survive_preemption(byte_engine: MakeEngine) -> None:
    params = SamplingParams(prompt_logprobs=1, logprobs=1, seed=1, max_tokens=20, ignore_eos=True)
    prompts = [PROMPT[index:] for index in range(6)]
    expected = byte_engine().generate(prompts, params)
    engine = byte_engine(kv_cache_bytes=40 * 1024, max_model_len=64)
    for found, whole in zip(engine.generate(prompts, params), expected, strict=True):
        assert found.token_ids == whole.token_ids
        assert len(found.logprobs or []) == 20
        for mine, theirs in zip(found.logprobs or [], whole.logprobs or [], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
    assert engine.stats().num_preemptions > 0


@pytest.mark.feature("max_tokens")
def test_prompt_is_scored_without_generating_anything(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    generating = SamplingParams(max_tokens=1, prompt_logprobs=2, temperature=0)
    scoring = SamplingParams(max_tokens=0, prompt_logprobs=2, echo=True)
    one, none = engine.generate(
        ["A prompt to be scored.", "A prompt to be scored."], [generating, scoring]
    )
    assert none.prompt_logprobs == one.prompt_logprobs
    assert (none.token_ids, none.text, none.finish_reason) == (
        [],
        "A prompt to be scored.",
        "length",
    )
    assert none.usage.completion_tokens == 0


@pytest.mark.feature("echo", "logprobs")
def test_an_echoed_prompt_is_scored_with_the_output(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    prompt = "A prompt to be scored."
    echoing = SamplingParams(max_tokens=2, logprobs=2, echo=True, temperature=0)
    scoring = SamplingParams(max_tokens=2, logprobs=2, prompt_logprobs=2, temperature=0)
    asked = SamplingParams(max_tokens=2, logprobs=2, prompt_logprobs=0, echo=True, temperature=0)
    echoed, scored, fewer = engine.generate([prompt] * 3, [echoing, scoring, asked])
    assert echoed.prompt_logprobs == scored.prompt_logprobs
    assert echoed.logprobs == scored.logprobs
    assert {len(each) for each in fewer.prompt_logprobs or [] if each} == {1}
    texts = engine.token_bytes(echoed.prompt_token_ids)
    assert b"".join(texts[token_id] for token_id in echoed.prompt_token_ids) == prompt.encode()


@pytest.mark.feature("max_tokens")
def test_echo_without_tokens_computes_nothing(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    (output,) = engine.generate(["Said"], SamplingParams(max_tokens=0, echo=True, n=2))
    assert [each.text for each in output.completions] == ["Said", "Said"]
    assert engine.stats().num_computed_tokens == 0
    with pytest.raises(RequestError, match="max_tokens is 0: ask for prompt_logprobs or echo"):
        SamplingParams(max_tokens=0)


@pytest.mark.feature("logprob_token_ids")
@pytest.mark.parametrize(
    "settings", [{}, {"overlap": True}, {"max_num_batched_tokens": 7, "max_num_seqs": 4}]
)
@pytest.mark.parametrize("top", [None, 0, 3])
def test_tokens_are_scored_by_their_ids(
    byte_engine: MakeEngine,
    log_probs: Callable[[list[int]], torch.Tensor],
    settings: dict[str, Any],
    top: int | None,
) -> None:
    asked = [3, 250, 77]
    params = SamplingParams(
        temperature=0, max_tokens=6, logprobs=top, logprob_token_ids=asked, ignore_eos=True
    )
    engine = byte_engine(**settings)
    plain = SamplingParams(temperature=0, max_tokens=6, logprobs=1, ignore_eos=True)
    output, other = engine.generate([PROMPT, PROMPT[:9]], [params, plain])
    assert output.logprobs is not None
    expected = log_probs(PROMPT + output.token_ids)[len(PROMPT) - 1 :]
    for place, (token_id, found) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
        likeliest = expected[place].topk(top or 0).indices.tolist()
        assert next(iter(found)) == token_id
        assert set(found) == {token_id, *likeliest, *asked}
        for each, value in found.items():
            assert value == pytest.approx(expected[place][each].item(), abs=2e-4)
    assert other.logprobs is not None
    assert all(len(each) <= 2 for each in other.logprobs)

    resumed = byte_engine(**settings)
    resumed.add_request("r", PROMPT, params, output.token_ids[:3])
    outputs = []
    while resumed.has_unfinished():
        outputs += resumed.step()
    for ours, whole in zip(outputs[-1].logprobs or (), output.logprobs, strict=True):
        assert ours == pytest.approx(whole, abs=2e-4)


@pytest.mark.feature("logprob_token_ids")
@pytest.mark.parametrize("asked", [[], [0] * 129, [-1], ["a"], [10**6], "ab"])
def test_ids_that_cannot_be_scored_are_refused(byte_engine: MakeEngine, asked: Any) -> None:
    with pytest.raises(RequestError, match="logprob_token_ids"):
        byte_engine().generate([PROMPT], SamplingParams(logprob_token_ids=asked))
