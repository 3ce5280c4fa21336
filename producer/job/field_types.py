"""Types of a job's fields that are names, times, tags or the caller's own data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, WithJsonSchema

from batchmill.producer.protocol import keys
from batchmill.producer.webhook.target import split_url

from . import limits
from .field_checks import Text, check_utf8


def _check_webhook(url: str) -> str:
    """Check a webhook URL's form; `prepare` checks it against what the operator allows."""
    split_url(url)
    return url


def _check_secret_name(name: str) -> str:
    if name.startswith("whsec_"):
        raise ValueError("is a secret; give its name in the operator's settings")
    if not keys.is_secret_name(name):
        raise ValueError("must be 1 to 64 letters, digits, _ and -")
    return name


def _check_tenant(name: str) -> str:
    if not keys.is_tenant_name(name):
        raise ValueError("must be 1 to 64 letters, digits, _ . and -")
    return name


def _check_name(name: str) -> str:
    if not keys.is_adapter_name(name):
        raise ValueError("must be 1 to 64 letters, digits, _ . and -")
    return name


def _check_model(name: str) -> str:
    keys.queue_name(name, "normal")
    return name


def _check_idempotency_key(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ValueError("must be printable ASCII")
    return key


def check_tag(tag: str) -> str:
    """Return a tag that a job can have.

    Raises:
        ValueError: it is empty, too long, or has a comma or an unprintable character.
    """
    if not 1 <= len(tag) <= limits.MAX_TAG_CHARS:
        raise ValueError(f"a tag has {len(tag)} characters; use 1 to {limits.MAX_TAG_CHARS}")
    if "," in tag or not tag.isprintable():
        raise ValueError("a tag has a comma or an unprintable character; use neither")
    return tag


def _check_tags(tags: list[str]) -> list[str]:
    if len(set(tags)) != len(tags):
        raise ValueError("has a tag twice; give each once")
    return tags


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    num_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    if num_bytes > limits.MAX_METADATA_BYTES:
        raise ValueError(
            f"has {num_bytes} bytes, the limit is {limits.MAX_METADATA_BYTES}; "
            "keep the rest on your side, under the job's id"
        )
    return metadata


def _check_metadata_value(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(
            f"is of the type {type(value).__name__}, but must be text, as it comes back; convert "
            "it with str() or json.dumps()"
        )
    return value


#: A date and time with a time zone, as text; or seconds of unix time.
Moment = Annotated[
    AwareDatetime,
    Field(strict=False),
    WithJsonSchema({"anyOf": [{"format": "date-time", "type": "string"}, {"type": "number"}]}),
]
MetadataKey = Annotated[
    str, Field(min_length=1, max_length=limits.MAX_METADATA_KEY_CHARS), AfterValidator(check_utf8)
]


#: Receives signed POSTs. https, unless the operator allows http.
WebhookUrl = Annotated[str, Field(max_length=limits.MAX_URL_CHARS), AfterValidator(_check_webhook)]
#: Name of one of the operator's secrets.
SecretName = Annotated[str, AfterValidator(_check_secret_name)]
IdempotencyKey = Annotated[
    str,
    Field(min_length=1, max_length=limits.MAX_IDEMPOTENCY_KEY_CHARS),
    AfterValidator(_check_idempotency_key),
]
TenantName = Annotated[
    str,
    AfterValidator(_check_tenant),
    Field(json_schema_extra={"pattern": keys.TENANT_PATTERN}),
]
Metadata = Annotated[
    dict[MetadataKey, Annotated[Text, BeforeValidator(_check_metadata_value)]],
    Field(max_length=limits.MAX_METADATA_PAIRS),
    AfterValidator(_check_metadata),
]
ModelName = Annotated[str, AfterValidator(_check_model)]
AdapterName = Annotated[
    str, AfterValidator(_check_name), Field(json_schema_extra={"pattern": keys.TENANT_PATTERN})
]
#: Name of the template of a job.
CorpusName = AdapterName
Tags = Annotated[
    list[Annotated[str, AfterValidator(check_tag)]],
    Field(max_length=limits.MAX_TAGS),  # before what looks at each: a list may be endless
    AfterValidator(_check_tags),
]
