"""A tiny vision model behind a real worker: every way in gives the tokens of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import torch
from openai import OpenAI
from PIL import Image as PillowImage

from batchmill.engine.contract.media import Image
from batchmill.producer import Client

from ..support.media_decisions import PLACEHOLDER, QUESTIONS, Answers, decision_probabilities
from ..support.pictures import data_url, png
from ..support.tiny_media_models import save_idefics3
from .cli.bulk_files import bulk, output_of
from .command_line import call
from .conftest import _RUN, Mill, WorkerProcess
from .gateway.conftest import Gateway

#: `Mill` sets the stub for every worker.
PROGRAM = f"import os; os.environ.pop('BATCHMILL_STUB'); {_RUN}"
NUM_TOKENS = 16
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
QUESTION = "What?"


class Model(NamedTuple):
    """A saved model, and what transformers answers about pictures of one colour."""

    folder: Path
    token_ids: dict[str, list[int]]
    #: To the questions of a decision.
    answers: dict[str, Answers]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny-vision")
    tiny = save_idefics3(folder)
    expected, answers = {}, {}
    for color in ("red", "blue"):
        pixels = PillowImage.new("RGB", (40, 30), color).tobytes()
        answers[color] = decision_probabilities(tiny, PLACEHOLDER, Image(40, 30, pixels))
        inputs = tiny.process(f"user:<image>{QUESTION};assistant:", [Image(40, 30, pixels)])
        generate: Any = tiny.hf_model.generate
        with torch.inference_mode():
            found = generate(
                **inputs,
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
                min_new_tokens=NUM_TOKENS,
                eos_token_id=-1,
                pad_token_id=0,
            )
        expected[color] = found[0, inputs["input_ids"].shape[1] :].tolist()
    assert expected["red"] != expected["blue"]
    return Model(folder, expected, answers)


def picture(color: str) -> bytes:
    return png(color, (40, 30))


def ask(color: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture(color))}}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


@pytest.fixture
def start(private_mill: Mill, model: Model) -> Callable[[str], WorkerProcess]:
    def start_worker(name: str) -> WorkerProcess:
        worker = private_mill.launch(
            name,
            program=PROGRAM,
            engine="real",
            model=model.folder,
            served_model_name="demo",
            device="cpu",
            dtype="float32",
            max_model_len=2048,
            max_num_seqs=8,
            kv_cache_bytes=16 << 20,
        )
        # Loading torch and transformers takes long on a busy machine.
        private_mill.wait_for(lambda: private_mill.heartbeat(worker), name, timeout_s=240)
        return worker

    return start_worker


def test_every_way_in_gives_the_tokens_of_transformers(
    private_mill: Mill, model: Model, start: Callable[[str], WorkerProcess], tmp_path: Path
) -> None:
    worker = start("w1")
    with Client(private_mill.url) as client:
        check_ways_in(private_mill, client, model, tmp_path)
        check_decisions(private_mill, client, model, tmp_path)
    check_counts(private_mill, worker)


def check_ways_in(mill: Mill, client: Client, model: Model, tmp_path: Path) -> None:
    """Ask about pictures by client, batch, command, `bulk` and gateway."""
    texts = {}
    for color, expected in model.token_ids.items():
        job = client.submit(messages=ask(color), max_tokens=NUM_TOKENS, **GREEDY)
        result = job.result(timeout_s=120)
        assert list(result.token_ids) == expected
        texts[color] = result.text
    lines = [{"messages": ask(color), "max_tokens": NUM_TOKENS, **GREEDY} for color in texts]
    batch = client.create_batch(lines)
    found = client.batch_results(batch.id, timeout_s=120)
    assert [each.job.result().text for each in found] == list(texts.values())

    folder = tmp_path / "photos"
    folder.mkdir()
    for color in texts:
        (folder / f"{color}.png").write_bytes(picture(color))
    controls = ("--max-tokens", str(NUM_TOKENS), "--temperature", "0", "--param", "ignore_eos=true")
    answer = bulk(mill, folder, "--template", QUESTION, "--chat", *controls)
    assert answer.returncode == 0, answer.stderr
    by_bulk = {line["custom_id"]: content_of(line) for line in output_of(mill)}
    assert by_bulk == {f"{color}.png": text for color, text in texts.items()}
    photo = str(folder / "blue.png")
    command = ("submit", QUESTION, "--image", photo, *controls, "--wait", "--json")
    submitted = call(*command, "--broker-url", mill.url)
    assert json.loads(submitted.stdout)["text"] == texts["blue"], submitted.stderr

    gateway = Gateway(mill.url, tmp_path / "gateway.log")
    try:
        with OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as openai:
            for color, text in texts.items():
                messages: Any = ask(color)
                completion = openai.chat.completions.create(
                    model="demo",
                    messages=messages,
                    max_tokens=NUM_TOKENS,
                    temperature=0.0,
                    extra_body={"ignore_eos": True},
                )
                assert completion.choices[0].message.content == text
    finally:
        gateway.close()


def check_decisions(mill: Mill, client: Client, model: Model, tmp_path: Path) -> None:
    """Ask typed questions about pictures by client, command, `bulk` and gateway."""

    def check(answers: Mapping[str, Any], color: str) -> None:
        assert answers.keys() == QUESTIONS.keys()
        for name, answer in answers.items():
            expected = model.answers[color][name]
            assert answer["probabilities"] == pytest.approx(expected, abs=1e-4), (color, name)

    gateway = Gateway(mill.url, tmp_path / "gateway-of-decisions.log")
    try:
        for color in model.answers:
            state = [{"type": "image", "image": picture(color)}]
            decided = client.decide(state, QUESTIONS, timeout_s=120)
            check(decided.model_dump()["answers"], color)
            parts = [{"type": "image_url", "image_url": {"url": data_url(picture(color))}}]
            state = [{"role": "user", "content": parts}]
            with httpx2.Client(base_url=gateway.url) as http:
                body = {"model": "demo", "state": state, "questions": QUESTIONS}
                reply = http.post("decisions", json=body, timeout=120)
            assert reply.status_code == 200, reply.text
            check(reply.json()["answers"], color)
    finally:
        gateway.close()
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(QUESTIONS))
    photo = tmp_path / "photos" / "red.png"
    command = ("decide", "--image", str(photo), "--questions", str(questions), "--json")
    answer = call(*command, "--broker-url", mill.url)
    assert answer.returncode == 0, answer.stderr
    check(json.loads(answer.stdout)["decision"]["answers"], "red")
    found = tmp_path / "decided.jsonl"
    options = ("--template", "Look.", "--chat", "--decide", str(questions), "-o", str(found))
    answer = call("bulk", str(photo.parent), *options, "--broker-url", mill.url)
    assert answer.returncode == 0, answer.stderr
    lines = [json.loads(line) for line in found.read_text().splitlines()]
    by_photo = {each["custom_id"]: each["response"]["body"]["answers"] for each in lines}
    assert by_photo["red.png"]["what"] != by_photo["blue.png"]["what"]


def check_counts(mill: Mill, worker: WorkerProcess) -> None:
    """Check that each picture went through the tower once."""

    def stats() -> Mapping[str, Any]:
        beat = mill.heartbeat(worker)
        return {} if beat is None else beat.stats

    mill.wait_for(lambda: stats().get("media_encoded") == 2, "the counts of two pictures")
    assert 1 <= stats()["tower_runs"] <= 2
    assert stats()["media_cache_bytes"] > 0


def content_of(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["choices"][0]["message"]["content"])
