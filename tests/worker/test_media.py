"""Jobs with pictures and sounds in a real worker; the stub engine's tokens follow them."""

from __future__ import annotations

import base64
import io
import json
import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from batchmill.engine.contract.media import Audio
from batchmill.producer import Client, JobFailed, JobRejected, ProducerSettings
from batchmill.producer.bulk.lines import LineSettings
from batchmill.producer.bulk.options import BulkOptions
from batchmill.producer.bulk.prompts import read_prompt
from batchmill.producer.bulk.run import BulkRun
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.media import media_id
from batchmill.producer.protocol.replies import JobState

from ..support.pictures import data_url, decoded, png, rendered
from .command_line import call
from .conftest import _RUN, Mill, expected_tokens


def large_png() -> bytes:
    """Return the head of a PNG of 100,000 x 100,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)) + data


def ask(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


@pytest.fixture
def client(running_mill: Mill) -> Iterator[Client]:
    with Client(running_mill.url) as client:
        yield client


def test_the_engine_sees_pixels_whatever_form_they_came_in(
    running_mill: Mill, client: Client
) -> None:
    stored = client.put_media(png())
    assert stored == media_id(png())
    jobs = [
        client.submit(messages=ask(part), max_tokens=8, seed=7)
        for part in (
            {"type": "image", "media": stored},
            {"type": "image_url", "image_url": {"url": data_url(png())}},
            {"type": "image", "image": png()},
        )
    ]
    expected = expected_tokens(rendered(decoded()), 8)
    for job in jobs:
        assert list(job.result(timeout_s=60).token_ids) == expected
        record = running_mill.record(job.id)
        assert b"base64" not in record.document
        assert png() not in record.document


def test_two_pictures_of_one_job_keep_their_order(client: Client) -> None:
    texts = []
    for colors in (("red", "blue"), ("blue", "red")):
        parts = [{"type": "image", "image": png(color)} for color in colors]
        job = client.submit(messages=ask(*parts), max_tokens=8, seed=7)
        images = [decoded(color) for color in colors]
        assert list(job.result(timeout_s=60).token_ids) == expected_tokens(rendered(*images), 8)
        texts.append(job.result().text)
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        pytest.param(png()[:40], "media_invalid", "damaged", id="truncated"),
        pytest.param(
            large_png(),
            "media_too_large",
            "BATCHMILL_MEDIA_MAX_PIXELS",
            id="100000-by-100000",
        ),
    ],
)
def test_a_bad_file_fails_its_job_alone(
    client: Client, content: bytes, code: str, words: str
) -> None:
    bad = client.submit(messages=ask({"type": "image", "image": content}), max_tokens=8)
    good = client.submit(messages=ask({"type": "image", "image": png()}), max_tokens=8)
    with pytest.raises(JobFailed) as failure:
        bad.result(timeout_s=60)
    assert failure.value.code == code
    assert words in str(failure.value)
    assert good.result(timeout_s=60).text


def test_a_medium_of_another_tenant_is_not_found(client: Client) -> None:
    theirs = client.put_media(png("green"), tenant="theirs")
    part = {"type": "image", "media": theirs}
    with pytest.raises(JobRejected) as refusal:
        client.submit(messages=ask(part), tenant="ours")
    assert refusal.value.code == "media_missing"
    assert client.submit(messages=ask(part), tenant="theirs", max_tokens=2).result(60).text


def test_a_medium_that_is_gone_fails_its_job_by_name(running_mill: Mill, client: Client) -> None:
    part = {"type": "image", "image": png("yellow")}
    job = client.submit(messages=ask(part), delay_s=3600, max_tokens=2)
    names: Any = running_mill.store.client.hget(keys.job(job.id), "media")
    name = names.decode()
    running_mill.store.client.delete(keys.media(name))
    running_mill.store.client.zadd(keys.SCHEDULED, {job.id: 1})
    with pytest.raises(JobFailed) as failure:
        job.result(timeout_s=60)
    assert failure.value.code == "media_missing"


def test_a_document_of_the_inbox_may_have_a_picture_inside(running_mill: Mill) -> None:
    document = {
        "id": "from-elsewhere",
        "messages": ask({"type": "image_url", "image_url": {"url": data_url(png())}}),
        "max_tokens": 8,
        "seed": 7,
    }
    running_mill.store.client.lpush(keys.INBOX, json.dumps(document))
    running_mill.wait_for(lambda: running_mill.store.load("from-elsewhere"), "the job")
    (record,) = running_mill.wait_ended("from-elsewhere")
    assert running_mill.store.read_tokens(record.id) == expected_tokens(rendered(decoded()), 8)
    assert b"base64" not in record.document


def test_a_celery_task_may_have_a_picture_inside(running_mill: Mill) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(png())}}
    job = {"messages": ask(part), "max_tokens": 8, "seed": 7}
    queue = keys.queue_name("demo", "normal")
    sent = running_mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=queue)
    sent.get(timeout=60)
    expected = expected_tokens(rendered(decoded()), 8)
    assert running_mill.store.read_tokens(str(sent.id)) == expected
    assert b"base64" not in running_mill.record(str(sent.id)).document


def test_a_sound_reaches_the_engine(client: Client) -> None:
    target = io.BytesIO()
    soundfile.write(target, np.linspace(-0.5, 0.5, 800, dtype="f4"), 8000, format="WAV")
    data = base64.b64encode(target.getvalue()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    job = client.submit(messages=ask(part), max_tokens=8, seed=7)
    samples, _ = soundfile.read(io.BytesIO(target.getvalue()), dtype="float32")
    sound = Audio(8000, samples.astype("<f4").tobytes())
    prompt = f"<user>{[{'type': 'audio'}, {'type': 'text', 'text': 'What?'}]}"
    expected = expected_tokens(f"{prompt}<{sound.content_digest().hex()}>", 8)
    assert list(job.result(timeout_s=60).token_ids) == expected


def test_a_changed_picture_fails_its_line_of_a_bulk_run_alone(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, errors = (tmp_path / name for name in ("photos", "out.jsonl", "errors.jsonl"))
    folder.mkdir()
    for color in ("red", "green", "blue"):
        (folder / f"{color}.png").write_bytes(png(color))
    lines = LineSettings(
        prompts=(read_prompt("What?", as_chat=True),), defaults={"max_tokens": 4, "seed": 7}
    )
    submit = client._shards.submit

    def submit_later(jobs: Any) -> Any:
        (folder / "green.png").write_bytes(png("white"))
        return submit(jobs)

    monkeypatch.setattr(client._shards, "submit", submit_later)
    options = BulkOptions(folder, out, errors, lines=lines)
    counts = BulkRun(client._shards, client.settings, options).run(lambda _: None, lambda _: None)
    assert (counts.completed, counts.failed) == (2, 1)
    (failed,) = map(json.loads, errors.read_text().splitlines())
    assert failed["custom_id"] == "green.png"
    assert "was changed" in failed["error"]["message"]


OWN_SERVER: dict[str, Any] = {
    "media_allow_http": True,
    "media_allow_ports": "1-65535",
    "media_allow_networks": "127.0.0.0/8",
}


class PictureServer(NamedTuple):
    """A server that sends another picture each time."""

    url: str
    #: The requests that it got.
    requests: list[str]
    #: It sends nothing while this is not set.
    may_send: threading.Event


@pytest.fixture
def changing_server() -> Iterator[PictureServer]:
    requests: list[str] = []
    may_send = threading.Event()
    may_send.set()
    colors = iter(("blue", "green", "yellow"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is the library's
            requests.append(self.path)
            may_send.wait(100)
            content = png(next(colors))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        yield PictureServer(url, requests, may_send)
        server.shutdown()


def test_a_worker_that_is_killed_leaves_the_same_text_and_fetches_nothing_again(
    private_mill: Mill, changing_server: PictureServer
) -> None:
    mill, url, requests = private_mill, changing_server.url, changing_server.requests
    expected = expected_tokens(rendered(decoded(), decoded("blue")), 400)
    worker = mill.start_worker(stub={"step_time_s": 0.05}, **OWN_SERVER)
    parts = [{"type": "image", "image": png()}, {"type": "image_url", "image_url": {"url": url}}]
    with Client(mill.url, settings=ProducerSettings(**OWN_SERVER)) as client:
        job = client.submit(messages=ask(*parts), max_tokens=400, seed=7)
        mill.wait_tokens(job.id, 20)
        worker.end(signal.SIGKILL)
        mill.start_worker("w2", **OWN_SERVER)
        result = job.result(timeout_s=60)
    assert list(result.token_ids) == expected
    assert mill.record(job.id).attempts == 2
    assert requests == ["/a.png"]
    for each in mill.workers:
        assert url not in each.log


def test_a_worker_without_decoders_leaves_pictures_to_another(private_mill: Mill) -> None:
    mill = private_mill
    hide = "import batchmill.worker.media.decoder as d; d.find_spec = lambda name: None; "
    plain = mill.start_worker(program=hide + _RUN)
    beat = mill.heartbeat(plain)
    assert beat is not None
    assert (beat.media, beat.lacks) == ((), ("media",))
    with Client(mill.url) as client:
        job = client.submit(messages=ask({"type": "image", "image": png()}), max_tokens=4, seed=7)
        mill.wait_for(lambda: "decoder_missing" in plain.log, "a refused claim")
        assert "[media]" in plain.log
        assert client.submit("text", max_tokens=2).result(timeout_s=60).text
        assert mill.state(job.id) is JobState.QUEUED
        doctor = call("doctor", "--broker-url", mill.url)
        assert "lacks the extra media" in doctor.stdout
        assert "[media]" in doctor.stdout
        mill.start_worker("able")
        expected = expected_tokens(rendered(decoded()), 4)
        assert list(job.result(timeout_s=60).token_ids) == expected
    assert mill.record(job.id).attempts == 1


def lease_of(mill: Mill, job_id: str) -> float:
    """Return when a job's lease ends, milliseconds of unix time."""
    ends_at_ms: Any = mill.store.client.zscore(keys.LEASES, job_id)
    return float(ends_at_ms or 0)


def test_a_worker_keeps_the_job_whose_picture_it_waits_for_and_gives_it_back_in_a_drain(
    private_mill: Mill, changing_server: PictureServer
) -> None:
    mill, server = private_mill, changing_server
    worker = mill.start_worker(**OWN_SERVER, media_fetch_timeout_s=100)
    server.may_send.clear()
    with Client(mill.url, settings=ProducerSettings(**OWN_SERVER)) as client:
        part = {"type": "image_url", "image_url": {"url": server.url}}
        job = client.submit(messages=ask(part), max_tokens=2)
    mill.wait_for(lambda: server.requests, "the request")
    until_ms = lease_of(mill, job.id)
    mill.wait_for(lambda: lease_of(mill, job.id) > until_ms, "a renewal of the lease")
    worker.send(signal.SIGTERM)
    assert worker.process.wait(60) == 0, worker.log  # although the server has sent nothing
    server.may_send.set()
    record = mill.record(job.id)
    assert record.state is JobState.QUEUED
    assert "drain_incomplete" not in worker.log
