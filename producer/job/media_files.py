"""Pictures and sounds in files on the caller's machine: `batchmill submit --image` and `bulk`.

Only the one who runs these commands names files: a document of a job cannot.
"""

from __future__ import annotations

from pathlib import Path

from batchmill.engine.contract.limits import MAX_MEDIA_BYTES
from batchmill.producer.protocol.media import MediaFile, is_media_id, media_id

from .media_format import check_kind
from .media_parts import MediaPart, part_of_file, read_media_part

#: Of a source, in errors.
_MAX_NAMED_CHARS = 200
_SCHEMES = ("https://", "http://", "data:")


def media_part(source: str, kind: str, folder: Path | None = None) -> MediaPart:
    """Return the part of a message for a file, a URL, or the id of a stored medium.

    Args:
        source: which of them.
        kind: `image` or `audio`.
        folder: what a relative path is relative to; None is the current one.

    Raises:
        ValueError: the file cannot be read, or it is too large or not of this kind; the message is
            a sentence that names the source.
    """
    if source.startswith(_SCHEMES) or is_media_id(source):
        return read_media_part({"type": kind, kind: source}, f"the {kind}")
    path = Path(source) if folder is None else folder / source
    what = f"the {kind} {source[:_MAX_NAMED_CHARS]}"
    try:
        with path.open("rb") as handle:
            content = handle.read(MAX_MEDIA_BYTES + 1)
        if len(content) > MAX_MEDIA_BYTES:
            raise ValueError(
                f"has more than {MAX_MEDIA_BYTES} bytes, the limit; send a smaller one"
            )
        check_kind(content, kind)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{what} cannot be read: {reason}") from None
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None
    return part_of_file(MediaFile(path, len(content)), kind, media_id(content))
