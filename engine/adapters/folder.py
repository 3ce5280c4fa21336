"""The folder of adapters: each version lies under its digest, and never changes."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from batchmill.engine.errors import AdapterError

from .digest import WEIGHTS_FILE, adapter_digest, is_digest, weights_file
from .module_names import ModuleMatrices, matrices_by_module
from .peft_config import CONFIG_FILE, PeftConfig, read_peft_config


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on disk, checked as far as that is possible without its model.

    Attributes:
        path: The folder.
        digest: Its identity.
        config: How its matrices are used.
        modules: The names and shapes of its matrices, by the module that they change.
    """

    path: Path
    digest: str
    config: PeftConfig
    modules: dict[str, ModuleMatrices]

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(each.rank for each in self.modules.values())

    @property
    def num_bytes(self) -> int:
        """Size of the file with the weights."""
        return weights_file(self.path).stat().st_size


def read_files(path: Path) -> AdapterFiles:
    """Read an adapter's configuration and the names of its weights.

    Raises:
        AdapterError: the files cannot be read, or ask for something that is not computed.
    """
    return _read(path, None)


def _read(path: Path, digest: str | None) -> AdapterFiles:
    """Read an adapter; find out its digest if it is not given."""
    config = read_peft_config(path)
    try:
        with safe_open(weights_file(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        digest = digest or adapter_digest(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{WEIGHTS_FILE} cannot be read ({error}): copy it again") from error
    return AdapterFiles(path, digest, config, matrices_by_module(shapes, config))


def find_files(folder: Path, digest: str) -> AdapterFiles:
    """Read what the version of an adapter that has a digest consists of, but not its content.

    That takes long for a large one; `check_unchanged` does it.

    Raises:
        AdapterError: the folder does not have it, or its files cannot be used.
    """
    path = folder / digest
    if not is_digest(digest) or not path.is_dir():
        raise AdapterError(
            "is not in this worker's folder of adapters: run `batchmill lora add` on its machine, "
            "or let all workers share one folder"
        )
    return _read(path, digest)


def check_unchanged(files: AdapterFiles) -> None:
    """Compare the content of an adapter in the folder with its digest.

    Raises:
        AdapterError: its files have changed since they were added.
        OSError: they cannot be read.
    """
    digest = adapter_digest(files.path)
    if files.digest != digest:
        raise AdapterError(
            f"has files that were changed since they were added (now {digest}): add it again"
        )


def store_files(files: AdapterFiles, folder: Path) -> Path:
    """Copy an adapter into the folder, under its digest; return where it is.

    Nothing is written if it is there already. Files there that were changed are replaced.

    Raises:
        AdapterError: the folder cannot be written.
    """
    target = folder / files.digest
    try:
        if _has_content(target, files.digest):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=".adding-", dir=folder))
        draft = room / "new"
        try:
            draft.mkdir()
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(files.path / name, draft / name)
            draft.chmod(0o755)
            if adapter_digest(draft) != files.digest:
                raise AdapterError("has files that changed while they were copied: add it again")
            if target.is_dir() and not _has_content(target, files.digest):
                target.rename(room / "replaced")
            _put(draft, target, files.digest)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written ({error.strerror or error})") from error
    return target


def _has_content(target: Path, digest: str) -> bool:
    """Return whether a folder has the adapter with a digest."""
    try:
        return target.is_dir() and adapter_digest(target) == digest
    except AdapterError:
        return False


def _put(draft: Path, target: Path, digest: str) -> None:
    """Move a new folder to its place; leave what is there if another command was faster."""
    try:
        draft.rename(target)
    except OSError:
        if not _has_content(target, digest):
            raise
