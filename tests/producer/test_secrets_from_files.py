"""Every secret setting can be read from a file, as containers mount secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings

from batchmill.producer import new_secret
from batchmill.producer.broker_url import find_broker
from batchmill.producer.encryption.key_ring import new_key
from batchmill.producer.secrets_from_files import without_file
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.webhook.target_settings import holds_secret
from batchmill.worker.settings import WorkerSettings
from batchmill.worker.webhooks.settings import WebhookSettings

URL = "redis://worker:password@host:6379/0"
SECRET = new_secret()
CONTENTS = {
    "broker_url": URL,
    "broker_urls": f"a={URL} b=redis://worker:password@other:6379/0",
    "encryption_keys": new_key("a").to_text(),
    "payload_url": "s3://key:password@bucket/jobs",
    "watermark_keys": '{"a": "%s"}' % ("secret" * 8),
    "webhook_secret": SECRET,
    "webhook_secrets": f'{{"billing": "{SECRET}"}}',
}
SECRETS = [
    (cls, name)
    for cls in (ProducerSettings, WorkerSettings, WebhookSettings)
    for name, field in cls.model_fields.items()
    if holds_secret(field)
]


def shown(value: object) -> object:
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def test_the_secret_settings_are_those_that_this_file_knows() -> None:
    assert {name for _, name in SECRETS} == set(CONTENTS)


@pytest.mark.parametrize(("cls", "name"), SECRETS)
def test_a_secret_is_read_from_its_file(
    cls: type[BaseSettings], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"BATCHMILL_{name.upper()}"
    monkeypatch.setenv(variable, CONTENTS[name])
    expected = shown(getattr(cls(), name))
    monkeypatch.delenv(variable)
    path = tmp_path / "secret"
    path.write_text(CONTENTS[name] + "\n")
    monkeypatch.setenv(f"{variable}_FILE", str(path))

    assert shown(getattr(cls(), name)) == expected


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b" \n", "is empty"), (b"\xff", "not UTF-8")]
)
def test_a_file_that_holds_no_secret_is_refused_by_name(
    content: bytes | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRET_FILE", str(path))
    with pytest.raises(ValidationError, match=f"BATCHMILL_WEBHOOK_SECRET_FILE names .*{reason}"):
        WebhookSettings()


def test_a_secret_and_its_file_at_once_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text(URL)
    monkeypatch.setenv("BATCHMILL_BROKER_URL", URL)
    monkeypatch.setenv("BATCHMILL_BROKER_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(ValidationError, match="are both set"):
        ProducerSettings()
    with pytest.raises(ValueError, match="are both set"):
        find_broker()


def test_the_broker_of_clients_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(URL)
    assert find_broker(environ={"BATCHMILL_BROKER_URL_FILE": str(tmp_path / "url")}) == URL


def test_a_child_with_the_secret_itself_gets_no_file() -> None:
    environ = {"A_FILE": "a", "B_FILE": "b", "HOME": "/"}
    assert without_file({"A": "secret"}, environ) == {"A": "secret", "B_FILE": "b", "HOME": "/"}
