"""Measures pictures: speed beside transformers, 50 questions about one, decoding, Redis' memory.

    python examples/vision_demo.py FOLDER
    python tests/bench/media.py FOLDER

FOLDER holds a model of SmolVLM's layout. The two engines take turns, with one picture at a time and
with eight in a batch; figures are medians. `--only` chooses some of what is measured.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import soundfile
import torch
from PIL import Image as PilImage
from redis import Redis
from transformers import SmolVLMForConditionalGeneration

from batchmill.engine import Chat, Engine, EngineConfig, RequestOutput, SamplingParams
from batchmill.engine.contract.media import Image
from batchmill.producer import Client, ProducerSettings
from batchmill.worker.media.decoder import DecodeLimits, MediaDecoder
from tests.conftest import RedisServer

NUM_TOKENS, NUM_ROUNDS, SIDE = 16, 5, 64
#: Pictures of a batch, and of a round.
BATCHES = {1: 2, 8: 8}
NUM_QUESTIONS = 50
NUM_JOBS, PICTURE_BYTES = 50, 100_000
PARAMS = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)


def pictures(seed: int, count: int) -> list[PilImage.Image]:
    """Return pictures of noise, which no cache has seen under another seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return [PilImage.fromarray(each) for each in noise]


def run(engine: Engine, questions: list[str], found: list[PilImage.Image]) -> list[RequestOutput]:
    """Ask one question about each picture, all in one batch."""
    for number, (question, each) in enumerate(zip(questions, found, strict=True)):
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        medium = Image(each.width, each.height, each.tobytes())
        chat = Chat(messages=[{"role": "user", "content": parts}])
        engine.add_request(f"{number:03}", chat, PARAMS, media=[medium])
    ends: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        ends |= {each.request_id: each for each in engine.step() if each.finished}
    return [ends[name] for name in sorted(ends)]


def engine_of(folder: str) -> Engine:
    """Return a fresh engine."""
    config = EngineConfig(
        model=folder, dtype="float32", max_model_len=256, kv_cache_bytes=128 << 20, max_num_seqs=64
    )
    return Engine(config)


class Speed(NamedTuple):
    """Pictures per second of elapsed time, and of processor time."""

    wall: float
    cpu: float


def time_of(work: Callable[[], Any], count: int) -> tuple[Any, Speed]:
    """Return what work on so many pictures returns, and its speed."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return result, Speed(count / wall_s, count / cpu_s)


def generate(model: Any, prompts: list[list[int]], found: list[PilImage.Image]) -> list[list[int]]:
    """Return the tokens of Transformers' own `generate` for one batch."""
    ids = torch.tensor(prompts)
    pixels = torch.from_numpy(np.stack([np.asarray(each) for each in found])).float()
    pixels = pixels.permute(0, 3, 1, 2)[:, None] / 127.5 - 1
    with torch.inference_mode():
        tokens = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
    whole: list[list[int]] = tokens[:, ids.shape[1] :].tolist()
    return whole


def compare(folder: str, batch: int, count: int) -> None:
    """Print pictures per second of both, and how many outputs are the same."""
    model: Any = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    engine = engine_of(folder)
    speeds: dict[str, list[Speed]] = {"batchmill": [], "transformers": []}
    num_same = 0
    starts = range(0, count, batch)
    for seed in range(NUM_ROUNDS + 1):  # the first one is a warm-up
        found = pictures(seed, count)
        parts = [found[start : start + batch] for start in starts]

        def by_engine(parts: list[list[PilImage.Image]] = parts) -> list[RequestOutput]:
            question = "What is in the picture?"
            return [out for part in parts for out in run(engine, [question] * len(part), part)]

        outputs, ours = time_of(by_engine, count)
        prompts = [list(each.prompt_token_ids) for each in outputs]

        def by_model(
            parts: list[list[PilImage.Image]] = parts, prompts: list[list[int]] = prompts
        ) -> list[list[int]]:
            pairs = zip(starts, parts, strict=True)
            return [
                tokens
                for start, part in pairs
                for tokens in generate(model, prompts[start : start + batch], part)
            ]

        tokens, theirs = time_of(by_model, count)
        if seed:
            speeds["batchmill"].append(ours)
            speeds["transformers"].append(theirs)
            num_same += sum(a == list(b.token_ids) for a, b in zip(tokens, outputs, strict=True))
    print(f"{batch} in a batch; {num_same} of {count * NUM_ROUNDS} outputs equal")
    for which in Speed._fields:
        show({name: [getattr(it, which) for it in found] for name, found in speeds.items()}, which)


def show(speeds: dict[str, list[float]], which: str) -> None:
    """Print the speeds of both, and their ratio in each round."""
    for name, found in speeds.items():
        rounds = ", ".join(f"{speed:.2f}" for speed in found)
        print(f"  {name}: {statistics.median(found):.2f} pictures per {which} second ({rounds})")
    ours, theirs = speeds.values()
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"  ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


def ask_fifty(folder: str) -> None:
    """Print how much is computed for many questions about one picture."""
    engine = engine_of(folder)
    (picture,) = pictures(1, 1)
    run(engine, ["The first one?"], [picture])
    before = engine.stats().num_computed_tokens
    questions = [f"Question {number}?" for number in range(NUM_QUESTIONS)]
    outputs = run(engine, questions, [picture] * NUM_QUESTIONS)
    counts = engine.feature_counts()
    num_computed = engine.stats().num_computed_tokens - before
    num_prompt = sum(len(each.prompt_token_ids) for each in outputs)
    num_cached = sum(each.num_cached_tokens for each in outputs)
    print(
        f"{NUM_QUESTIONS} further questions about one picture: {counts}; of {num_prompt} tokens of "
        f"prompts {num_cached} were cached; {num_computed} tokens computed, "
        f"{NUM_QUESTIONS * NUM_TOKENS} of them of outputs"
    )


def time_decoding() -> None:
    """Print the time of decoding, with the way to the other process and back."""
    contents: dict[str, tuple[bytes, str, int | None]] = {}
    for name, size in (("1 MP", (1000, 1000)), ("12 MP", (4000, 3000))):
        coarse = PilImage.effect_noise((size[0] // 8, size[1] // 8), 60).convert("RGB")
        target = io.BytesIO()
        coarse.resize(size).save(target, "JPEG", quality=85)
        contents[f"JPEG, {name}"] = (target.getvalue(), "image", None)
    for rate in (16_000, 48_000):
        target = io.BytesIO()
        soundfile.write(target, np.zeros(60 * rate, dtype="f4"), rate, format="FLAC")
        contents[f"FLAC, 60 s of {rate} Hz, to 16000 Hz"] = (target.getvalue(), "audio", 16_000)
    decoder = MediaDecoder(DecodeLimits(40_000_000, 600.0, 60.0, 1 << 30), num_processes=1)
    for name, (content, kind, rate_hz) in contents.items():
        times = []
        for _ in range(NUM_ROUNDS + 1):
            started_at = time.perf_counter()
            decoder.decode(content, kind, rate_hz=rate_hz)
            times.append(time.perf_counter() - started_at)
        print(
            f"decoding {name}: {statistics.median(times[1:]) * 1000:.0f} ms, {len(content)} bytes"
        )
    decoder.close()


def png_of(number: int) -> bytes:
    """Return content that counts as a PNG until it is decoded, another for each number."""
    return b"\x89PNG\r\n\x1a\n" + number.to_bytes(8, "big") + os.urandom(PICTURE_BYTES - 16)


def parts_of(way: str, client: Client) -> Iterator[dict[str, Any]]:
    """Yield the part of each job that brings its picture."""
    shared = client.put_media(png_of(0)) if way == "put_media, one for all" else ""
    for number in range(NUM_JOBS):
        if way == "URL":
            yield {"type": "image", "url": f"https://pictures.example/{number}.png"}
        elif shared:
            yield {"type": "image", "media": shared}
        elif way == "text":
            yield {"type": "text", "text": "Nothing."}
        else:
            yield {"type": "image", "image": png_of(number)}


def measure_memory() -> None:
    """Print the bytes of Redis per waiting job."""
    print(f"{NUM_JOBS} jobs, pictures of {PICTURE_BYTES} bytes, bytes of Redis per waiting job:")
    ways = ("text", "inline, each its own", "put_media, one for all", "URL")
    for way in (*ways, "inline, in an object store"):
        server = RedisServer()
        server.start()
        with tempfile.TemporaryDirectory() as folder:
            stored: dict[str, Any] = {"payload_url": folder} if "store" in way else {}
            with Client(server.url, settings=ProducerSettings(**stored)) as client:
                submit(client, {"type": "text", "text": "Nothing."})  # loads the scripts
                print(f"  {way}: {grown(server, client, way) / NUM_JOBS:.0f}")
        server.close()


def submit(client: Client, part: dict[str, Any]) -> None:
    """Submit a job with a part."""
    question = {"type": "text", "text": "What is it?"}
    client.submit(messages=[{"role": "user", "content": [part, question]}], max_tokens=16)


def grown(server: RedisServer, client: Client, way: str) -> int:
    """Return the bytes by which the jobs of a way in make Redis grow."""
    with Redis.from_url(server.url) as connection:

        def used() -> int:
            info: Any = connection.info("memory")
            return int(info["used_memory_dataset"])

        before = used()
        for part in parts_of(way, client):
            submit(client, part)
        return used() - before


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    steps: dict[str, Callable[[str], None]] = {
        "memory": lambda _: measure_memory(),
        "decoding": lambda _: time_decoding(),
        "fifty": ask_fifty,
        "speed": compare_all,
    }
    parser.add_argument("--only", nargs="+", choices=steps, default=list(steps))
    options = parser.parse_args()
    for name in options.only:
        steps[name](options.folder)
        print(f"load {os.getloadavg()[0]:.1f}", flush=True)


def compare_all(folder: str) -> None:
    """Compare one picture at a time, and a batch."""
    for batch, count in BATCHES.items():
        compare(folder, batch, count)


if __name__ == "__main__":
    main()
