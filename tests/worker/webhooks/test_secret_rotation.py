"""The signing secret is replaced while everything runs: `batchmill webhooks secret`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from batchmill.producer import SignatureError, verify_webhook
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.webhook.secret_list import read_secrets, valid_secrets
from batchmill.producer.webhook.signature import signature_headers
from batchmill.worker.webhooks.local_receiver import ReceivedRequest, WebhookReceiver
from batchmill.worker.webhooks.settings import WebhookSettings
from batchmill.worker.webhooks.signing_secrets import SigningSecrets

from ..command_line import call, error_of
from ..webhook_deliverers import OLD_SECRET, SECRET, Deliverers, finish_job, wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "webhook_secret"
    path.write_text(OLD_SECRET + "\n")
    path.chmod(0o600)
    return path


def verifies(request: ReceivedRequest, secret: str) -> bool:
    try:
        Webhook(secret).verify(request.body, dict(request.headers))
    except WebhookVerificationError:
        return False
    return True


def test_a_running_deliverer_takes_the_new_secret_and_drops_the_old_one(
    store: JobStore, deliverers: Deliverers, file: Path
) -> None:
    with WebhookReceiver() as receiver:
        deliverers.start(WEBHOOK_SECRET=None, WEBHOOK_SECRET_FILE=file)
        finish_job(store, receiver.url, "gen_1")
        assert receiver.wait_for(1, timeout_s=60)
        answer = call("webhooks", "secret", "rotate", "--file", str(file), "--json")
        new = json.loads(answer.stdout)["secret"]

        def both_sign() -> bool:
            count = len(receiver.requests)
            finish_job(store, receiver.url, f"gen_{count + 1}")
            assert receiver.wait_for(count + 1, timeout_s=60)
            return verifies(receiver.requests[-1], new)

        wait_until(both_sign, "the new secret signs", timeout_s=60)
        assert verifies(receiver.requests[-1], OLD_SECRET)
        assert call("webhooks", "secret", "retire", "--file", str(file)).returncode == 0

        def only_new_signs() -> bool:
            assert both_sign()
            return not verifies(receiver.requests[-1], OLD_SECRET)

        wait_until(only_new_signs, "the old secret ends", timeout_s=60)
    first = receiver.requests[0]
    assert verifies(first, OLD_SECRET)
    assert not verifies(first, new)


def test_rotation_keeps_the_file_private_and_in_place(file: Path) -> None:
    inode = file.stat().st_ino
    answer = call("webhooks", "secret", "rotate", "--overlap", "7d", "--file", str(file))
    assert "nothing needs a restart" in answer.stdout
    assert (file.stat().st_ino, file.stat().st_mode & 0o777) == (inode, 0o600)
    new, old = read_secrets(file.read_text())
    assert new.secret in answer.stdout
    assert OLD_SECRET not in answer.stdout
    assert new.until_s is None
    assert old.secret == OLD_SECRET
    assert old.until_s == pytest.approx(time.time() + 7 * 86400, abs=120)
    shown = json.loads(call("webhooks", "secret", "show", "--file", str(file), "--json").stdout)
    assert [row["signs"] for row in shown["secrets"]] == [True, True]
    assert "whsec_" not in json.dumps(shown)


def test_an_overlap_of_zero_ends_a_leaked_secret_at_once(file: Path) -> None:
    answer = call("webhooks", "secret", "rotate", "--overlap", "0", "--file", str(file), "--json")
    facts = json.loads(answer.stdout)
    assert (facts["num_secrets"], facts["old_until"]) == (1, None)
    assert file.read_text() == facts["secret"] + "\n"


def test_a_second_rotation_does_not_prolong_the_first(file: Path) -> None:
    for overlap in ("1h", "7d"):
        call("webhooks", "secret", "rotate", "--overlap", overlap, "--file", str(file))
    _, second, first = read_secrets(file.read_text())
    assert first.secret == OLD_SECRET
    assert first.until_s is not None
    assert second.until_s is not None
    assert first.until_s < time.time() + 3700 < second.until_s


def test_the_secret_of_batchmill_up_and_of_the_file_variable_are_found(file: Path) -> None:
    for environment in (
        {"BATCHMILL_STATE_DIR": str(file.parent)},
        {"BATCHMILL_WEBHOOK_SECRET_FILE": str(file)},
    ):
        answer = call("webhooks", "secret", "rotate", "--overlap", "0", "--json", **environment)
        assert file.read_text().strip() == json.loads(answer.stdout)["secret"]


def test_a_secret_of_the_environment_is_printed_with_what_to_restart(tmp_path: Path) -> None:
    environment = {"BATCHMILL_WEBHOOK_SECRET": OLD_SECRET, "BATCHMILL_STATE_DIR": str(tmp_path)}
    answer = call("webhooks", "secret", "rotate", **environment)
    assert "restart it" in answer.stdout
    [value] = [line for line in answer.stdout.splitlines() if line.startswith("whsec_")]
    settings = WebhookSettings.model_validate({"webhook_secret": value})
    assert len(settings.secrets) == 2
    assert settings.secrets[1] == OLD_SECRET


def test_a_named_secret_is_rotated_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"billing": OLD_SECRET, "search": SECRET}))
    arguments = ("webhooks", "secret", "rotate", "--file", str(file), "--json")
    new = json.loads(call(*arguments, "--name", "billing").stdout)["secret"]
    entries = json.loads(file.read_text())
    assert entries["search"] == SECRET
    assert valid_secrets(entries["billing"]) == [new, OLD_SECRET]
    unknown = call(*arguments, "--name", "payroll")
    assert unknown.returncode == 8
    assert "billing, search" in error_of(unknown)["message"]


@pytest.mark.parametrize(
    ("content", "arguments", "exit_code"),
    [
        (None, (), 8),
        ("", (), 8),
        ("not a secret", (), 8),
        (f"{OLD_SECRET}@tomorrow", (), 8),
        (OLD_SECRET, ("--overlap", "soon"), 2),
        (OLD_SECRET, ("--overlap", "24"), 2),
        (OLD_SECRET, ("--name", "billing"), 8),
    ],
)
def test_what_cannot_be_rotated_is_left_as_it_is(
    tmp_path: Path, content: str | None, arguments: tuple[str, ...], exit_code: int
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    answer = call("webhooks", "secret", "rotate", "--file", str(file), *arguments, "--json")
    assert answer.returncode == exit_code
    assert OLD_SECRET not in answer.stderr
    assert (file.read_text() if file.exists() else None) == content


def test_no_secret_anywhere_says_how_to_give_one(tmp_path: Path) -> None:
    answer = call("webhooks", "secret", "rotate", BATCHMILL_STATE_DIR=str(tmp_path))
    assert answer.returncode == 8
    assert "BATCHMILL_WEBHOOK_SECRET_FILE" in answer.stderr


def test_a_file_that_is_being_written_changes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRET_FILE", str(file))
    monkeypatch.setattr("batchmill.worker.webhooks.signing_secrets._CHECK_INTERVAL_S", 0.0)
    secrets = SigningSecrets(WebhookSettings())
    for broken in ("", "whsec_", f"{SECRET},whse"):
        file.write_text(broken)
        assert secrets.named("") == (OLD_SECRET,)
    os.unlink(file)
    assert secrets.named("") == (OLD_SECRET,)
    file.write_text(SECRET)
    assert secrets.named("") == (SECRET,)


def test_a_receiver_may_have_the_value_of_the_deliverer() -> None:
    body = b'{"type": "webhook.test", "timestamp": "x", "data": {}}'
    now_s = int(time.time())
    value = f"{SECRET}, {OLD_SECRET}@2030-01-01T00:00:00Z"
    for secret in (SECRET, OLD_SECRET):
        headers = signature_headers("evt_1", now_s, body, secrets=[secret])
        for given in (value, value.split(",")):
            assert verify_webhook(body, headers, given).type == "webhook.test"
    ended = f"{SECRET},{OLD_SECRET}@2020-01-01T00:00:00Z"
    headers = signature_headers("evt_1", now_s, body, secrets=[OLD_SECRET])
    with pytest.raises(SignatureError):
        verify_webhook(body, headers, ended)
    with pytest.raises(ValueError, match="at least one secret"):
        verify_webhook(body, headers, f"{OLD_SECRET}@2020-01-01T00:00:00Z")
