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
    config = read_peft_config(path)
    try:
        with safe_open(weights_file(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        digest = adapter_digest(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{WEIGHTS_FILE} cannot be read ({error}): copy it again") from error
    return AdapterFiles(path, digest, config, matrices_by_module(shapes, config))


def find_files(folder: Path, digest: str) -> AdapterFiles:
    """Read the version of an adapter that has a digest.

    Raises:
        AdapterError: the folder does not have it, or its files have changed.
    """
    path = folder / digest
    if not is_digest(digest) or not path.is_dir():
        raise AdapterError(
            "is not in this worker's folder of adapters: run `batchmill lora add` on its machine, "
            "or let all workers share one folder"
        )
    files = read_files(path)
    if files.digest != digest:
        raise AdapterError(
            f"has files that were changed since they were added (now {files.digest}): add it again"
        )
    return files


def store_files(files: AdapterFiles, folder: Path) -> Path:
    """Copy an adapter into the folder, under its digest; return where it is.

    Nothing is written if it is there already.

    Raises:
        AdapterError: the folder cannot be written.
    """
    target = folder / files.digest
    if target.is_dir():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".adding-", dir=folder))
        try:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(files.path / name, draft / name)
            draft.chmod(0o755)
            if adapter_digest(draft) != files.digest:
                raise AdapterError("has files that changed while they were copied: add it again")
            if not target.is_dir():  # else another command was faster
                draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written ({error.strerror})") from error
    return target
