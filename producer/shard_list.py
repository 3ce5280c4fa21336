"""Several brokers with names: `ShardList`, and which of them a job, a batch or an id belongs to.

`a=redis://one/0 b=redis://two/0`, with white space between the shards. Work is placed by rendezvous
hashing (Thaler and Ravishankar, 1998): each shard gets a number for a model and a tenant, and the
highest wins. A shard that joins takes only what it wins, and moves nothing between the others.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

#: Most shards in a list: an id that names none is looked up in each of them.
MAX_SHARDS: Final = 64
_FORM: Final = "name=URL name=URL …, as in a=redis://one:6379/0 b=redis://two:6379/0"
_NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
_ITEM = re.compile(r"([^=\s:/]+)(:[^=\s:/]+)?=(\S+)")
_STARTS_A_LIST = re.compile(r"\s*[^=\s:/]+(:[^=\s:/]+)?=")
_MARK: Final = ":draining"
#: Ids that this version makes for jobs, batches and files, with the shard's name at their end.
_ID_OF_SHARD = re.compile(r"(?:gen|batch|file)[_-][0-9a-f]{32}-([a-z][a-z0-9]{0,15})")


@dataclass(frozen=True, slots=True)
class Shard:
    """One broker of a list."""

    name: str
    url: str = field(repr=False)  # it may hold a password
    #: It takes no new work; what it has is finished and can be read.
    is_draining: bool = False

    def tagged(self, new_id: str) -> str:
        """Return an id that leads to this shard."""
        return f"{new_id}-{self.name}" if self.name else new_id


@dataclass(frozen=True, slots=True)
class ShardList:
    """The brokers of one system. A single URL is a list of one shard without a name."""

    shards: tuple[Shard, ...]

    @property
    def only(self) -> Shard | None:
        """The broker of a program that was given one URL; None for a list, also one of length 1."""
        return None if self.shards[0].name else self.shards[0]

    @property
    def names(self) -> str:
        """The names, with the draining ones marked."""
        marks = {True: _MARK, False: ""}
        return " ".join(f"{shard.name}{marks[shard.is_draining]}" for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """A digest of what decides where work goes. Addresses and passwords are not part of it."""
        return hashlib.sha256(" ".join(sorted(self.names.split())).encode()).hexdigest()[:16]

    def of_work(self, model: str, tenant: str) -> Shard:
        """Return the shard that new jobs of a tenant for a model go to."""
        takers = [shard for shard in self.shards if not shard.is_draining]
        return max(takers, key=lambda shard: (_weight(shard.name, model, tenant), shard.name))

    def in_order_of(self, key: str) -> list[Shard]:
        """Return all shards in an order that depends on a key: the first one is its own."""
        return sorted(
            self.shards, key=lambda shard: (_weight(shard.name, key, ""), shard.name), reverse=True
        )

    def named(self, name: str) -> Shard:
        """Return the shard with a name.

        Raises:
            ValueError: there is none.
        """
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise ValueError(f"shard {name!r} is not in the list of shards ({self.names})")


def list_of_names(names: str) -> ShardList:
    """Return the list whose `names` are given, without its URLs: it only says where work goes."""
    found = [name.partition(":") for name in names.split()]
    return ShardList(tuple(Shard(name, "", is_draining=bool(mark)) for name, mark, _ in found))


def shard_name_of(some_id: str) -> str | None:
    """Return the shard that an id names; None if it names none, as ids of callers do."""
    match = _ID_OF_SHARD.fullmatch(some_id)
    return None if match is None else match[1]


def tagged_like(new_id: str, other_id: str) -> str:
    """Return a new id that leads to the shard which another id names, if it names one."""
    name = shard_name_of(other_id)
    return new_id if name is None else Shard(name, "").tagged(new_id)


def is_shard_list(text: str) -> bool:
    """Return whether a broker's URL is a list of shards."""
    return _STARTS_A_LIST.match(text) is not None


def read_shard_list(text: str) -> ShardList:
    """Return the shards that a text names; a URL alone is one shard without a name.

    Raises:
        ValueError: an entry has another form, a name is invalid or given twice, there are too many
            shards, or all of them are draining. The message shows no URL.
    """
    if not is_shard_list(text):
        return ShardList((Shard("", text),))
    shards = tuple(_read_shard(item, place) for place, item in enumerate(text.split(), 1))
    names = [shard.name for shard in shards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the list of shards names {twice[0]!r} twice; give each its own name")
    if len(shards) > MAX_SHARDS:
        raise ValueError(f"the list has {len(shards)} shards; it may have {MAX_SHARDS} at most")
    if all(shard.is_draining for shard in shards):
        raise ValueError("every shard of the list is draining: one must take new work")
    return ShardList(shards)


def _read_shard(item: str, place: int) -> Shard:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise ValueError(f"entry {place} of the list of shards must have the form {_FORM}")
    name, mark, url = match.groups()
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"shard {name[:40]!r}: a name must be 1 to 16 lower-case letters and digits, and begin "
            "with a letter"
        )
    if mark not in (None, _MARK):
        raise ValueError(f"shard {name!r} is marked {mark[:40]!r}; the only mark is {_MARK!r}")
    return Shard(name, url, is_draining=mark is not None)


def _weight(name: str, model: str, tenant: str) -> int:
    content = "\0".join((name, model, tenant)).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
