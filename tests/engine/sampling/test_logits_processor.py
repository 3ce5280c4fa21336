"""Each control equals an independent reference, in batches in which only some rows use it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TypicalLogitsWarper,
)

from batchmill.engine import SamplingParams
from batchmill.engine.request.request import Request
from batchmill.engine.request.token_controls import RequestControls, TokenCounts
from batchmill.engine.sampling import logits_filters
from batchmill.engine.sampling.logits_processor import LogitsProcessor
from batchmill.engine.step import upload

EOS = 3
VOCAB_SIZE = 40
#: Takes prompt, output and logits of one row; returns the logits after the controls.
Reference = Callable[[list[int], list[int], Tensor], Tensor]


def hugging_face(*processors: Any) -> Reference:
    def apply(prompt: list[int], output: list[int], row: Tensor) -> Tensor:
        token_ids = torch.LongTensor([prompt + output])
        changed = LogitsProcessorList(processors)(token_ids, torch.FloatTensor(row[None]))
        return changed[0]

    return apply


def after_temperature(temperature: float, warper: Any) -> Reference:
    """Apply a warper at a temperature; our filters leave the division to the sampler."""

    def apply(prompt: list[int], output: list[int], row: Tensor) -> Tensor:
        warm = TemperatureLogitsWarper(temperature)
        kept = warper(torch.tensor([prompt]), warm(torch.tensor([prompt]), row[None]))[0]
        return row.masked_fill(kept == -torch.inf, -torch.inf)

    return apply


def min_new_tokens(least: int) -> Reference:
    def apply(prompt: list[int], output: list[int], row: Tensor) -> Tensor:
        processor = MinNewTokensLengthLogitsProcessor(len(prompt), least, [EOS, 7])
        changed: Tensor = processor(torch.tensor([prompt + output]), row[None].clone())[0]
        return changed

    return apply


def openai_penalties(presence: float, frequency: float) -> Reference:
    def apply(prompt: list[int], output: list[int], row: Tensor) -> Tensor:
        changed = row.clone()
        for token_id in range(VOCAB_SIZE):
            count = output.count(token_id)
            changed[token_id] -= frequency * count + presence * (1 if count else 0)
        return changed

    return apply


def one_after_the_other(*references: Reference) -> Reference:
    def apply(prompt: list[int], output: list[int], row: Tensor) -> Tensor:
        for reference in references:
            row = reference(prompt, output, row)
        return row

    return apply


BAD_WORDS = [[5], [6, 8], [1, 2, 9], [2, 2]]
CASES: dict[str, list[tuple[dict[str, Any], Reference]]] = {
    "repetition_penalty": [
        ({"repetition_penalty": r}, hugging_face(RepetitionPenaltyLogitsProcessor(r)))
        for r in (0.5, 1.3, 2.0)
    ],
    "presence_penalty": [({"presence_penalty": p}, openai_penalties(p, 0)) for p in (-1.5, 0.7)],
    "frequency_penalty": [({"frequency_penalty": p}, openai_penalties(0, p)) for p in (-0.4, 1.9)],
    "no_repeat_ngram_size": [
        ({"no_repeat_ngram_size": n}, hugging_face(NoRepeatNGramLogitsProcessor(n)))
        for n in (1, 2, 3, 4)
    ],
    "bad_words": [
        (
            {"bad_words": BAD_WORDS},
            hugging_face(NoBadWordsLogitsProcessor(BAD_WORDS, eos_token_id=EOS)),
        )
    ],
    "logit_bias": [
        (
            {"logit_bias": {"4": 2.5, 9: -100}},
            hugging_face(SequenceBiasLogitsProcessor([[[4], 2.5], [[9], -100.0]])),
        )
    ],
    "allowed_token_ids": [
        (
            {"allowed_token_ids": [3, 11, 11, 30]},
            hugging_face(PrefixConstrainedLogitsProcessor(lambda _, __: [3, 11, 30], 1)),
        )
    ],
    "min_tokens": [
        ({"min_tokens": least, "stop_token_ids": [7]}, min_new_tokens(least)) for least in (3, 6)
    ],
    "typical_p": [
        ({"typical_p": p, "temperature": t}, after_temperature(t, TypicalLogitsWarper(p)))
        for p, t in ((0.2, 1.0), (0.9, 0.6), (0.95, 2.0))
    ],
    "min_p before typical_p": [
        (
            {"min_p": p, "typical_p": 0.8, "temperature": t},
            one_after_the_other(
                after_temperature(t, MinPLogitsWarper(p)),
                after_temperature(t, TypicalLogitsWarper(0.8)),
            ),
        )
        for p, t in ((0.05, 1.0), (0.3, 1.7), (1.0, 0.5))
    ],
    "several at once": [
        (
            {
                "repetition_penalty": 1.2,
                "frequency_penalty": 0.3,
                "no_repeat_ngram_size": 2,
                "bad_words": BAD_WORDS,
                "min_p": 0.02,
                "typical_p": 0.9,
            },
            one_after_the_other(
                hugging_face(RepetitionPenaltyLogitsProcessor(1.2)),
                openai_penalties(0, 0.3),
                hugging_face(NoRepeatNGramLogitsProcessor(2)),
                hugging_face(NoBadWordsLogitsProcessor(BAD_WORDS, eos_token_id=EOS)),
                after_temperature(1.0, MinPLogitsWarper(0.02)),
                after_temperature(1.0, TypicalLogitsWarper(0.9)),
            ),
        )
    ],
}


def request(name: str, prompt: list[int], output: list[int], params: SamplingParams) -> Request:
    ending = frozenset([EOS]) | frozenset(params.stop_token_ids or ())
    words = [list(word) for word in params.bad_words or () if not isinstance(word, str)]
    controls = RequestControls(params, prompt, ending_token_ids=ending, bad_word_token_ids=words)
    return Request(
        name,
        prompt,
        params,
        seed=1,
        max_num_tokens=100,
        resumed_token_ids=output,
        controls=controls if controls.is_needed else None,
    )


def random_tokens(seed: int, count: int) -> list[int]:
    # Few distinct tokens, so that they repeat.
    return [random.Random(seed * 1000 + i).randrange(12) for i in range(count)]


def check_batch(cases: list[tuple[dict[str, Any], Reference]], seed: int) -> None:
    """Apply the cases to every other row of a batch, and no control to the rest."""
    requests: list[Request] = []
    references: list[Reference | None] = []
    for index, (params, reference) in enumerate(cases):
        prompt, output = random_tokens(seed + index, 6), random_tokens(seed - index, seed % 9)
        requests.append(request(f"plain {index}", prompt, output, SamplingParams()))
        references.append(None)
        requests.append(request(f"case {index}", prompt, output, SamplingParams(**params)))
        references.append(reference)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(requests), VOCAB_SIZE, generator=generator) * 3
    expected = logits.clone()
    for row, (each, apply) in enumerate(zip(requests, references, strict=True)):
        if apply is not None:
            expected[row] = apply(each.prompt_token_ids, each.output_token_ids, logits[row])
    processor = LogitsProcessor(VOCAB_SIZE)
    processor.prepare(requests)
    processor.apply(logits)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(logits[::2], expected[::2])


@pytest.mark.feature(
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "bad_words",
    "logit_bias",
    "allowed_token_ids",
    "min_tokens",
    "min_p",
    "typical_p",
)
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_control_equals_its_reference_and_leaves_other_rows_alone(
    name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "torch":  # as on a GPU
        monkeypatch.setattr(logits_filters, "uses_numpy", lambda logits: False)
    for seed in range(20):
        check_batch(CASES[name], seed)


def test_all_controls_in_one_batch_equal_their_references() -> None:
    everything = [case for cases in CASES.values() for case in cases]
    for seed in range(10):
        random.Random(seed).shuffle(everything)
        check_batch(everything, seed)


@pytest.mark.parametrize("name", CASES)
def test_state_after_each_token_is_the_state_after_all_at_once(name: str) -> None:
    for params, _ in CASES[name]:
        prompt, output = random_tokens(1, 5), random_tokens(2, 14)
        checked = SamplingParams(**params)
        grown = request("grown", prompt, [], checked)
        processor = LogitsProcessor(VOCAB_SIZE)
        logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
        for length in range(len(output) + 1):
            resumed = request("resumed", prompt, output[:length], checked)
            results = []
            # Twice, as when a step fails after its controls were applied and is recomputed.
            for each in (grown, grown, resumed):
                row = logits.clone()
                processor.prepare([each])
                processor.apply(row)
                results.append(row)
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
            grown.output_token_ids += output[length : length + 1]


def test_counts_are_those_of_a_long_output_of_many_tokens() -> None:
    rng = random.Random(0)
    prompt = [rng.randrange(500) for _ in range(100)]
    output = [rng.randrange(500) for _ in range(1000)]
    counts = TokenCounts()
    counts.add_prompt(prompt)
    for token_id in output:
        counts.add_output(token_id)
    found = dict(zip(counts.token_ids.tolist(), counts.output_counts.tolist(), strict=True))
    assert found == {token_id: output.count(token_id) for token_id in {*prompt, *output}}


@pytest.mark.feature("typical_p", "min_p")
@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9, 0.999])
def test_large_vocabularies_are_filtered_like_small_ones(mass: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale, temperature in ((0.1, 1.0), (3.0, 1.5), (8.0, 0.7)):
        row = torch.randn(30_000, generator=generator) * scale
        found = row.clone()
        logits_filters.keep_typical(found[None], [0], [mass], [temperature])
        expected = after_temperature(temperature, TypicalLogitsWarper(mass))([1], [], row)
        # Sums of many numbers differ by rounding, which may change the last token or two.
        num_different = int((found.isinf() != expected.isinf()).sum())
        assert num_different <= 1 + int(expected.isfinite().sum()) // 500
        found = row.clone()
        logits_filters.keep_min_p(found[None], [0], [1 - mass], [temperature])
        expected = after_temperature(temperature, MinPLogitsWarper(1 - mass))([1], [], row)
        assert int((found.isinf() != expected.isinf()).sum()) <= 1


def test_masks_forbid_every_token_whose_bit_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    allowed = [{rng.randrange(77) for _ in range(20)}, {0, 31, 32, 76}]
    masks = np.zeros((2, 3), dtype=np.uint32)
    for row, token_ids in enumerate(allowed):
        for token_id in token_ids:
            masks[row, token_id // 32] |= np.uint32(1 << (token_id % 32))
    for library in ("numpy", "torch"):
        if library == "torch":
            monkeypatch.setattr(logits_filters, "uses_numpy", lambda logits: False)
        logits = torch.zeros(4, 77)
        logits_filters.keep_masked(logits, [1, 3], masks.view(np.int32))
        for row, kept in ((1, allowed[0]), (3, allowed[1])):
            assert set(logits[row].isfinite().nonzero()[:, 0].tolist()) == kept
        assert torch.equal(logits[::2], torch.zeros(2, 77))


@pytest.mark.parametrize("broken", [torch.nan, -torch.inf])
def test_row_without_a_distribution_is_left_to_the_sampler(broken: float) -> None:
    row = torch.full((50,), broken)
    logits_filters.keep_typical(row[None], [0], [0.5], [1.0])
    logits_filters.keep_min_p(row[None], [0], [0.5], [1.0])
    assert not row.isfinite().any()


def test_filters_leave_greedy_rows_unchanged() -> None:
    params = SamplingParams(temperature=0, min_p=0.9, typical_p=0.1)
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    expected = logits.clone()
    processor = LogitsProcessor(VOCAB_SIZE)
    processor.prepare([request("greedy", [1], [], params)])
    processor.apply(logits)
    assert torch.equal(logits, expected)


def test_row_left_without_a_token_is_marked_and_others_are_not() -> None:
    emptied = SamplingParams(allowed_token_ids=[5], bad_words=[[5]])
    kept = SamplingParams(allowed_token_ids=[5, 6], bad_words=[[5]])
    requests = [request("emptied", [1], [], emptied), request("kept", [1], [], kept)]
    processor = LogitsProcessor(VOCAB_SIZE)
    processor.prepare(requests)
    is_empty = processor.apply(torch.zeros(2, VOCAB_SIZE))
    assert is_empty is not None
    assert is_empty.tolist() == [True, False]


class NoBlockingCopies(TorchDispatchMode):
    """Refuses copies from the host for which the host would wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        met = {each.device.type for each in tree_leaves((args, result)) if torch.is_tensor(each)}
        if met == {"cpu", "meta"}:
            assert func.overloadpacket == torch.ops.aten._to_copy, func
            assert kwargs["non_blocking"], func
        return result


def test_controls_reach_a_gpu_in_asynchronous_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On tensors without data. A copy from pageable memory would wait for the device's step."""
    monkeypatch.setattr(upload, "pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    controls: list[dict[str, Any]] = [
        {"min_p": 0.1, "typical_p": 0.9},
        {"min_p": 0.2, "repetition_penalty": 1.2, "presence_penalty": 0.5},
        {"logit_bias": {3: 1.5}, "min_tokens": 5},
        {"allowed_token_ids": [3, 4], "no_repeat_ngram_size": 1},
    ]
    requests = [
        request(str(row), [1, 2], [3], SamplingParams(temperature=1, **each))
        for row, each in enumerate(controls)
    ]
    processor = LogitsProcessor(VOCAB_SIZE)
    processor.prepare(requests)
    logits = torch.empty(len(requests), VOCAB_SIZE, device="meta")
    with NoBlockingCopies():  # type: ignore[no-untyped-call]
        processor.apply(logits)
        logits_filters.keep_only(logits, [0], [np.array([1, 2])])
        logits_filters.keep_masked(logits, [0, 2], np.zeros((2, -(-VOCAB_SIZE // 32)), np.int32))


class CountedCalls(TorchDispatchMode):
    """Counts the calls of torch's ops; refuses those that read a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert func.overloadpacket is not torch.ops.aten._local_scalar_dense
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "controls",
    [
        {"min_tokens": 5},
        {"allowed_token_ids": [3, 4]},
        {"presence_penalty": 0.5},
        {"typical_p": 0.9},
        {"min_p": 0.1, "typical_p": 0.9},
    ],
    ids=lambda each: "+".join(each),
)
def test_controls_read_nothing_on_the_host_and_cost_the_same_calls_for_many_rows(
    controls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits_filters, "uses_numpy", lambda logits: False)
    counts = []
    for num_rows in (1, 64):
        params = SamplingParams(temperature=1, **controls)
        requests = [request(str(row), [1, 2], [3], params) for row in range(num_rows)]
        processor = LogitsProcessor(VOCAB_SIZE)
        processor.prepare(requests)
        logits = torch.zeros(num_rows, VOCAB_SIZE)
        with CountedCalls() as calls:
            processor.apply(logits)
        counts.append(calls.count)
    assert counts[1] <= counts[0] + 1 <= 40
