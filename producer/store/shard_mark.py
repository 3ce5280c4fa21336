"""What each shard notes about its name and the list it belongs to. No I/O.

The first program that uses a shard notes both. Programs with another list would send new work, and
look for idempotency keys, in other places, so they are refused. While a list changes, a shard
accepts two: `batchmill shards accept` notes the new one before the old.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.errors import ShardMismatch
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.call import Read, stored
from batchmill.producer.shard_list import Shard, ShardList, list_of_names

#: A model and a tenant, whose new jobs go to one shard.
Work = tuple[str, str]
#: Lists that a shard accepts at once.
MAX_ACCEPTED = 2


@dataclass(frozen=True, slots=True)
class ShardMark:
    """What a shard has noted."""

    name: str
    #: Names of the shards of the newest list.
    names: str
    #: Fingerprints of the lists that programs may have, the newest first.
    accepted: tuple[str, ...]
    #: Names of the shards of each list since the first, which is the first here; empty if unknown.
    lists: tuple[str, ...] = ()


def read_mark() -> Read[ShardMark | None]:
    """Read the mark of a shard; None for a broker that has none."""
    return Read(
        lambda pipeline: pipeline.hmget(keys.SHARD, "name", "names", "accepted", "lists"),
        lambda replies: _mark(stored(replies[0], (None, None, None, None))),
        keeps_errors=True,
    )


def note_mark(shard: Shard, shard_list: ShardList) -> Read[ShardMark | None]:
    """Note name and list in a shard that has no mark yet, and read what it has then."""
    names = shard_list.names
    mark = ShardMark(shard.name, names, (shard_list.fingerprint,), (names,))

    def queue(pipeline: Any) -> None:
        for name, value in _fields(mark).items():
            pipeline.hsetnx(keys.SHARD, name, value)
        read_mark().queue(pipeline)

    return Read(queue, lambda replies: _mark(replies[-1]), is_atomic=True)


def all_lists(shard_list: ShardList, marks: Sequence[ShardMark | None]) -> tuple[str, ...]:
    """Return the names of all lists since the first, with a new one at the end.

    Args:
        shard_list: the new list.
        marks: what its shards have noted before.

    Returns:
        An empty tuple if they are unknown.
    """
    found: dict[str, None] = {}
    for mark in marks:
        if mark is not None:
            if not mark.lists:
                return ()
            found |= dict.fromkeys(mark.lists)
    return tuple(found | {shard_list.names: None})


def accept_list(
    shard: Shard, shard_list: ShardList, mark: ShardMark | None, lists: tuple[str, ...]
) -> Read[None]:
    """Note a list as the newest one of a shard, which goes on accepting the one before.

    Args:
        shard: of the list.
        shard_list: the new list.
        mark: what the shard has noted before.
        lists: of `all_lists`.
    """
    before = () if mark is None else mark.accepted
    others = [each for each in before if each != shard_list.fingerprint]
    accepted = (shard_list.fingerprint, *others)[:MAX_ACCEPTED]
    return _put(ShardMark(shard.name, shard_list.names, accepted, lists))


def accept_only(shard: Shard, shard_list: ShardList, lists: tuple[str, ...]) -> Read[None]:
    """Note a list as the only one that a shard accepts."""
    return _put(ShardMark(shard.name, shard_list.names, (shard_list.fingerprint,), lists))


def homes_of(marks: Iterable[ShardMark], works: Iterable[Work]) -> set[str] | None:
    """Return the shards in which models and tenants have had jobs by any list until now.

    Args:
        marks: of the shards that have replied.
        works: models and tenants.

    Returns:
        The names of the shards; None if the earlier lists are unknown.
    """
    lists: set[str] = set()
    for mark in marks:
        if not mark.lists:
            return None
        lists |= set(mark.lists)
    if not lists:
        return None
    pairs = set(works)
    return {list_of_names(names).of_work(*pair).name for names in lists for pair in pairs}


def check_mark(mark: ShardMark | None, shard: Shard, shard_list: ShardList) -> ShardMark:
    """Return the mark of a shard if it is the one that a program's list means, and knows the list.

    Raises:
        ShardMismatch: it is another shard, or its list is another one.
    """
    if mark is None or mark.name != shard.name:
        raise ShardMismatch(
            f"the broker listed as shard {shard.name!r} has noted that it is shard "
            f"{'' if mark is None else mark.name!r}: "
            "correct the names in BATCHMILL_BROKER_URLS"
        )
    if shard_list.fingerprint not in mark.accepted:
        raise ShardMismatch(
            f"this program lists the shards ({shard_list.names}), and shard {shard.name!r} belongs "
            f"to ({mark.names}): give every program the same BATCHMILL_BROKER_URLS; to change the "
            "list, run `batchmill shards accept` with the new one first"
        )
    return mark


def unknown_shard_error(name: str, some_id: str, shard_list: ShardList) -> ShardMismatch:
    """Return the error of an id that leads to a shard outside the list."""
    return ShardMismatch(
        f"{some_id} is in shard {name!r}, which the list of shards ({shard_list.names}) does not "
        "name: add it to BATCHMILL_BROKER_URLS, with the mark :draining if it takes no new jobs"
    ).of_shards([name])


def _put(mark: ShardMark) -> Read[None]:
    fields = _fields(mark)
    return Read(lambda pipeline: pipeline.hset(keys.SHARD, mapping=fields), lambda _: None)


def _fields(mark: ShardMark) -> dict[str, str]:
    texts = {"name": mark.name, "names": mark.names}
    return texts | {"accepted": json.dumps(mark.accepted), "lists": json.dumps(mark.lists)}


def _mark(values: Sequence[bytes | None]) -> ShardMark | None:
    name, names, accepted, lists = [value or b"" for value in values]
    try:
        newest, known = names.decode(), tuple(map(str, json.loads(lists or b"[]")))
        # `shards accept` of an earlier version notes a list without adding it to all lists.
        all_known = known if newest in known else ()
        return ShardMark(name.decode(), newest, tuple(map(str, json.loads(accepted))), all_known)
    except (ValueError, TypeError):
        return None
