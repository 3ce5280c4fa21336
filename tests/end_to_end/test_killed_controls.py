"""Jobs with thought budgets, guidance, steering or beams have the same text after `kill -9`."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Chat, Engine, EngineConfig, SamplingParams
from batchmill.engine.contract.steering import SteeringSpec
from batchmill.engine.steering.vector_file import read_vectors, store_vectors
from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.store.adapters import RegisteredAdapter, register_adapter
from batchmill.producer.store.job_store import JobStore

from ..support.chat_model import save_chat_model
from ..support.processes import CLI, Process, killed_process, wait_until
from ..support.steering import directions, write_gguf

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<think>' if enable_thinking | default(true) }}{% endif %}"
)
NUM_TOKENS = 150
CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "kv_cache_bytes": 2**26}
SAMPLED: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 1.3, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "Where does the mill stand?"}]
GUIDED: dict[str, Any] = {"guidance_scale": 2.0, "negative_prompt": "Where does it not stand?"}
STEERING: dict[str, Any] = {"name": "style", "strength": 0.5}
SEARCHED: dict[str, Any] = {
    "messages": MESSAGES,
    "model": "tiny",
    "max_tokens": 400,
    "ignore_eos": True,
    "n": 2,
    "beam_search": {"beam_width": 8, "early_stopping": "never"},
}
#: Controls of each kind of job.
KINDS: dict[str, dict[str, Any]] = {
    "budget": {"thinking_token_budget": 60},
    "guided": GUIDED,
    "both": {"thinking_token_budget": 20, **GUIDED},
    "steered": {},
}


def worker(url: str, model: Path, vectors: Path, log: Path) -> AbstractContextManager[Process]:
    """Run a worker with the tiny model; kill it at the end."""
    environment = {
        **{f"BATCHMILL_{name.upper()}": str(value) for name, value in CONFIG.items()},
        "BATCHMILL_MODEL": str(model),
        "BATCHMILL_SERVED_MODEL_NAME": "tiny",
        "BATCHMILL_STEERING_FOLDER": str(vectors),
        "BATCHMILL_BROKER_URL": url,
        "BATCHMILL_LEASE_S": "4",
        "BATCHMILL_SWEEP_INTERVAL_S": "0.5",
        "BATCHMILL_CHECKPOINT_TOKENS": "8",
        "PYTHONSAFEPATH": "1",
    }
    return killed_process(*CLI, "worker", environment=environment, log=log)


@pytest.mark.nightly
@pytest.mark.feature("thinking_token_budget", "guidance_scale", "negative_prompt")
def test_controlled_jobs_have_the_same_text_after_their_worker_was_killed(
    redis_url: str, tmp_path: Path
) -> None:
    model, vectors = tmp_path / "tiny", tmp_path / "vectors"
    save_chat_model(model, TEMPLATE)
    files = read_vectors(write_gguf(tmp_path / "v.gguf", directions(range(2), 32, seed=1)))
    store_vectors(files, vectors)
    store = JobStore.from_url(redis_url)
    vector = RegisteredAdapter(name="style", digest=files.digest, model="tiny")
    register_adapter(store, vector, keys.STEERING_VECTORS)
    client = Client(redis_url)
    with worker(redis_url, model, vectors, tmp_path / "first.log") as first:
        searched = client.submit(**SEARCHED)
        jobs = [
            client.submit(
                model="tiny",
                messages=MESSAGES,
                seed=number,
                steering=STEERING if name == "steered" else None,
                **SAMPLED,
                **KINDS[name],
            )
            for number, name in enumerate([*KINDS, *KINDS, *KINDS])
        ]

        def has_begun() -> bool:
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            has_state = store.client.hexists(keys.job(searched.id), "plan_state")
            return has_state and sum(store.num_tokens(job.id) > 0 for job in jobs) >= len(KINDS)

        wait_until(has_begun, "the first tokens")
        first.send_signal(signal.SIGKILL)
        first.wait()
    resumed = [store.num_tokens(job.id) for job in jobs if not job.status().state.is_terminal]
    assert any(resumed), "the worker was killed too late to show anything"
    assert not searched.status().state.is_terminal
    with worker(redis_url, model, vectors, tmp_path / "second.log"):
        results = [job.result(timeout_s=120) for job in jobs]
        found = searched.result(timeout_s=120)
        undisturbed = client.submit(**SEARCHED).result(timeout_s=120)
    assert found.attempt > 1
    assert [each.text for each in found.completions] == [
        each.text for each in undisturbed.completions
    ]
    assert found.beam_search is not None
    assert undisturbed.beam_search is not None
    assert found.beam_search.num_beam_tokens == undisturbed.beam_search.num_beam_tokens
    engine = Engine(EngineConfig(model=str(model), steering_folder=str(vectors), **CONFIG))
    for number, name in enumerate([*KINDS, *KINDS, *KINDS]):
        params = SamplingParams(seed=number, **SAMPLED, **KINDS[name])
        steering = SteeringSpec(files.digest, 0.5) if name == "steered" else None
        chat = Chat(messages=MESSAGES)
        engine.add_request(str(number), chat, params, steering=steering)
    expected: dict[str, Any] = {}
    while engine.has_unfinished():
        expected |= {each.request_id: each for each in engine.step()}
    for number, result in enumerate(results):
        output = expected[str(number)]
        assert result.text == output.text
        assert (result.reasoning_content or "") == output.reasoning
        assert result.token_ids == output.token_ids
    assert sum(result.attempt > 1 for result in results) >= 1
    store.close()
    client.close()
