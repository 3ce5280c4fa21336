"""`batchmill lora versions` and `prune`: the versions of adapters, and what needs them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from batchmill.worker.terminal import print_json, print_table

from .broker_connection import open_stores
from .options import BrokerUrlOption, JsonOption
from .registered_names import adapter_errors, format_size, workers_folder

#: A younger version is kept: its name is perhaps registered in the next moment.
_MIN_AGE_S = 600.0
_Folder = Annotated[
    Path | None,
    typer.Option(help="The workers' BATCHMILL_LORA_FOLDER, which is the default."),
]


@dataclass(frozen=True, slots=True)
class _Version:
    """A version that is in the folder, or that a name or a job needs."""

    digest: str
    #: Names that stand for it: new jobs get it.
    names: list[str]
    #: Jobs with it that have not ended.
    num_jobs: int
    #: None if this folder does not have it.
    num_bytes: int | None
    is_new: bool

    @property
    def is_needed(self) -> bool:
        return bool(self.names or self.num_jobs or self.is_new)


def list_versions(
    folder: _Folder = None, broker_url: BrokerUrlOption = None, as_json: JsonOption = False
) -> None:
    """List the versions in the folder, and those that names and unfinished jobs need."""
    from batchmill.producer.plural import pluralize

    with adapter_errors():
        found = _find_versions(_given(folder), broker_url)
    if as_json:
        print_json({"versions": [asdict(each) for each in found]})
        return
    print_table(
        pluralize(len(found), "version"),
        ("version", "names", "unfinished jobs", "size"),
        (
            (each.digest, ", ".join(each.names) or "-", each.num_jobs, _size(each.num_bytes))
            for each in found
        ),
    )


def prune(
    folder: _Folder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be deleted.")
    ] = False,
    broker_url: BrokerUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the versions in the folder that no name stands for and no unfinished job needs."""
    from batchmill.engine.adapters.version_folder import delete_version
    from batchmill.producer.plural import pluralize

    path = _given(folder)
    with adapter_errors():
        deleted = [
            each
            for each in _find_versions(path, broker_url)
            if each.num_bytes is not None and not each.is_needed
        ]
        if not dry_run:
            deleted = [
                each
                for each in deleted
                if delete_version(*(path, each.digest), if_older_than_s=time.time() - _MIN_AGE_S)
            ]
    num_bytes = sum(each.num_bytes or 0 for each in deleted)
    if as_json:
        digests = [each.digest for each in deleted]
        print_json({"deleted": digests, "num_bytes": num_bytes, "dry_run": dry_run})
        return
    what = f"{pluralize(len(deleted), 'version')}, {_size(num_bytes)}"
    print(f"would delete {what}" if dry_run else f"deleted {what}")


def _find_versions(folder: Path, broker_url: str | None) -> list[_Version]:
    from batchmill.engine.adapters.version_folder import list_versions
    from batchmill.producer.store.adapter_versions import jobs_of_versions, names_of_versions

    with open_stores(broker_url) as stores:
        # Names first: only a version that has one gets new jobs, and those are counted after that.
        names = names_of_versions(stores)
        jobs = jobs_of_versions(stores)
    paths = list_versions(folder)
    return [
        _Version(
            digest=digest,
            names=names.get(digest, []),
            num_jobs=jobs[digest],
            num_bytes=_num_bytes(paths[digest]) if digest in paths else None,
            is_new=digest in paths and time.time() - paths[digest].stat().st_mtime < _MIN_AGE_S,
        )
        for digest in sorted({*paths, *names, *jobs})
    ]


def _num_bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in path.iterdir())


def _size(num_bytes: int | None) -> str:
    return "not in this folder" if num_bytes is None else format_size(num_bytes)


def _given(folder: Path | None) -> Path:
    return workers_folder(folder, "adapter", "BATCHMILL_LORA_FOLDER")
