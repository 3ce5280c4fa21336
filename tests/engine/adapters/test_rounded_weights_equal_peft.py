"""Adapters beside bfloat16 and int8 weights give the log probabilities that PEFT gives.

What PEFT computes is read at every token of a prompt, so that one wrong token does not end the
comparison. int8: PEFT's own products without the adapter are replaced by our plain-torch int8
products, so both sides round the same numbers. bfloat16: both sides round other numbers at other
places, so the measure is PEFT in float32 over the same rounded weights, and how far PEFT itself is
from it in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.kernels.ops.int8_linear import Int8Reference

from ...support.tiny_models import NATIVE, VOCAB_SIZE, random_model
from ..tiny_model import run

pytest.importorskip("peft")
from peft import PeftModel

from .peft_folders import ATTENTION, NETWORK, quiet, save_adapter

PROMPT = [(7 * index) % (VOCAB_SIZE - 20) + 10 for index in range(25)]
TARGETS = [[*ATTENTION, *NETWORK], ["o_proj"]]
FAMILIES = ["Llama", "Qwen3", "Gemma 3 text"]
#: Differences of log probabilities on average and at most. Between the products numbers are rounded
#: in another order, which moves an integer of an activation to its neighbour now and then: that
#: shifts all log probabilities of a token or two, and those of the others hardly.
INT8_MEAN, INT8_MOST = 0.02, 0.25


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A model whose weights bfloat16 can hold, saved in `tmp_path / "model"`."""
    made = random_model(NATIVE[request.param], tmp_path / "model")
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(weight.bfloat16())
    made.save_pretrained(tmp_path / "model")
    return made


@pytest.fixture
def adapters(model: Any, tmp_path: Path) -> dict[str | None, Path | None]:
    """Folders of adapters by their digest, and none."""
    found: dict[str | None, Path | None] = {None: None}
    for seed, targets in enumerate(TARGETS):
        # alpha / r is 1: a scale that no format rounds.
        folder = save_adapter(
            *(model, tmp_path / f"peft-{seed}"),
            seed=seed,
            r=4,
            lora_alpha=4,
            target_modules=targets,
        )
        files = read_files(folder)
        store_files(files, tmp_path / "store")
        found[files.digest] = folder
    return found


def logprobs_of_peft(model: Any, folder: Path | None) -> Tensor:
    """Return the log probabilities after each token of the prompt, [num_tokens, vocab_size]."""
    adapted: Any = model
    if folder is not None:
        with quiet():
            adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    with torch.inference_mode():
        logits: Tensor = adapted(torch.tensor([PROMPT])).logits[0]
    if folder is not None:
        adapted.unload()
    return logits.float().log_softmax(-1)


def logprobs_of_engine(
    tmp_path: Path, digests: list[str | None], **settings: Any
) -> list[list[dict[int, float]]]:
    """Return, for each adapter in one batch, the largest ones after each token but the last."""
    engine = Engine(
        EngineConfig(
            model=str(tmp_path / "model"),
            device="cpu",
            max_model_len=64,
            max_num_seqs=4,
            max_num_batched_tokens=20,
            kv_cache_bytes=2**20,
            lora_folder=str(tmp_path / "store"),
            **settings,
        )
    )
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=20)
    for digest in digests:
        engine.add_request(str(digest), PROMPT, params, lora=digest)
    outputs = run(engine)
    found = []
    for digest in digests:
        of_prompt = outputs[str(digest)][-1].prompt_logprobs
        assert of_prompt is not None
        found.append([each for each in of_prompt if each is not None])
    return found


def differences(ours: list[dict[int, float]], theirs: Tensor) -> Tensor:
    """Return by how much log probabilities differ, one number for each that the engine returns."""
    pairs = [
        (value, theirs[place, token].item())
        for place, of_token in enumerate(ours)
        for token, value in of_token.items()
    ]
    return (torch.tensor([a for a, _ in pairs]) - torch.tensor([b for _, b in pairs])).abs()


def check_likeliest(ours: list[dict[int, float]], theirs: Tensor, margin: float) -> None:
    """Check that both find the same token likeliest, where it leads by more than the margin."""
    best = theirs.topk(2).values
    clear = [
        place for place in range(len(ours)) if (best[place, 0] - best[place, 1]).item() > margin
    ]
    assert clear
    for place in clear:
        found = max(ours[place], key=lambda token: ours[place][token])
        assert found == int(theirs[place].argmax()), place


def test_int8_products_with_adapters_equal_peft(
    model: Any, adapters: dict[str | None, Path | None], tmp_path: Path
) -> None:
    digests = list(adapters)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.forward = int8_forward(module)  # type: ignore[assignment, method-assign]
    found = logprobs_of_engine(tmp_path, digests, dtype="float32", quantization="int8")
    theirs = [logprobs_of_peft(model, adapters[each]) for each in digests]
    for ours, expected in zip(found, theirs, strict=True):
        assert differences(ours, expected).mean() < INT8_MEAN
        assert differences(ours, expected).max() < INT8_MOST
        check_likeliest(ours, expected, 2 * INT8_MOST)
    for ours in found[1:]:
        assert differences(ours, theirs[0]).mean() > 10 * INT8_MEAN, "it changes nothing"


def int8_forward(module: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return a layer's int8 product in plain torch."""
    product = Int8Reference(module.weight.detach(), module.bias)

    def forward(x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    return forward


def test_bfloat16_weights_with_adapters_are_as_near_to_float32_as_peft_in_bfloat16(
    model: Any, adapters: dict[str | None, Path | None], tmp_path: Path
) -> None:
    digests = list(adapters)
    found = logprobs_of_engine(tmp_path, digests, dtype="bfloat16")
    exact = [logprobs_of_peft(model, adapters[each]) for each in digests]
    rounded = [logprobs_of_peft(model.bfloat16(), adapters[each]) for each in digests]
    for ours, want, theirs in zip(found, exact, rounded, strict=True):
        same = torch.zeros_like(want, dtype=torch.bool)
        for place, of_token in enumerate(ours):
            same[place, list(of_token)] = True
        their_error = (theirs - want)[same].abs().mean().item()
        error = differences(ours, want).mean().item()
        # Means of 480 numbers. The same roundings in another order give errors of one size.
        assert error < 1.5 * their_error
        check_likeliest(ours, want, 6 * their_error)
    for ours in found[1:]:
        changed = differences(ours, exact[0]).mean()
        assert changed > 10 * (rounded[0] - exact[0]).abs().mean(), "it changes nothing"
