"""What is fuzzed: each subject makes an input from a random source and says what became of it."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from redis.exceptions import RedisError
from transformers import PreTrainedTokenizerFast

from batchmill.engine.errors import RequestError
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.chat_template import render_chat
from batchmill.producer import BatchmillError, Client, JobRejected
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.inbox_document import read_document
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.consumer.queue_message import read_queue_message
from batchmill.worker.errors import MalformedMessage

from ..conftest import RedisServer
from ..engine.text.structures import GRAMMARS, REGEXES, SCHEMAS
from ..support import chat_templates
from ..support.byte_tokenizer import save_byte_tokenizer
from ..worker.announcements import announcement
from ..worker.jobs.hostile_messages import FORGED_BODIES, FORGED_HEADERS
from .values import any_text, any_value, as_json, mutated, mutated_bytes

#: Tries one random input; returns a word that says what became of it. Raises for a defect.
Trial: TypeAlias = Callable[[random.Random], str]
_TEMPLATES = (chat_templates.HERMES, chat_templates.LLAMA3, chat_templates.MISTRAL)
_TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
_MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a mill?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "look_up", "arguments": '{"word": "mill"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "a machine"},
]
_JOB: dict[str, Any] = {
    "prompt": "x",
    "max_tokens": 5,
    "temperature": 0.7,
    "top_p": 0.9,
    "seed": 7,
    "n": 2,
    "stop": ["a", "b"],
    "tags": ["a"],
    "metadata": {"a": "b"},
    "tenant": "t",
    "ttl_s": 60,
    "logit_bias": {"5": 1.0},
    "priority": "low",
    "webhook": "https://example.com/hook",
}


@contextmanager
def structures() -> Iterator[Trial]:
    """Schemas, regular expressions and grammars at submit."""

    def draw(rng: random.Random) -> dict[str, Any]:
        kind = rng.choice(("json", "json", "json", "regex", "grammar", "choice"))
        if kind == "json":
            schema = mutated(rng, rng.choice(list(SCHEMAS.values())))
            return {"json": schema if rng.random() < 0.9 else any_value(rng, 6)}
        if kind == "regex":
            text = rng.choice(REGEXES) if rng.random() < 0.5 else any_text(rng)
            return {"regex": "".join(rng.choice((text, any_text(rng))) for _ in range(3))}
        if kind == "grammar":
            data = mutated_bytes(rng, rng.choice(list(GRAMMARS)).encode())
            return {"grammar": data.decode(errors="replace")}
        return {"choice": any_value(rng, 2)}

    def trial(rng: random.Random) -> str:
        try:
            parse_job({"prompt": "x", "structured_outputs": draw(rng)})
        except JobRejected as error:
            return error.code
        return "accepted"

    yield trial


@contextmanager
def documents() -> Iterator[Trial]:
    """Job documents, as a mapping, in a record, and in the inbox."""

    def trial(rng: random.Random) -> str:
        document = mutated(rng, _JOB if rng.random() < 0.6 else {"messages": _MESSAGES})
        read = rng.choice((parse_document, read_document, parse_job))
        given = document if read is parse_job else as_json(rng, document)
        if read is parse_job and not isinstance(given, dict):
            return "not a mapping"
        try:
            read(given)  # type: ignore[arg-type]
        except JobRejected as error:
            return error.code
        except MalformedMessage as error:
            return error.code
        return "accepted"

    yield trial


@contextmanager
def messages() -> Iterator[Trial]:
    """Elements of a queue."""

    def trial(rng: random.Random) -> str:
        message = json.loads(announcement("gen_1"))
        message["headers"] |= rng.choice(FORGED_HEADERS) if rng.random() < 0.3 else {}
        if rng.random() < 0.3:
            message["body"] = json.dumps(mutated(rng, rng.choice(FORGED_BODIES)))
        message = mutated(rng, message)
        try:
            read = read_queue_message(as_json(rng, message))
        except MalformedMessage as error:
            return error.code
        return "announcement" if read.is_announcement else "task"

    yield trial


@contextmanager
def templates() -> Iterator[Trial]:
    """Chats, rendered by damaged templates of model families."""
    with tempfile.TemporaryDirectory() as folder:
        save_byte_tokenizer(Path(folder), chat_templates.SPECIAL_TOKENS)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    def trial(rng: random.Random) -> str:
        template = rng.choice(_TEMPLATES)
        if rng.random() < 0.7:
            template = mutated_bytes(rng, template.encode()).decode(errors="replace")
        tokenizer.chat_template = template
        chat: dict[str, Any] = {"messages": mutated(rng, _MESSAGES)}
        if rng.random() < 0.5:
            chat["tools"] = mutated(rng, [_TOOL])
        try:
            render_chat(tokenizer, Chat(**chat), "fuzzed")
        except RequestError as error:
            return str(error.code)
        return "rendered"

    yield trial


@contextmanager
def records() -> Iterator[Trial]:
    """Damaged records and indexes in Redis, under every script and every reading verb."""
    with ExitStack() as stack:
        server = RedisServer()
        stack.callback(server.close)
        server.start()
        store = JobStore.from_url(server.url)
        stack.callback(store.close)
        client = stack.enter_context(Client(server.url, settings=ProducerSettings()))
        yield lambda rng: _try_record(rng, store, client)


def _try_record(rng: random.Random, store: JobStore, client: Client) -> str:
    raw: Any = store.client
    raw.flushall()
    job = client.submit(prompt="x", max_tokens=4, tags=["a"], webhook="https://example.com/h")
    if rng.random() < 0.5:
        store.claim(job.id, owner="w", lease_ms=rng.choice((1, 60_000)), identity="m")
    _damage(rng, raw)
    outcomes = set()
    for verb in rng.sample(_verbs(store, client, job.id), 4):
        try:
            verb()
        except BatchmillError as error:
            outcomes.add(type(error).__name__)
        except RedisError as error:  # of the job's own keys: a worker takes it for unusable
            if "WRONGTYPE" not in str(error) and "unusable" not in str(error):
                raise
            outcomes.add("wrong type")
    _check_canary(store, client)
    return ", ".join(sorted(outcomes)) or "answered"


def _damage(rng: random.Random, raw: Any) -> None:
    for key in rng.sample(sorted(raw.keys("batchmill:*")), 2):
        action = rng.randrange(4)
        kind = raw.type(key)
        if action == 0:
            raw.delete(key)
        elif action == 1:
            raw.delete(key)
            raw.set(key, any_text(rng).encode("utf-8", "surrogatepass"))
        elif kind == b"hash":
            field = rng.choice(sorted(raw.hkeys(key)))
            value = rng.choice((b"", b"x", b"-1", b"\xff", b"nan", b"1 2"))
            raw.hset(key, field, value)
        elif kind == b"zset":
            raw.zadd(
                key, {rng.choice((b"", b"\xff", b"no-such-job", b"a b")): rng.choice((0, 1e15))}
            )
        elif kind == b"list":
            raw.lpush(key, rng.choice((b"", b"{}", b"\xff")))


def _verbs(store: JobStore, client: Client, job_id: str) -> list[Callable[[], object]]:
    return [
        lambda: store.sweep(),
        lambda: store.claim(job_id, owner="v", lease_ms=1000, identity="m"),
        lambda: store.announce_due(),
        lambda: store.counts(),
        lambda: store.outbox_claim(owner="d", limit=10, lease_ms=1000),
        lambda: store.dead_letters(),
        lambda: client.status(job_id),
        lambda: client.progress(job_id),
        lambda: client.list(tag="a"),
        lambda: client.cancel(job_id),
        lambda: client.retry(job_id),
        lambda: client.forget(job_id),
        lambda: client.cancel_where(tag="a"),
        lambda: client.forget_where(tag="a"),
        lambda: client.result(job_id, 0),
    ]


def _check_canary(store: JobStore, client: Client) -> None:
    """Check that another job still runs to its end, unless its shared keys were damaged."""
    raw: Any = store.client
    shared = [key for key in raw.keys("batchmill*") if b":job:" not in key]
    wrong = [key for key in shared if raw.type(key) == b"string"]
    if wrong:
        raw.delete(*wrong)  # an operator's remedy for a shared key of another type
    job = client.submit(prompt="canary", max_tokens=1)
    claim = store.claim(job.id, owner="c", lease_ms=60_000, identity="m")
    assert isinstance(claim, Claim), claim
    store.complete(job.id, fence=claim.fence, state=JobState.COMPLETED, result='{"text":""}')
    assert store.state(job.id) is JobState.COMPLETED
    assert keys.is_job_id(job.id)


SUBJECTS = {each.__name__: each for each in (structures, documents, messages, templates, records)}
