"""Every two controls of a job work together, or are refused by name when the job is submitted."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Engine
from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.steering.vector_file import read_vectors, store_vectors
from batchmill.producer.errors import JobRejected
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.replies import Claim
from batchmill.worker.engine_host.real_engine import RealEngine
from batchmill.worker.jobs.engine_request import engine_request

from ...engine.tiny_model import Fuse, load, save_model, tiny_engine
from ...support.adapters import write_adapter
from ...support.byte_tokenizer import save_byte_tokenizer
from ...support.steering import directions, write_safetensors

PROMPT = "A mill.\n\nWhat?"
SCORED = {"type": "score", "instructions": "Good?", "criteria": ["a", "b"]}
CHAT = [{"role": "user", "content": PROMPT}]
PICTURE = {"type": "image", "media": "med_" + "0" * 64}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
#: Has tools, documents and thoughts.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}<tool_call></tool_call>{% endfor %}"
    "{% for each in documents or [] %}{{ each.text }}{% endfor %}"
    "{% for m in messages %}<a>{{ m.content }}{% if '</think>' in m.content %}{% endif %}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<b><think>{% endif %}"
)
#: What each control gives to a job. Together they are all fields that change what is computed.
CONTROLS: dict[str, dict[str, Any]] = {
    "lora": {"lora": "formal"},
    "steering": {"steering": {"name": "formal", "strength": 2.0}},
    "guidance": {"guidance_scale": 2.0, "negative_prompt": "The river is wide."},
    "watermark": {"watermark": "press", "temperature": 1.0},
    "beam_search": {"beam_search": {"beam_width": 2}},
    "n": {"n": 2},
    "select_likelihood": {"n": 2, "select": {"by": "likelihood"}},
    "select_vote": {"n": 2, "select": {"by": "vote"}},
    "select_decision": {"n": 2, "select": {"by": "decision", "question": SCORED}},
    "confidence": {"explain": ["confidence"]},
    "alternatives": {"explain": ["alternatives"]},
    "attribution": {"explain": ["attribution"]},
    "uncertainty": {"explain": ["uncertainty"]},
    "explain_similarity": {"explain": ["uncertainty"], "explain_similarity": 0.9},
    "decision": {"decision": {"state": "a mill", "questions": {"q": SCORED}}},
    "embedding": {"embedding": {"input": ["a mill"]}},
    "scoring": {"scoring": {"query": "a mill", "input": ["a river"]}},
    "tools": {"tools": [TOOL]},
    "tool_choice": {"tools": [TOOL], "tool_choice": "required"},
    "thinking_budget": {"messages": CHAT, "thinking_token_budget": 2},
    "reasoning_effort": {"messages": CHAT, "reasoning_effort": "low"},
    "documents": {"messages": CHAT, "documents": [{"text": "The mill is old."}]},
    "media": {"messages": [{"role": "user", "content": [PICTURE]}]},
    "response_format": {"response_format": {"type": "json_object"}},
    "structured_outputs": {"structured_outputs": {"regex": "[a-c]{1,3}"}},
    "logprobs": {"logprobs": 2},
    "logprob_token_ids": {"logprob_token_ids": [65, 66]},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "entropy": {"entropy": True},
    "echo": {"echo": True},
    "no_output": {"max_tokens": 0, "echo": True},
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "typical_p": 0.9},
    "seed": {"seed": 3},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 40},
    "logit_bias": {"logit_bias": {"66": 5.0}},
    "bad_words": {"bad_words": ["zz"]},
    "allowed_token_ids": {"allowed_token_ids": list(range(256))},
    "stop": {"stop": ["zq"]},
    "stop_token_ids": {"stop_token_ids": [70]},
    "min_tokens": {"min_tokens": 2},
    "ignore_eos": {"ignore_eos": True},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 8},
    "cache_salt": {"cache_salt": "apart"},
}
SECTIONS = ("decision", "embedding", "scoring")
PAIRS = list(itertools.combinations(CONTROLS, 2))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    save_byte_tokenizer(folder, ["<a>", "<b>", "<poison>"], TEMPLATE)
    return load(folder, Fuse())


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    root = tmp_path_factory.mktemp("added")
    store_files(read_files(write_adapter(root / "draft", 1)), root / "lora")
    file = write_safetensors(root / "v.safetensors", directions(range(2), 32, seed=1))
    store_vectors(read_vectors(file), root / "steering")
    return tiny_engine(
        loaded,
        2048,
        max_model_len=240,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        lora_folder=str(root / "lora"),
        steering_folder=str(root / "steering"),
        watermark_keys={"press": "a secret of the operator"},
    )


def digests(engine: Engine) -> tuple[str, str]:
    config = engine.config
    assert config.lora_folder is not None
    assert config.steering_folder is not None
    lora, steering = Path(config.lora_folder), Path(config.steering_folder)
    return next(lora.iterdir()).name, next(steering.iterdir()).stem


def document(*names: str) -> GenerationJob | JobRejected:
    """Return a job with some controls, or why it is refused."""
    fields: dict[str, Any] = {}
    for name in names:
        fields |= CONTROLS[name]
    if not set(SECTIONS) & set(fields):
        fields.setdefault("max_tokens", 3)
        if "tools" in fields:
            fields.setdefault("messages", CHAT)
        if "messages" not in fields:
            fields["prompt"] = PROMPT
    try:
        return parse_job(fields)
    except JobRejected as refusal:
        return refusal


@pytest.mark.parametrize("name", CONTROLS)
def test_a_refused_pair_is_refused_by_name(name: str) -> None:
    for pair in PAIRS:
        refusal = document(*pair) if name in pair else None
        if isinstance(refusal, JobRejected):
            fields = {field for each in pair for field in CONTROLS[each]} | {"structured output"}
            named = {field for field in fields if field in str(refusal)}
            assert named, f"{pair}: {refusal}"


def test_a_pair_that_is_accepted_completes(engine: Engine) -> None:
    """Pictures are left out: this model does not see them."""
    lora, steering = digests(engine)
    hosted = RealEngine(engine)
    jobs = {}
    for pair in [*((name,) for name in CONTROLS), *PAIRS]:
        job = document(*pair)
        if isinstance(job, JobRejected) or "media" in pair:
            continue
        claim = Claim(
            "+".join(pair),
            *("1.n", b"{}", [], 1, False, None, 0, 0, 0),
            lora=lora if job.lora else None,
            steering=steering if job.steering else None,
        )
        request = engine_request(claim, job, None)
        jobs[request.request_id] = job
        hosted.add(request)
    assert len(jobs) > 700
    while hosted.has_unfinished():
        for finished in hosted.step().finished:
            assert finished.error is None, f"{finished.request_id}: {finished.error}"
            job = jobs.pop(finished.request_id)
            section, _ = job.plan
            assert set(finished.sections) == ({section} if section else set())
            assert len(finished.samples or "1") == job.n
    assert not jobs
