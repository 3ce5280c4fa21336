"""Jobs with steering vectors through command, client, worker and engine."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.contract.steering import SteeringSpec
from batchmill.producer import Client, JobFailed, JobRejected
from batchmill.producer.job.validation import parse_job
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.errors import ExitCode

from ..engine.tiny_model import save_model
from ..support.processes import CLI, killed_process
from ..support.steering import directions, write_gguf
from ..worker.command_line import call

CONFIG: dict[str, Any] = {"dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 2**26}
GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}


def add(url: str, name: str, source: Path, folder: Path) -> str:
    done = call(
        *("steering", "add", name, str(source), "--model", "tiny", "--folder", str(folder)),
        *("--broker-url", url, "--json"),
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["digest"])


def test_steered_jobs_keep_their_version_and_equal_the_engine(
    redis_url: str, tmp_path: Path
) -> None:
    model, folder = tmp_path / "tiny", tmp_path / "vectors"
    save_model(model)
    sources = [
        write_gguf(tmp_path / f"{seed}.gguf", directions(range(2), 32, seed=seed))
        for seed in range(2)
    ]
    old = add(redis_url, "style", sources[0], folder)
    environment = {
        **{f"BATCHMILL_{name.upper()}": str(value) for name, value in CONFIG.items()},
        "BATCHMILL_MODEL": str(model),
        "BATCHMILL_SERVED_MODEL_NAME": "tiny",
        "BATCHMILL_STEERING_FOLDER": str(folder),
        "BATCHMILL_BROKER_URL": redis_url,
        "PYTHONSAFEPATH": "1",
    }
    own: dict[str, Any] = {"model": "tiny", "prompt": "the prompt", **GREEDY}
    strong = {"name": "style", "strength": -2.5, "layers": [0, 0]}
    with Client(redis_url) as client:
        jobs = [client.submit(**own, steering={"name": "style"}), client.submit(**own)]
        new = add(redis_url, "style", sources[1], folder)
        jobs.append(client.submit(**own, steering=strong))
        with pytest.raises(JobRejected, match="there is no such vector") as refused:
            client.submit(**own, steering={"name": "other"})
        assert (refused.value.param, refused.value.code) == ("steering", "adapter_not_found")
        too_high = client.submit(**own, steering={"name": "style", "layers": [0, 7]})
        log = tmp_path / "log"
        with killed_process(*CLI, "worker", environment=environment, log=log):
            texts = [job.result(timeout_s=120).text for job in jobs]
            with pytest.raises(JobFailed, match="the model has the layers 0 to 1"):
                too_high.result(timeout_s=60)
    engine = Engine(EngineConfig(model=str(model), steering_folder=str(folder), **CONFIG))
    specs = [SteeringSpec(old), None, SteeringSpec(new, -2.5, (0, 0))]
    for number, spec in enumerate(specs):
        params = SamplingParams(**GREEDY)
        engine.add_request(str(number), "the prompt", params, steering=spec)
    expected: dict[str, str] = {}
    while engine.has_unfinished():
        expected |= {each.request_id: each.text for each in engine.step()}
    assert texts == [expected[str(number)] for number in range(3)]
    assert len(set(texts)) == 3


def test_names_are_listed_and_removed_and_a_line_has_the_field(
    redis_url: str, tmp_path: Path
) -> None:
    source = write_gguf(tmp_path / "v.gguf", directions(range(1, 3), 8, seed=1))
    digest = add(redis_url, "calm", source, tmp_path / "vectors")
    listed = call("steering", "list", "--broker-url", redis_url)
    assert "calm" in listed.stdout
    assert digest in listed.stdout
    given = ("--steering", '{"name": "calm", "strength": 2}', "--model", "tiny")
    sent = call("submit", "hello", *given, "--broker-url", redis_url)
    assert sent.returncode == 0, sent.stderr
    with closing(JobStore.from_url(redis_url)) as store:
        assert store.client.hget(f"batchmill:job:{sent.stdout.strip()}", "steering") == (
            digest.encode()
        )
    assert call("steering", "remove", "calm", "--broker-url", redis_url).returncode == 0
    missing = call("steering", "remove", "calm", "--broker-url", redis_url)
    assert missing.returncode == ExitCode.NOT_FOUND
    refused = call(
        *("steering", "add", "x", str(tmp_path / "none.gguf"), "--model", "tiny"),
        *("--folder", str(tmp_path), "--broker-url", redis_url),
    )
    assert refused.returncode == ExitCode.USAGE
    assert "cannot be read" in refused.stderr


@pytest.mark.parametrize(
    ("steering", "problem"),
    [
        ({"name": "x", "strength": 0}, "no effect"),
        ({"name": "x", "strength": 1001}, "1000"),
        ({"name": "../x"}, "letters, digits"),
        ({"name": "x", "layers": [3, 2]}, "must not be above"),
        ({"name": "x", "layers": [3]}, "layers"),
        ({"strength": 1.0}, "name"),
        ({"name": "x", "positions": "last"}, "positions"),
        ("x", "steering"),
    ],
    ids=str,
)
def test_steering_that_cannot_be_is_refused(steering: Any, problem: str) -> None:
    with pytest.raises(JobRejected, match=problem):
        parse_job({"prompt": "hello", "steering": steering})
