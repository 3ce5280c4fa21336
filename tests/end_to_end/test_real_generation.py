"""The demo model through client, Redis, Celery and the engine process, and through a crash."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.producer import Client, GenerationJob, JobUnfinished
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.demo.prompts import demo_prompts

from ..conftest import RedisServer
from ..support.processes import CLI, Process, killed_process, wait_until
from ..worker.command_line import call, error_of

#: Four for each kind of controls.
PROMPTS = [prompt.shown for prompt in demo_prompts()][:16]
NUM_JOBS = len(PROMPTS)
MAX_TOKENS = 40
CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "kv_cache_bytes": 2**29}
#: Key and secret of a watermark.
KEYS = {"press": "a secret for tests alone"}
#: Short steps, so that a step on a busy machine stays well under the lease.
STEP_TOKENS = 256
WORKER = {
    **{f"BATCHMILL_{name.upper()}": str(value) for name, value in CONFIG.items()},
    "BATCHMILL_MAX_NUM_BATCHED_TOKENS": str(STEP_TOKENS),
    "BATCHMILL_WATERMARK_KEYS": json.dumps(KEYS),
    "BATCHMILL_LEASE_S": "8",
    "BATCHMILL_SWEEP_INTERVAL_S": "0.5",
    "BATCHMILL_HEARTBEAT_INTERVAL_S": "1",
    "PYTHONSAFEPATH": "1",
}

# What an engine does if a request says nothing; a worker does then what the model recommends.
AS_THE_ENGINE = {"temperature": 1.0, "top_p": 1.0}


def controls(number: int) -> dict[str, Any]:
    """Return greedy or seeded controls, or controls that depend on earlier tokens."""
    if number % 4 == 1:
        sampling = {"temperature": 0.8, "top_p": 0.95, "seed": number, "ignore_eos": True}
        return sampling | {"watermark": "press"}
    if number % 4 == 2:
        penalties = {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "min_p": 0.02}
        sampling = {"seed": number, "n": 2, "no_repeat_ngram_size": 3, **penalties}
        return AS_THE_ENGINE | sampling | {"ignore_eos": True}
    if number % 4 == 3:
        regex = {"regex": r"[A-Z][a-z]+( [a-z]+){300}"}
        return AS_THE_ENGINE | {"seed": number, "structured_outputs": regex}
    return {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """The texts that an uninterrupted engine generates for the jobs: the samples of each."""
    engine = Engine(EngineConfig(model="demo", watermark_keys=KEYS, **CONFIG))
    params = [
        SamplingParams(max_tokens=MAX_TOKENS, **controls(number)) for number in range(NUM_JOBS)
    ]
    outputs = engine.generate(PROMPTS, params)
    return [[each.text for each in output.completions] for output in outputs]


def worker(url: str, name: str, log: Path, **settings: str) -> AbstractContextManager[Process]:
    """Run a worker with the demo model; kill it at the end."""
    environment = WORKER | settings
    environment |= {"BATCHMILL_BROKER_URL": url, "BATCHMILL_WORKER_NAME": name}
    return killed_process(*CLI, "worker", environment=environment, log=log)


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with a worker that looks up draft tokens, for the tests that disturb neither."""
    server = RedisServer()
    server.start()
    log = tmp_path_factory.mktemp("shared") / "worker.log"
    with worker(server.url, "shared@test", log, BATCHMILL_NUM_SPECULATIVE_TOKENS="4"):
        yield server.url
    server.close()


@pytest.mark.nightly
def test_a_job_that_a_late_joiner_takes_over_goes_on_with_the_same_tokens(
    redis_url: str, tmp_path: Path
) -> None:
    """The jobs are far longer than the test: they are cancelled in the end."""
    client, store = Client(redis_url), JobStore.from_url(redis_url)
    long = {"BATCHMILL_MAX_MODEL_LEN": "2048"}
    greedy: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}

    def taken_over() -> str | None:
        owners = {job.id: getattr(store.load(job.id), "owner", None) for job in jobs}
        return next((job_id for job_id, owner in owners.items() if owner == "late@test"), None)

    with worker(redis_url, "first@test", tmp_path / "first.log", **long):
        jobs = [client.submit(prompt=prompt, max_tokens=1900, **greedy) for prompt in PROMPTS[:2]]
        wait_until(lambda: all(store.num_tokens(job.id) for job in jobs), "the first tokens")
        with worker(redis_url, "late@test", tmp_path / "late.log", **long):
            wait_until(lambda: taken_over() is not None, "the takeover")
            moved = taken_over()
            assert moved is not None
            num_at_move = store.num_tokens(moved)
            wait_until(lambda: store.num_tokens(moved) > num_at_move + 30, "further tokens")
            for job in jobs:
                job.cancel()
            tokens = store.read_tokens(moved)

    record = store.load(moved)
    assert record is not None
    assert record.history[0].cause == "moved"
    prompt = PROMPTS[[job.id for job in jobs].index(moved)]
    assert greedy_gap(prompt, tokens) < 1e-3


def greedy_gap(prompt: str, token_ids: list[int]) -> float:
    """Return by how much a token is less likely than the likeliest one there, at most.

    One forward pass over all of them takes far less time than generating them again.
    """
    engine = Engine(EngineConfig(model="demo", **CONFIG | {"max_model_len": 2048}))
    [first] = engine.generate([prompt], [SamplingParams(max_tokens=1, temperature=0.0)])
    assert first.token_ids == token_ids[:1]
    params = SamplingParams(max_tokens=1, prompt_logprobs=1)
    [scored] = engine.generate([[*first.prompt_token_ids, *token_ids]], [params])
    assert scored.prompt_logprobs is not None
    pairs = zip(token_ids, scored.prompt_logprobs[-len(token_ids) :], strict=True)
    return max(max(each.values()) - each[token] for token, each in pairs if each is not None)


def read_along(client: Client, job_id: str) -> str:
    """Return a job's text, joined from the pieces of its stream."""
    return "".join(piece.text for piece in client.stream(job_id, timeout_s=240))


def test_jobs_of_a_killed_worker_end_once_with_the_text_of_an_uninterrupted_run(
    redis_url: str, tmp_path: Path, texts: list[list[str]]
) -> None:
    client, store = Client(redis_url), JobStore.from_url(redis_url)
    with worker(redis_url, "first@test", tmp_path / "first.log") as first:
        jobs = [
            client.submit(prompt=prompt, max_tokens=MAX_TOKENS, **controls(number))
            for number, prompt in enumerate(PROMPTS)
        ]
        readers = ThreadPoolExecutor(4)
        streamed = [readers.submit(read_along, client, job.id) for job in jobs[-4:]]

        def half_done() -> bool:
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            assert not store.counts().totals.get("failed"), (tmp_path / "first.log").read_text()
            saved = [store.num_tokens(job.id) for job in jobs]
            return sum(saved) > NUM_JOBS * MAX_TOKENS / 2

        wait_until(half_done, "generating half of the tokens")
        first.send_signal(signal.SIGKILL)
        first.wait()
    unfinished = [job for job in jobs if not job.status().state.is_terminal]
    assert unfinished, "the worker was killed too late to show anything"

    with worker(redis_url, "second@test", tmp_path / "second.log"):
        results = [job.result(timeout_s=120) for job in jobs]

    assert [[each.text for each in result.completions] for result in results] == texts
    marked = [result.watermarked for result in results]
    assert marked == ["watermark" in controls(number) for number in range(NUM_JOBS)]
    assert [reader.result(timeout=60) for reader in streamed] == [each[0] for each in texts[-4:]]
    readers.shutdown()
    counts = [result.usage.completion_tokens for result in results]
    assert counts == [MAX_TOKENS * len(each) for each in texts]
    resumed = [r for r in results if r.attempt == 2]
    assert {result.id for result in resumed} == {job.id for job in unfinished}
    assert sum(result.metrics.resumed_tokens for result in resumed) > 0
    assert store.counts().totals["completed"] == NUM_JOBS
    store.close()
    client.close()


def test_one_worker_runs_a_chat_and_a_prompt(shared_url: str) -> None:
    client = Client(shared_url)
    chat = client.submit(
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=20,
        temperature=0,
    )
    prompt = client.submit(
        GenerationJob(prompt="The capital of France is", max_tokens=4, temperature=0)
    )
    assert chat.result(timeout_s=120).text == "The capital of France is Paris."
    assert chat.result(timeout_s=60).finish_reason == "stop"
    assert prompt.result(timeout_s=120).finish_reason == "length"
    error = submit_chat_with_tools(shared_url)
    assert error["code"] == "unsupported_parameter"
    assert "the chat template of demo ignores tools: leave them out" in error["message"]
    client.close()


def test_a_beam_search_comes_back_through_the_queue(shared_url: str) -> None:
    with Client(shared_url) as client:
        job = client.submit("The harbour", n=2, max_tokens=8, beam_search={"beam_width": 3})
        result = job.result(timeout_s=120)
    assert len({each.text for each in result.completions}) == 2
    assert result.beam_search is not None
    assert result.usage.completion_tokens == result.beam_search.num_beam_tokens


def submit_chat_with_tools(url: str) -> Any:
    """Submit tools to a model whose template ignores them; return the error that is printed."""
    tools = [{"type": "function", "function": {"name": "clock"}}]
    messages = [{"role": "user", "content": "What time is it?"}]
    chat = ["--messages", json.dumps(messages), "--param", f"tools={json.dumps(tools)}"]
    done = call("submit", *chat, "--json", "--wait", "--broker-url", url)
    assert done.returncode != 0
    return error_of(done)


CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "population": {"type": "integer", "minimum": 0, "maximum": 50_000_000},
        "tags": {"type": "array", "items": {"enum": ["river", "coast", "hill"]}, "maxItems": 2},
    },
    "required": ["name", "population", "tags"],
    "additionalProperties": False,
}


def test_structure_samples_and_log_probabilities_come_back_through_the_queue(
    shared_url: str,
) -> None:
    client = Client(shared_url)
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    city = client.submit(
        messages=[{"role": "user", "content": "Describe a city as JSON."}],
        response_format=form,
        temperature=1.5,
        seed=1,
        n=3,
        max_tokens=100,
        select={"by": "vote", "field": "name"},
    )
    scored = client.submit(
        prompt="The capital of France is",
        max_completion_tokens=3,
        do_sample=False,
        logprobs=True,
        top_logprobs=2,
        prompt_logprobs=1,
        entropy=True,
        echo=True,
        logit_bias={"5": -100},
    )
    cities, echoed = city.result(timeout_s=120), scored.result(timeout_s=120)
    client.close()
    assert len(cities.completions) == 3
    for completion in cities.completions:
        assert completion.finish_reason == "stop"
        Draft202012Validator(CITY).validate(json.loads(completion.text))
    assert len({completion.text for completion in cities.completions}) > 1
    assert cities.text == cities.completions[0].text
    assert cities.selection is not None
    assert cities.selected is not None
    winner, _ = max(cities.selection.votes.items(), key=lambda vote: vote[1])
    assert json.dumps(json.loads(cities.selected.text)["name"], ensure_ascii=False) == winner
    lengths = [len(completion.token_ids) for completion in cities.completions]
    assert cities.usage.completion_tokens == sum(lengths)
    assert lengths[0] == len(cities.token_ids)

    assert echoed.text.startswith("The capital of France is Paris")
    assert echoed.logprobs is not None
    for token_id, found in zip(echoed.token_ids, echoed.logprobs, strict=True):
        assert found is not None
        assert next(iter(found)) == token_id  # greedy: the sampled token is the most likely
        assert len(found) == 2
    assert len(echoed.entropies or []) == 3
    assert len(echoed.prompt_logprobs or []) == echoed.usage.prompt_tokens
    assert (echoed.completions[0].text, echoed.samples) == (echoed.text, [])


def test_marked_texts_are_told_from_others_by_the_command_line(
    shared_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(shared_url)
    how: dict[str, Any] = {
        "prompt": "Once upon a time",
        "max_tokens": 200,
        "ignore_eos": True,
        **AS_THE_ENGINE,
    }
    jobs = [client.submit(**how, seed=4, watermark=name) for name in ("press", None)]
    refused = client.submit(**how, watermark="shop")
    marked, plain = (job.result(timeout_s=120) for job in jobs)
    assert (marked.watermarked, plain.watermarked) == (True, False)
    with pytest.raises(JobUnfinished, match="the key 'shop', which this worker does not hold"):
        refused.result(timeout_s=120)
    client.close()
    monkeypatch.setenv("BATCHMILL_WATERMARK_KEYS", json.dumps(KEYS))
    found = [detected(tmp_path, marked.text), detected(tmp_path, plain.text)]
    assert found[0]["marked"]
    assert found[0]["p_value"] < 1e-6
    assert not found[1]["marked"]
    assert found[1]["p_value"] > 1e-4


def detected(folder: Path, text: str) -> Any:
    """Return what the command line finds in a file with a text."""
    file = folder / "text.txt"
    file.write_text(text)
    (found,) = json.loads(call("watermark", "detect", str(file), "--json").stdout)["watermarks"]
    return found


def test_heartbeats_and_status_report_accepted_draft_tokens(shared_url: str) -> None:
    """The last test of the worker, whose engine it kills."""
    client, store = Client(shared_url), JobStore.from_url(shared_url)

    def stats() -> dict[str, Any]:
        return dict(store.list_workers()[0].stats)

    text = "Repeat this: one two three four five six seven, one two three four five six seven"
    client.submit(prompt=text, max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True).result(
        timeout_s=120
    )
    wait_until(lambda: bool(stats().get("accepted_tokens")), "a heartbeat after the drafts")
    reported = stats()
    assert 0 < reported["accepted_tokens"] <= reported["draft_tokens"]
    shown = call("status", "--broker-url", shared_url).stdout
    assert reported["dtype"] == "float32"
    assert " float32 " in shown
    drafts = re.search(r"drafts (\d+), accepted \d+ %", shown)  # a later heartbeat counts more
    assert drafts is not None
    assert int(drafts[1]) >= reported["draft_tokens"]
    data = json.loads(call("status", "--json", "--broker-url", shared_url).stdout)
    assert data["workers"][0]["stats"]["draft_tokens"] >= int(drafts[1])

    os.kill(reported["engine_pid"], signal.SIGKILL)  # another process counts from 0
    wait_until(lambda: stats().get("draft_tokens") == 0, "the next engine's first heartbeat")
    assert stats()["engine_pid"] != reported["engine_pid"]
    store.close()
    client.close()


@pytest.mark.nightly
def test_decisions_of_a_killed_worker_are_answered_with_the_same_numbers(
    redis_url: str, tmp_path: Path
) -> None:
    questions = {
        "topic": {"type": "choice", "options": ["money", "parcels", "praise"]},
        **{f"q{n}": {"type": "yes_no", "instructions": f"Is it {n}?"} for n in range(12)},
    }
    states = [f"Message {n}: I was charged twice for my order." for n in range(12)]
    client = Client(redis_url)
    with worker(redis_url, "first@test", tmp_path / "first.log") as first:
        jobs = [
            client.submit(decision={"state": state, "questions": questions, "rotations": 3})
            for state in states
        ]

        def some_run() -> bool:
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            return any(job.status().state.value == "in_progress" for job in jobs)

        wait_until(some_run, "claiming decisions")
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert not all(job.status().state.is_terminal for job in jobs)
    with worker(redis_url, "second@test", tmp_path / "second.log"):
        results = [job.result(timeout_s=240) for job in jobs]
        again = client.decide(states[0], questions, rotations=3, timeout_s=240)
    assert any(result.attempt > 1 for result in results)
    for result in results:
        assert result.decision is not None
        assert result.decision.num_prompts == 3 + 2 * 12
        assert result.text == ""
        assert result.usage.completion_tokens == result.decision.num_prompts
        assert result.usage.prompt_tokens_details.cached_tokens > result.usage.prompt_tokens / 2
    resumed = results[0].decision
    assert resumed is not None
    for name, answer in resumed.answers.items():
        assert answer.probabilities == pytest.approx(again.answers[name].probabilities, abs=1e-4)
    client.close()
