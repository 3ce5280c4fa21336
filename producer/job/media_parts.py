"""Pictures and sounds in the content of a message: all forms that are read, and the normal one.

In the normal form a part names a stored medium by its id, or a URL that a worker fetches. Content
that comes inside a part is taken out of the document: `MediaPart.content` has it until it is
stored.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, Field, PrivateAttr
from pydantic_core import PydanticCustomError

from batchmill.engine.contract.limits import MAX_MEDIA_BYTES
from batchmill.engine.contract.media import MEDIA_TYPES
from batchmill.producer.protocol.media import ID_PATTERN, MediaFile, is_media_id, media_id
from batchmill.producer.webhook.target import ForbiddenTarget, split_url

from .field_checks import STRICT
from .limits import MAX_URL_CHARS
from .media_format import check_kind

#: What stands for `no choice` in OpenAI's `detail`: the model decides how large it sees a picture.
_NEUTRAL_DETAILS: Final = (None, "auto")
_MAX_BASE64_CHARS: Final = (MAX_MEDIA_BYTES + 2) // 3 * 4
#: Keys of a part that say where its content is, besides those of an inner object.
_SOURCES: Final = ("media", "url", "base64", "data", "image", "audio")


def _check_media_id(text: str) -> str:
    if not is_media_id(text):
        raise ValueError("must be the id of a stored medium, as put_media returns it: med_…")
    return text


class MediaPart(BaseModel):
    """A picture or a sound, in the normal form: stored, or at a URL."""

    model_config = STRICT

    type: Literal["image", "audio"]
    """Kind of the part."""

    media: (
        Annotated[
            str, AfterValidator(_check_media_id), Field(json_schema_extra={"pattern": ID_PATTERN})
        ]
        | None
    ) = Field(default=None, exclude_if=lambda value: value is None)
    """Id of a stored medium, as `put_media` returns it."""

    url: str | None = Field(default=None, exclude_if=lambda value: value is None, repr=False)
    """An https URL, from which a worker fetches it."""

    _content: bytes | MediaFile | None = PrivateAttr(default=None)

    @property
    def content(self) -> bytes | MediaFile | None:
        """What came with the part; None if it is stored already, or at a URL."""
        return self._content


def read_media_part(part: Mapping[str, Any], where: str) -> MediaPart:
    """Return a part in the normal form.

    Args:
        part: in a form of OpenAI's chat or responses, of Hugging Face's templates, or the normal
            form.
        where: names it in errors.

    Raises:
        ValueError: it is malformed, or has content that is not a picture or a sound.
    """
    kind = MEDIA_TYPES[part["type"]]
    source, value = _source(part, where)
    if isinstance(value, bytes | bytearray):
        return _inline(bytes(value), kind, where)
    if not isinstance(value, str):
        raise ValueError(f"{where} must have its {source} as a text")
    if source == "media":
        if not is_media_id(value):
            raise ValueError(f"{where}.media must be the id that put_media returned: med_…")
        return MediaPart(type=_literal(kind), media=value)
    if source in ("base64", "data") and not _is_data_url(value):
        return _inline(_decoded(value, where), kind, where)
    if _is_data_url(value):
        return _inline(_data_of_url(value, where), kind, where)
    if is_media_id(value):
        return MediaPart(type=_literal(kind), media=value)
    return MediaPart(type=_literal(kind), url=_checked_url(value, where))


def _literal(kind: str) -> Literal["image", "audio"]:
    return "image" if kind == "image" else "audio"


def _source(part: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """Return where a part has its content, and that; keys without effect are dropped."""
    fields = {name: value for name, value in part.items() if value is not None and name != "type"}
    inner = fields.get(part["type"])
    if isinstance(inner, Mapping):  # OpenAI's image_url and input_audio
        del fields[part["type"]]
        fields |= {name: value for name, value in inner.items() if value is not None}
    elif part["type"] in fields and part["type"] not in _SOURCES:
        fields["url"] = fields.pop(part["type"])
    if "image_url" in fields and isinstance(fields["image_url"], str):  # of input_image
        fields["url"] = fields.pop("image_url")
    _check_choices(fields, where)
    given = [name for name in _SOURCES if name in fields]
    others = fields.keys() - {*_SOURCES, "detail", "format"}
    if "path" in others:
        raise ValueError(f"{where} names a path, which is never opened: send its bytes")
    if others:
        name = min(others)[:40]
        raise _unsupported(f"{where}.{name} is not supported: leave it out")
    if len(given) != 1:
        raise ValueError(f"{where} must have exactly one of {', '.join(_SOURCES[:4])}")
    return given[0], fields[given[0]]


def _check_choices(fields: Mapping[str, Any], where: str) -> None:
    if fields.get("detail") not in _NEUTRAL_DETAILS:
        raise _unsupported(
            f"{where}.detail must be auto: the model decides how large it sees a picture"
        )
    if not isinstance(fields.get("format"), str | None):
        raise ValueError(f"{where}.format must be a text, such as wav")


def _unsupported(message: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported_parameter", "{message}", {"message": message})


def _is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"  # of a scheme, the case does not count


def _data_of_url(url: str, where: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError(f"{where} has a data URL without base64: write data:image/png;base64,…")
    return _decoded(data, where)


def _decoded(text: str, where: str) -> bytes:
    if len(text) > _MAX_BASE64_CHARS:
        raise ValueError(
            f"{where} has more than {MAX_MEDIA_BYTES} bytes, the limit; send a smaller one"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"{where} has content that is not base64: use the standard alphabet, without spaces, "
            "line breaks or percent signs"
        ) from None


def part_of_file(file: MediaFile, kind: str, some_id: str) -> MediaPart:
    """Return a part whose content stays in a file of the caller's until it is stored."""
    part = MediaPart(type=_literal(kind), media=some_id)
    part._content = file
    return part


def _inline(content: bytes, kind: str, where: str) -> MediaPart:
    if len(content) > MAX_MEDIA_BYTES:
        raise ValueError(
            f"{where} has {len(content)} bytes, the limit is {MAX_MEDIA_BYTES}; send a smaller one"
        )
    try:
        check_kind(content, kind)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None
    part = MediaPart(type=_literal(kind), media=media_id(content))
    part._content = content
    return part


def _checked_url(url: str, where: str) -> str:
    """Check a URL's form; the worker that fetches it checks it against what the operator allows."""
    if len(url) > MAX_URL_CHARS:
        raise ValueError(
            f"{where} has a URL of {len(url)} characters, the limit is {MAX_URL_CHARS}"
        )
    try:
        split_url(url)
    except ForbiddenTarget as error:
        raise ValueError(f"{where} has a URL that is not fetched: {error}") from None
    return url


class UrlSource(BaseModel):
    """Where OpenAI's `image_url` and `audio_url` have their content."""

    model_config = STRICT

    url: str
    """An https URL, or a data URL with base64."""

    detail: Literal["auto"] | None = None
    """The model decides how large it sees a picture."""


class DataSource(BaseModel):
    """Where OpenAI's `input_audio` has its content."""

    model_config = STRICT

    data: str
    """The content as base64."""

    format: str | None = None
    """Told by the content itself; whatever is given here is not used."""


class MediaPartForms(BaseModel):
    """Every form of a part with a picture or a sound; exactly one field says where it is."""

    model_config = STRICT

    type: Literal["image", "image_url", "input_image", "audio", "audio_url", "input_audio"]
    """Kind of the part."""

    image_url: str | UrlSource | None = None
    """OpenAI's form."""

    audio_url: str | UrlSource | None = None
    """The same for a sound."""

    input_audio: DataSource | None = None
    """OpenAI's form of a sound."""

    media: Annotated[str, Field(json_schema_extra={"pattern": ID_PATTERN})] | None = None
    """Id of a stored medium."""

    url: str | None = None
    """An https URL, or a data URL with base64."""

    base64: str | None = None
    """The content as base64."""

    data: str | None = None
    """The same."""

    image: str | None = None
    """An https URL, a data URL, or the id of a stored medium."""

    audio: str | None = None
    """The same for a sound."""

    detail: Literal["auto"] | None = None
    """The model decides how large it sees a picture."""

    format: str | None = None
    """Told by the content itself; whatever is given here is not used."""
