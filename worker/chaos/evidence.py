"""What explains a broken promise: records, results, events and the faults of the same time.

It is read before the run forgets its jobs, so that a violation can be explained without a second
run, in which it may not happen again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore

from .observed import CELERY_RESULT, Observed
from .oracle import Broken, Promise
from .timeline import Happening, Timeline
from .traffic import FOLLOW_UP_QUEUE

#: Broken promises of one kind whose evidence is collected.
_MAX_PER_PROMISE = 50
#: Before a job's submission and after its end, in which a fault may still explain something.
_MARGIN_MS = 5_000
#: Times of a record that the life of its job is taken from.
_TIMES = ("enqueued_at_ms", "announced_at_ms", "started_at_ms", "claimed_at_ms", "finished_at_ms")
#: Faults that are shown to people, the last ones.
_MAX_SHOWN = 25
#: Longest value that is kept, in characters.
_MAX_CHARS = 20_000

Evidence = dict[str, Any]


def gather(
    store: JobStore,
    observed: Observed,
    broken: Iterable[Broken],
    timeline: Timeline,
    trace_path: Path,
) -> list[Evidence]:
    """Return the evidence of broken promises, as JSON; of many of one kind, that of the first.

    Args:
        store: reads Redis.
        observed: what was seen of the run.
        broken: the broken promises.
        timeline: of the run.
        trace_path: the log of the tokens that engines computed.
    """
    some = list(_first_of_each_kind(broken))
    ids = {each_id for each in some for each_id in each.ids}
    computed = _claims_in_trace(trace_path, ids)
    sent = _follow_ups(store, ids)
    found = []
    for each in some:
        about = {each_id: _about(store, observed, each_id, computed, sent) for each_id in each.ids}
        period = _period(list(about.values()))
        found.append(
            {
                "promise": each.promise.value,
                "subject": each.subject,
                "detail": each.detail,
                **each.values,
                "about": about,
                "meanwhile": [asdict(happening) for happening in timeline.during(*period)],
            }
        )
    return found


def describe_keys(store: JobStore, names: Sequence[str]) -> list[Evidence]:
    """Return the evidence of keys that are left: type and content of the first ones."""
    return [
        {"promise": Promise.LEAKED.value, "subject": name, "key": _key(store.client, name)}
        for name in names[:_MAX_PER_PROMISE]
    ]


def lines_about(evidence: Evidence, timeline: Timeline) -> Iterator[str]:
    """Yield lines for people: each record with its attempts, and the faults of the same time."""
    for each_id, about in evidence.get("about", {}).items():
        record = about.get("record")
        if record:
            yield f"{each_id}: {_record_in_words(record, timeline)}"
        if posts := about.get("posts"):
            shown = (f"{_at(timeline, post['at_ms'])} got {post['status']}" for post in posts)
            yield f"{each_id}: POSTs at " + ", ".join(shown)
    happenings = [Happening(**each) for each in evidence.get("meanwhile", ())]
    words = [_happening_in_words(each, timeline) for each in happenings[-_MAX_SHOWN:]]
    if len(happenings) > _MAX_SHOWN:
        words.insert(0, f"… and {len(happenings) - _MAX_SHOWN} before them")
    yield "faults of its time: " + ("; ".join(words) or "none")


def _first_of_each_kind(broken: Iterable[Broken]) -> Iterator[Broken]:
    seen: Counter[Promise] = Counter()
    for each in broken:
        seen[each.promise] += 1
        if seen[each.promise] <= _MAX_PER_PROMISE:
            yield each


def _about(
    store: JobStore,
    observed: Observed,
    each_id: str,
    computed: Mapping[str, Any],
    sent: Mapping[str, list[Any]],
) -> dict[str, Any]:
    """Return everything that is known under one id: of a job, a batch, an event or a task."""
    client: Any = store.client
    deliveries = observed.deliveries
    record = _texts(client.hgetall(keys.job(each_id)))
    group = json.loads(record.get("celery_headers") or "{}").get("group")
    found = {
        "record": record,
        "num_tokens": int(client.strlen(keys.tokens(each_id))) // 4,
        "lease": client.zscore(keys.LEASES, each_id),
        "celery_result": json.loads(client.get(CELERY_RESULT + each_id) or b"null"),
        "celery_group": {
            key.decode(): _key(client, key.decode())
            for key in (client.scan_iter(f"*{group}*", count=5000) if group else ())
        },
        "batch": _texts(client.hgetall(keys.batch(each_id))),
        "event": _texts(client.hgetall(keys.event(each_id))),
        "dead_letter": _texts(client.hgetall(keys.dead(each_id))),
        "posts": [asdict(post) for post in deliveries.posts.get(each_id, ())],
        "bodies": [
            body.decode(errors="replace") for body in sorted(deliveries.bodies.get(each_id, ()))
        ],
        "follow_ups": sent.get(each_id),
        "computed": computed.get(each_id),
    }
    return {name: value for name, value in found.items() if value}


def _texts(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {
        name.decode(errors="replace"): value.decode(errors="replace")[:_MAX_CHARS]
        for name, value in fields.items()
    }


def _key(client: Any, name: str) -> dict[str, Any]:
    kind = client.type(name).decode()
    reads: dict[str, Callable[[], Any]] = {
        "string": lambda: client.get(name),
        "hash": lambda: client.hgetall(name),
        "list": lambda: client.lrange(name, 0, 99),
        "set": lambda: sorted(client.smembers(name))[:100],
        "zset": lambda: client.zrange(name, 0, 99, withscores=True),
    }
    value = reads[kind]() if kind in reads else None
    return {"type": kind, "ttl_s": client.ttl(name), "value": repr(value)[:_MAX_CHARS]}


def _claims_in_trace(path: Path, ids: set[str]) -> dict[str, dict[str, list[int]]]:
    """Return, per job and request of an engine, its first and last position and their number."""
    found: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
    if not ids or not path.exists():
        return found
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            request_id, _, position = line.rstrip().rpartition(" ")
            job_id, _, _ = request_id.partition(".")
            if job_id not in ids or not position.isdigit():
                continue
            at = int(position)
            first, _, number = found[job_id].get(request_id, [at, at, 0])
            found[job_id][request_id] = [first, at, number + 1]
    return found


def _follow_ups(store: JobStore, ids: set[str]) -> dict[str, list[Any]]:
    """Return the messages in the queue of follow-ups by the ids of their tasks."""
    client: Any = store.client
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for element in client.lrange(FOLLOW_UP_QUEUE, 0, -1):
        message = json.loads(element)
        task_id = message["headers"]["id"]
        if task_id in ids:
            found[task_id].append(message)
    return found


def _period(abouts: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the time from the submission to the end of what the ids name; all time if unknown."""
    times = [
        int(float(about["record"][name]))
        for about in abouts
        for name in _TIMES
        if name in about.get("record", {})
    ]
    times += [post["at_ms"] for about in abouts for post in about.get("posts", ())]
    if not times:
        return 0, 1 << 62
    is_open = any(
        "finished_at_ms" not in about["record"] for about in abouts if about.get("record")
    )
    return min(times) - _MARGIN_MS, 1 << 62 if is_open else max(times) + _MARGIN_MS


def _record_in_words(record: Mapping[str, str], timeline: Timeline) -> str:
    history = json.loads(record.get("history") or "[]")
    claims = [
        f"{each['attempt']} {each['worker']} {_at(timeline, each['claimed_at_ms'])}-"
        f"{_at(timeline, each['ended_at_ms'])} {each['cause']} "
        f"(tokens {each['tokens_at_claim']}-{each['tokens_at_end']})"
        for each in history
    ]
    code = json.loads(record.get("error") or "{}").get("code")
    counts = [
        f"{name} {record[name]}"
        for name in ("attempts", "suspect", "crashes", "lost_leases", "restarts", "announcements")
        if name in record
    ]
    state = record.get("state", "?") + (f" ({code})" if code else "")
    submitted = _at(timeline, int(float(record.get("enqueued_at_ms", 0))))
    return f"{state}, submitted {submitted}, {', '.join(counts)}; " + "; ".join(claims)


def _happening_in_words(happening: Happening, timeline: Timeline) -> str:
    words = f"{_at(timeline, happening.from_ms)}"
    if happening.to_ms is None:
        words += "-"
    elif happening.to_ms > happening.from_ms:
        words += f"-{_at(timeline, happening.to_ms)}"
    return f"{words} {happening.what} {happening.program}".rstrip()


def _at(timeline: Timeline, at_ms: int) -> str:
    return f"{timeline.since_start_s(at_ms):.2f}"
