"""`batchmill lora versions` and `prune` know which versions names and unfinished jobs need."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.adapters.version_folder import delete_version
from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.store.adapters import RegisteredAdapter, register_adapter, remove_adapter
from batchmill.producer.store.job_store import JobStore

from ...support.adapters import write_adapter
from ..command_line import call


def store_old(source: Path, folder: Path, seed: int) -> str:
    """Store a version as if it had been there for long; return its digest."""
    files = read_files(write_adapter(source, seed))
    os.utime(store_files(files, folder), (0, 0))
    return files.digest


def test_only_versions_that_nothing_needs_are_deleted(
    broker: dict[str, str], store: JobStore, redis_url: str, tmp_path: Path
) -> None:
    client, folder = Client(redis_url), tmp_path / "store"
    one, two, three, unused = (store_old(tmp_path / f"{n}", folder, n) for n in range(4))
    jobs = []
    for digest in (one, two, three):
        register_adapter(store, RegisteredAdapter(name="style", digest=digest, model="demo"))
        jobs.append(client.submit(prompt="text", model="demo", lora="style"))
    new = read_files(write_adapter(tmp_path / "new", 5))
    store_files(new, folder)

    def run(*arguments: str) -> dict[str, Any]:
        done = call("lora", *arguments, "--folder", str(folder), "--json", **broker)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    versions = {each["digest"]: each for each in run("versions")["versions"]}
    assert versions.keys() == {one, two, three, unused, new.digest}
    assert {name: each["num_jobs"] for name, each in versions.items() if each["num_jobs"]} == {
        one: 1,
        two: 1,
        three: 1,
    }
    assert versions[three]["names"] == ["style"]
    assert run("prune", "--dry-run")["deleted"] == [unused]
    assert run("prune")["deleted"] == [unused]
    store.client.hset(keys.job("forged"), mapping={"state": "odd", "lora": two})
    jobs[0].cancel()
    jobs[2].cancel()
    assert run("prune")["deleted"] == [one]  # jobs end, but a name stands for the third
    remove_adapter(store, "style")
    assert run("prune")["deleted"] == [three]
    assert sorted(each.name for each in folder.iterdir()) == sorted([two, new.digest])


@pytest.mark.parametrize("command", ["versions", "prune"])
def test_a_folder_is_needed(broker: dict[str, str], command: str, tmp_path: Path) -> None:
    assert "BATCHMILL_LORA_FOLDER" in call("lora", command, **broker).stderr
    missing = call("lora", command, "--folder", str(tmp_path / "missing"), **broker)
    assert (missing.returncode, "cannot be read" in missing.stderr) == (2, True)


def test_a_version_that_was_added_again_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    digest = store_old(tmp_path / "one", folder, 1)
    add_again = read_files(tmp_path / "one")
    before = time.time()
    store_files(add_again, folder)  # after `prune` has read the names
    assert not delete_version(folder, digest, if_older_than_s=before - 1)
    assert read_files(folder / digest).digest == digest
    os.utime(folder / digest, (0, 0))
    assert delete_version(folder, digest, if_older_than_s=before - 1)
    assert list(folder.iterdir()) == []
