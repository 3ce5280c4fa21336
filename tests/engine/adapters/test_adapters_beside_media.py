"""Adapters and pictures in one batch: each request gets the tokens that it gets alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.loading.loading import load_model

from ...support.tiny_media_models import save_idefics3, save_qwen2_5_vl
from ..media.test_equal_transformers import NUM_TOKENS, Question, ask

pytest.importorskip("peft")
from peft import PeftModel

from .peft_folders import quiet, save_adapter

GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
#: Modules that only the decoder has, by these names.
MODULES = {
    # Of SmolVLM and Idefics3 the tower has `q_proj` and `k_proj` too.
    save_idefics3: ["o_proj", "gate_proj", "down_proj"],
    save_qwen2_5_vl: ["q_proj", "v_proj", "o_proj"],
}


@pytest.mark.parametrize("save", [save_idefics3, save_qwen2_5_vl])
def test_a_mixed_batch_gives_the_tokens_of_transformers_and_peft(save: Any, tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    picture = model.make(1, 0)
    contents = {"picture": (picture, "What is it?"), "text": ("Nothing to see.",)}
    expected: dict[tuple[str, str | None], Question] = {
        (name, None): ask(model, *content) for name, content in contents.items()
    }
    made = save_adapter(
        model.hf_model, tmp_path / "peft", seed=1, r=4, target_modules=MODULES[save]
    )
    files = read_files(made)
    store_files(files, tmp_path / "store")
    with quiet():
        peft_model: Any = PeftModel.from_pretrained(model.hf_model, str(made))
        adapted = replace(model, hf_model=peft_model)
        expected |= {(name, files.digest): ask(adapted, *it) for name, it in contents.items()}
    assert len({tuple(each.token_ids) for each in expected.values()}) == 4

    loaded = load_model(str(model.folder), dtype="float32", device="cpu")
    engine = Engine(
        EngineConfig(
            model="tiny",
            dtype="float32",
            device="cpu",
            max_model_len=512,
            max_num_seqs=8,
            max_num_batched_tokens=24,
            block_size=4,
            kv_cache_bytes=8 << 20,
            lora_folder=str(tmp_path / "store"),
        ),
        loaded=loaded,
    )
    for again in range(2):  # the second time with a prefix cache
        for (name, digest), question in expected.items():
            request_id = f"{again} {name} {digest}"
            engine.add_request(request_id, question.chat, GREEDY, media=question.media, lora=digest)
        found: dict[str, list[int]] = {}
        while engine.has_unfinished():
            for each in engine.step():
                found[each.request_id] = list(each.token_ids)
        assert found == {
            f"{again} {name} {digest}": question.token_ids
            for (name, digest), question in expected.items()
        }
    assert engine.stats().num_encoded_media == 1
