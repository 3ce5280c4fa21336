"""The folder of adapters: each version lies under its digest, and never changes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from batchmill.engine.errors import AdapterError

from .digest import WEIGHTS_FILE, adapter_digest, is_digest, weights_file
from .module_names import ModuleMatrices, matrices_by_module
from .peft_config import CONFIG_FILE, PeftConfig, read_peft_config
from .version_folder import store_version


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

    Raises:
        AdapterError: as `store_version`.
    """

    def write(draft: Path) -> None:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(files.path / name, draft / name)

    return store_version(folder, files.digest, write, adapter_digest)
