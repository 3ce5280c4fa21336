"""Measures how much of Redis' memory a job takes while it waits and after its end.

Run it while a worker serves the broker, for instance that of `batchmill up`:

    python tests/bench/job_memory.py --broker-url URL
"""

from __future__ import annotations

import argparse
from typing import Any

from redis import Redis

from batchmill.producer import Client
from batchmill.producer.broker_url import redis_url
from batchmill.producer.protocol import keys

PROMPT = "Once upon a time there was a little girl. " * 10
CASES: tuple[dict[str, Any], ...] = (
    *({}, {"n": 8}, {"logprobs": 0}, {"logprobs": 5}, {"logprobs": 20}),
    *({"n": 8, "logprobs": 5}, {"entropy": True}, {"prompt_logprobs": 5}, {"prompt_logprobs": 20}),
)
NUM_TOKENS = (1, 200)


def job_bytes(redis: Redis, job_id: str) -> int:
    """Return the bytes of a job's record, tokens and text."""
    names = (keys.job(job_id), keys.tokens(job_id), keys.text(job_id))
    return sum(int(redis.memory_usage(name, samples=0) or 0) for name in names)


def measure(client: Client, redis: Redis, fields: dict[str, Any], max_tokens: int) -> int:
    """Return the bytes that a job has grown by from its submission to its end."""
    options = {"ignore_eos": True, "temperature": 1.0, "seed": 7, **fields}
    job = client.submit(prompt=PROMPT, max_tokens=max_tokens, **options)
    before = job_bytes(redis, job.id)
    job.result(timeout_s=300)
    grown = job_bytes(redis, job.id) - before
    client.forget(job.id)
    return grown


def main() -> None:
    """Print, for each kind of output, the bytes of a job with one token and of a further token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker-url", required=True)
    url = parser.parse_args().broker_url
    redis = Redis.from_url(redis_url(url))
    with Client(url) as client:
        for fields in CASES:
            short, long = (measure(client, redis, fields, number) for number in NUM_TOKENS)
            num_more = (NUM_TOKENS[1] - NUM_TOKENS[0]) * fields.get("n", 1)
            names = ", ".join(f"{name}={value}" for name, value in fields.items()) or "text"
            per_token = (long - short) / num_more
            print(f"{names}: {short} bytes with one token, {per_token:.1f} per token")


if __name__ == "__main__":
    main()
