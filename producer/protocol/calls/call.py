"""`Call`, one script call, and `Read`, one read: values that a store runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from redis.exceptions import OutOfMemoryError, ResponseError

from batchmill.producer.protocol.content import (
    Cipher,
    Content,
    Fingerprint,
    JsonContent,
    KeyIds,
)
from batchmill.producer.protocol.media import MediaContent, MediaName, MediaNames, NewMedia

Value = TypeVar("Value")
Other = TypeVar("Other")
Parsed = TypeVar("Parsed", covariant=True)
Argument = (
    str
    | bytes
    | int
    | Content
    | JsonContent
    | Fingerprint
    | KeyIds
    | MediaContent
    | MediaName
    | MediaNames
)


@dataclass(frozen=True, slots=True)
class Call(Generic[Value]):
    """One script call: which script, its arguments, and how to parse the reply."""

    script: str
    args: Sequence[Argument]
    parse: Callable[[Any], Value]
    #: The value if Redis is full and refuses to run the script; None makes it an error.
    when_out_of_memory: Value | None = None
    #: The value if a key that the script uses is of another type; None makes it an error.
    when_unusable: Value | None = None
    #: Opens the sealed values of a reply, before it is parsed; None if it has none.
    opens: Callable[[Any, Cipher], Any] | None = None
    #: The reply keeps its references to objects: its reader must not wait for them.
    leaves_objects: bool = False
    #: Pictures and sounds that must be stored before the script runs.
    media: Sequence[NewMedia] = ()
    #: Of Redis' memory, for these.
    max_memory_percent: int | None = None

    def resolved_args(self, cipher: Cipher) -> list[str | bytes | int]:
        """Return the arguments to send: content is sealed, if there are keys."""
        return [
            arg if isinstance(arg, str | bytes | int) else arg.resolved(cipher) for arg in self.args
        ]

    def then(
        self, convert: Callable[[Value], Other], when_out_of_memory: Other | None = None
    ) -> Call[Other]:
        """Return the same call with a further step after the parsing."""
        return Call(
            self.script,
            self.args,
            lambda reply: convert(self.parse(reply)),
            when_out_of_memory,
            opens=self.opens,
            media=self.media,
            max_memory_percent=self.max_memory_percent,
        )


@dataclass(frozen=True, slots=True)
class Read(Generic[Parsed]):
    """One read: the commands to queue on a pipeline, and how to parse their replies."""

    queue: Callable[[Any], None]
    parse: Callable[[list[Any]], Parsed]
    #: The commands see one moment of the data.
    is_atomic: bool = False
    #: `parse` gets the errors of single commands, for `stored`; otherwise the first one is raised.
    keeps_errors: bool = False
    #: Opens the sealed values of the replies, before they are parsed; None if there are none.
    opens: Callable[[list[Any], Cipher], list[Any]] | None = None

    def parsed(self, replies: list[Any], cipher: Cipher) -> Parsed:
        """Return the value of the replies.

        Raises:
            UnreadableContent: a value that is needed cannot be opened.
        """
        return self.parse(replies if self.opens is None else self.opens(replies, cipher))


def read_reply(call: Call[Value], reply: Any, cipher: Cipher) -> Value:
    """Return the parsed reply to a call, which may be an error of the server.

    Raises:
        UnreadableContent: a sealed value cannot be opened.
        redis.exceptions.ResponseError: the reply is an error, and no value stands for it.
    """
    if isinstance(reply, OutOfMemoryError) and call.when_out_of_memory is not None:
        return call.when_out_of_memory
    if is_wrong_type(reply) and call.when_unusable is not None:
        return call.when_unusable
    if isinstance(reply, Exception):
        raise reply
    return call.parse(reply if call.opens is None else call.opens(reply, cipher))


def is_wrong_type(reply: Any) -> bool:
    """Return whether a reply is the error of a key of another type, which batchmill did not write.

    Servers before Redis 7 quote a script's error after words of their own.
    """
    return isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply)


def stored(reply: Any, default: Any = None) -> Any:
    """Return the reply to a read, or a default if batchmill did not write what the key holds.

    One such key must not hide the others of a list.

    Raises:
        redis.exceptions.ResponseError: the server refused the command for another reason.
    """
    if is_wrong_type(reply):
        return default
    if isinstance(reply, Exception):
        raise reply
    return reply


def readable_names(names: Iterable[bytes]) -> list[str]:
    """Return names as text, sorted, without those that are not UTF-8: batchmill writes none."""
    readable = []
    for name in names:
        with contextlib.suppress(UnicodeDecodeError):
            readable.append(name.decode())
    return sorted(readable)


def named(fields: Mapping[str, Argument | None]) -> list[Argument]:
    """Return names and values in turn, as scripts with many arguments take them."""
    return [item for name, value in fields.items() if value is not None for item in (name, value)]
