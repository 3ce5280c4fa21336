"""Jobs with pictures, with an adapter and with both outlive a killed worker of the demo model.

The model is that of `examples/vision_demo.py` before it is trained: SmolLM2-135M, and a random
tower. What the text says does not matter here, only that it follows the picture and the adapter.
"""

from __future__ import annotations

import importlib.util
import json
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from batchmill.engine import Chat, Engine, EngineConfig, SamplingParams
from batchmill.engine.contract.media import Media
from batchmill.engine.loading.model_source import model_folder
from batchmill.producer import Client, Job
from batchmill.producer.store.job_store import JobStore

from ..structure.public_interface import ROOT
from ..support.adapters import DEMO_MODULES, write_adapter
from ..support.pictures import decoded, png
from ..support.processes import CLI, Process, killed_process, wait_until
from ..worker.command_line import call

#: Of each half of the test: both begin with the start of a worker, which takes long.
DEADLINE_S = 400.0
NUM_TOKENS = 48
SIZE = (64, 64)
QUESTION = "What is in the picture?"
CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 2**27}
GREEDY: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 0.0, "ignore_eos": True}


class Case(NamedTuple):
    """A job: the colours of its pictures, and whether it names the adapter."""

    colors: tuple[str, ...]
    is_adapted: bool

    def messages(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


CASES = [
    Case(colors, is_adapted)
    for colors in (("red",), ("blue",), ("red", "blue"), ())
    for is_adapted in (False, True)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the example's model, whose tower is not trained."""
    spec = importlib.util.spec_from_file_location(
        "vision_demo", ROOT / "examples" / "vision_demo.py"
    )
    assert spec is not None
    assert spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    decoder = model_folder("demo")
    torch.manual_seed(0)
    model, _ = example.make_model(decoder)
    with torch.no_grad():  # as large as embeddings of words, so that the text follows the picture
        for name, weight in example.tower_of(model).items():
            if "connector" in name:
                weight.mul_(4)
    made: Path = tmp_path_factory.mktemp("vision") / "model"
    example.save(model, decoder, made)
    return made


def worker(
    url: str, name: str, model: Path, adapters: Path, log: Path
) -> AbstractContextManager[Process]:
    """Run a worker with the model and the adapters; kill it at the end."""
    environment = {
        **{f"BATCHMILL_{name.upper()}": str(value) for name, value in CONFIG.items()},
        "BATCHMILL_MODEL": str(model),
        "BATCHMILL_SERVED_MODEL_NAME": "vision",
        "BATCHMILL_WORKER_NAME": name,
        "BATCHMILL_LORA_FOLDER": str(adapters),
        "BATCHMILL_BROKER_URL": url,
        "BATCHMILL_LEASE_S": "8",
        "BATCHMILL_SWEEP_INTERVAL_S": "0.5",
        "BATCHMILL_HEARTBEAT_INTERVAL_S": "1",
        "BATCHMILL_CHECKPOINT_TOKENS": "4",
        "PYTHONSAFEPATH": "1",
    }
    return killed_process(*CLI, "worker", environment=environment, log=log)


def expected_texts(model: Path, adapters: Path, digest: str) -> list[str]:
    """Return the texts that an engine generates without any interruption."""
    config = EngineConfig(model=str(model), lora_folder=str(adapters), **CONFIG)
    engine = Engine(config)
    for number, case in enumerate(CASES):
        media: list[Media] = [decoded(color, SIZE) for color in case.colors]
        chat = Chat(messages=case.messages([{"type": "image"}] * len(media)))
        engine.add_request(
            *(str(number), chat, SamplingParams(**GREEDY)),
            media=media,
            lora=digest if case.is_adapted else None,
        )
    texts: dict[str, str] = {}
    while engine.has_unfinished():
        texts |= {each.request_id: each.text for each in engine.step()}
    return [texts[str(number)] for number in range(len(CASES))]


def submit_all(client: Client) -> list[Job]:
    """Submit the cases: pictures of one colour are stored once, and named by their ids."""
    ids = {color: client.put_media(png(color, SIZE)) for color in ("red", "blue")}
    return [
        client.submit(
            messages=case.messages([{"type": "image", "media": ids[each]} for each in case.colors]),
            model="vision",
            lora="style" if case.is_adapted else None,
            **GREEDY,
        )
        for case in CASES
    ]


@pytest.mark.timeout(900)
def test_pictures_and_adapters_of_a_killed_worker_give_the_text_of_an_uninterrupted_run(
    redis_url: str, folder: Path, tmp_path: Path
) -> None:
    adapters = tmp_path / "adapters"
    made = write_adapter(tmp_path / "peft", 1, modules=DEMO_MODULES, num_layers=30, std=0.06)
    added = call(
        *("lora", "add", "style", str(made), "--model", "vision", "--folder", str(adapters)),
        *("--broker-url", redis_url, "--json"),
    )
    assert added.returncode == 0, added.stderr
    texts = expected_texts(folder, adapters, json.loads(added.stdout)["digest"])
    assert len(set(texts)) == len(CASES), "some pictures or the adapter change nothing"

    client, store = Client(redis_url), JobStore.from_url(redis_url)
    jobs = submit_all(client)
    log = tmp_path / "first.log"
    with worker(redis_url, "first@test", folder, adapters, log) as first:

        def is_in_the_middle() -> bool:
            assert first.poll() is None, log.read_text()
            saved = [store.num_tokens(job.id) for job in jobs]
            return min(saved) > 0 and sum(saved) > len(jobs) * NUM_TOKENS / 4

        wait_until(is_in_the_middle, "a quarter of the tokens, and some of each job", DEADLINE_S)
        first.send_signal(signal.SIGKILL)
        first.wait()
    unfinished = {job.id for job in jobs if not job.status().state.is_terminal}
    assert unfinished, "the worker was killed too late to show anything"

    log = tmp_path / "second.log"
    with worker(redis_url, "second@test", folder, adapters, log):
        results = [job.result(timeout_s=DEADLINE_S) for job in jobs]
    assert [result.text for result in results] == texts
    resumed = [result for result in results if result.attempt == 2]
    assert {result.id for result in resumed} == unfinished
    assert all(result.metrics.resumed_tokens > 0 for result in resumed)
    assert store.counts().totals["completed"] == len(CASES)
    store.close()
    client.close()
