"""Attribution names the planted document that holds the answer.

The model is constructed: it says each byte the likelier the more often the prompt has it, so it is
known which document an answer of bytes that no other document has must rest on. How the demo model
does is in docs/BENCHMARKS.md.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from batchmill.engine import Chat, Engine, EngineConfig, SamplingParams
from batchmill.engine.contract.explain import most_tokens
from batchmill.engine.loading.loading import load_model
from batchmill.engine.plans.explain.attribution import attribution
from batchmill.engine.plans.plan import Plan, PlanEnd, PlannedJob, PlanResult
from batchmill.engine.plans.runner import JobOptions, PlanRunner

from ...support.byte_tokenizer import save_byte_tokenizer

NUM_PROMPTS = 20
NAMED_SHARE = 0.95
_VOCAB_SIZE = 264
_NUM_HEADS = 4
_HIDDEN_SIZE = 320
#: `save_byte_tokenizer` has 256 bytes and one special token.
_TEMPLATE = (
    "{% for document in documents or () %}{{ document['text'] }}\n{% endfor %}"
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
)


def save_counting_model(folder: Path) -> None:
    """Save one layer whose logits count the tokens of the prompt: attention is even over them."""
    save_byte_tokenizer(folder, [], _TEMPLATE)
    config = LlamaConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=_HIDDEN_SIZE,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=_NUM_HEADS,
        num_key_value_heads=_NUM_HEADS,
        max_position_embeddings=1024,
        eos_token_id=256,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        one_hot = torch.eye(_VOCAB_SIZE, _HIDDEN_SIZE)
        model.model.embed_tokens.weight.copy_(one_hot)
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight.copy_(torch.eye(_HIDDEN_SIZE))
        attention.o_proj.weight.copy_(torch.eye(_HIDDEN_SIZE))
        model.lm_head.weight.copy_(one_hot)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("counting-model")
    save_counting_model(folder)
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    config = EngineConfig(
        model="counting", max_model_len=512, kv_cache_bytes=16 << 20, max_num_seqs=32
    )
    return Engine(config, loaded=loaded)


def planted(rng: random.Random, *, as_documents: bool) -> tuple[Chat, int, str]:
    """Return a chat about six documents, the place of the one with the answer, and the answer."""
    answers = rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 6)
    texts = [
        f"number {n} of the row has the letter {answer * 2}." for n, answer in enumerate(answers)
    ]
    place = rng.randrange(6)
    question = {"role": "user", "content": f"which letter has number {place}"}
    if as_documents:
        return (
            Chat(messages=[question], documents=[{"text": each} for each in texts]),
            place,
            answers[place],
        )
    told = {"role": "system", "content": "\n\n".join(texts) + "\n"}
    return Chat(messages=[told, question]), place, answers[place]


def test_attribution_names_the_planted_document(engine: Engine) -> None:
    rng, runner, ends = random.Random(3), PlanRunner(engine), dict[str, PlanEnd]()
    prompts = [planted(rng, as_documents=n % 2 == 0) for n in range(NUM_PROMPTS)]

    def plan(chat: Chat, answer: str) -> Plan:
        job = PlannedJob(engine, {}, chat, SamplingParams())
        section = yield from attribution(job, engine.tokenizer.encode_plain(answer))
        return PlanResult(section or {})

    for n, (chat, _, answer) in enumerate(prompts):
        runner.add(str(n), plan(chat, answer), JobOptions())
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
        ends |= {end.request_id: end for end in runner.take_ends()}

    num_named = 0
    for n, (chat, place, answer) in enumerate(prompts):
        end = ends[str(n)]
        assert end.result is not None, end.error
        section = end.result.section
        assert len(section["segments"]) == 6
        for figure in ("weight", "leave_one_out"):
            figures = [each[figure] for each in section["segments"]]
            num_named += figures.index(max(figures)) == place
        assert section["lds"] > 0.5
        assert section["top_k_drop"]["1"] > 0
        num_tokens = end.counts.num_prompt_tokens + end.counts.num_output_tokens
        num_prompt_tokens = len(engine.tokenizer.apply_chat_template(chat))
        assert num_tokens <= most_tokens(["attribution"], num_prompt_tokens, len(answer))
    assert num_named >= NAMED_SHARE * 2 * NUM_PROMPTS
