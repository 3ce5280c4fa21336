"""What seals and opens if there is an object store: as the key ring, and with references."""

from __future__ import annotations

from collections.abc import Mapping

from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.errors import BatchmillError, ContentChanged
from batchmill.producer.protocol.content import Place, UnreadableContent
from batchmill.producer.protocol.opening import OBJECT_FIELDS
from batchmill.producer.protocol.payloads import (
    READS_OBJECTS,
    Reference,
    is_reference,
    read_reference,
)


class OutgoingContent:
    """Seals what a call sends. Of long content, a reference is sent; the objects are collected.

    Attributes:
        objects: contents by name, to write before the call is sent.
    """

    def __init__(self, key_ring: KeyRing, threshold_bytes: int) -> None:
        """Take the keys, and the length from which content is sent as a reference."""
        self._key_ring = key_ring
        self._threshold_bytes = threshold_bytes
        self.objects: dict[str, bytes] = {}

    @property
    def key_ids(self) -> tuple[str, ...]:
        """What this program can read: values of these keys, and objects."""
        return (*self._key_ring.key_ids, READS_OBJECTS)

    def seal(self, content: bytes, place: Place) -> bytes:
        """Return the sealed value of content, or a reference to it."""
        value = self._key_ring.seal(content, place)
        if len(content) <= self._threshold_bytes or place.field not in OBJECT_FIELDS:
            return value
        key_id = self._key_ring.key_ids[0] if self._key_ring.key_ids else None
        reference = Reference.to(value, place.owner, place.field, key_id)
        self.objects[reference.name] = value
        return reference.to_bytes()

    def open(self, value: bytes, place: Place) -> bytes:
        """Open nothing but what needs no object; see `KeyRing.open`."""
        return self._key_ring.open(value, place)

    def changed(self, place: Place) -> UnreadableContent:
        """Return the error of a value that was changed in Redis."""
        return self._key_ring.changed(place)

    def fingerprints(self, digest: str, scope: str) -> str:
        """Return names of a digest; see `KeyRing.fingerprints`."""
        return self._key_ring.fingerprints(digest, scope)


class IncomingContent(OutgoingContent):
    """Opens what was read, with the objects that it refers to."""

    def __init__(self, key_ring: KeyRing, objects: Mapping[str, bytes | BatchmillError]) -> None:
        """Take the keys, and the objects by name: their content, or why they cannot be read."""
        super().__init__(key_ring, 0)
        self._objects = objects

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of the keys that open."""
        return self._key_ring.key_ids

    def open(self, value: bytes, place: Place) -> bytes:
        """Return the content of a value, or of the object that it refers to.

        Raises:
            KeyMissing: the ring does not have its key.
            ContentChanged: the value or the object was changed, or moved from another place.
            PayloadMissing: the object does not exist.
            PayloadUnreachable: the object could not be read.
        """
        if not is_reference(value):
            return self._key_ring.open(value, place)
        reference = read_reference(value)
        if reference is None or not reference.is_of(place.owner, place.field):
            raise self.changed(place)
        found = self._objects[reference.name]
        if isinstance(found, BatchmillError):
            raise found
        if not reference.matches(found):
            raise ContentChanged(
                f"{place.field} of {place.owner} was changed in the object store: {reference.name} "
                "is not what was written; restore it from a backup, or submit the job again"
            )
        return self._key_ring.open(found, place)
