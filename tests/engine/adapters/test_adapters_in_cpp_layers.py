"""Adapters in the one C++ call of all layers give what they give op by op, beside int8 as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchmill.engine import SamplingParams
from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.loading.loading import load_model
from batchmill.engine.models.decoder import DecoderModel

from ...support.adapters import write_adapter
from ..tiny_model import run, save_model, tiny_engine

#: Most difference of a log probability: int8 rounds activations, bfloat16 rounds every product.
TOLERANCES = {("float32", None): 1e-4, ("float32", "int8"): 0.05, ("bfloat16", "int8"): 0.4}
PROMPTS = [[(7 * index + 11 * start) % 200 + 20 for index in range(19)] for start in range(4)]
PARAMS = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=20)


@pytest.mark.parametrize(("dtype", "quantization"), TOLERANCES, ids=str)
def test_cpp_layers_equal_single_ops(tmp_path: Path, dtype: str, quantization: str | None) -> None:
    save_model(tmp_path / "model")
    digests: list[str | None] = [None]
    for seed in range(3):
        files = read_files(write_adapter(tmp_path / f"peft-{seed}", seed, rank=3 + seed))
        store_files(files, tmp_path / "store")
        digests.append(files.digest)

    def logprobs(*, is_fused: bool, lora: bool = True) -> list[dict[int, float]]:
        loaded = load_model(
            str(tmp_path / "model"), dtype=dtype, device="cpu", quantization=quantization
        )
        model = loaded.model
        assert isinstance(model, DecoderModel)
        assert model._fused is not None
        if not is_fused:
            model._layers = model._single_layers
            model._fused = None
        size = {"dtype": dtype, "quantization": quantization, "kv_cache_bytes": 2**20}
        engine = tiny_engine(
            loaded,
            2**20 // (1024 if dtype == "float32" else 512),
            lora_folder=str(tmp_path / "store"),
            **size,
        )
        for number, (prompt, digest) in enumerate(zip(PROMPTS, digests, strict=True)):
            engine.add_request(f"{number}", prompt, PARAMS, lora=digest if lora else None)
        outputs = run(engine)
        found = []
        for number in range(len(PROMPTS)):
            of_token = outputs[f"{number}"][-1].logprobs
            assert of_token is not None
            found.append(of_token[0])
        return found

    fused, single = logprobs(is_fused=True), logprobs(is_fused=False)
    plain = logprobs(is_fused=True, lora=False)
    assert fused[0] == plain[0], "adapters of others change a request without one"
    largest = max(
        abs(value - ops[token])
        for got, ops in zip(fused, single, strict=True)
        for token, value in got.items()
        if token in ops
    )
    assert largest < TOLERANCES[dtype, quantization]
    assert all(got != without for got, without in zip(fused[1:], plain[1:], strict=True))
