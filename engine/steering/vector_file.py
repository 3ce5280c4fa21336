"""Steering vectors in files: read from GGUF or safetensors, stored under a digest of their content.

Source: the GGUF form is that of llama.cpp's control vectors (architecture `controlvector`, a tensor
`direction.N` for layer N), which repeng writes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from batchmill.engine.adapters.digest import is_digest
from batchmill.engine.adapters.version_folder import store_version
from batchmill.engine.contract.steering import MAX_LAYER
from batchmill.engine.errors import AdapterError

VECTORS_FILE: Final = "directions.safetensors"
_ARCHITECTURE: Final = "controlvector"
_NAME: Final = re.compile(r"(?:direction|layers?)\.(\d{1,5})")

#: Layer -> direction, [hidden] float32.
Directions: TypeAlias = Mapping[int, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class VectorFiles:
    """Steering vectors that were read and checked, as far as that is possible without a model.

    Attributes:
        digest: Their identity.
        directions: By layer, ascending.
    """

    digest: str
    directions: Directions

    @property
    def num_bytes(self) -> int:
        """Bytes of all directions in float32."""
        return sum(each.nbytes for each in self.directions.values())


def read_vectors(path: Path) -> VectorFiles:
    """Read steering vectors from a file of llama.cpp or of safetensors.

    Args:
        path: A `.gguf` or `.safetensors` file, with a tensor `direction.N` (or `layers.N`) for each
            layer N that it steers, counted from 0.

    Raises:
        AdapterError: it cannot be read, or has anything else.
    """
    if path.suffix not in (".gguf", ".safetensors"):
        raise AdapterError("it is neither a .gguf nor a .safetensors file: give one of them")
    try:
        tensors = _read_gguf(path) if path.suffix == ".gguf" else load_file(path)
    except AdapterError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, IndexError, TypeError) as error:
        raise AdapterError(f"it cannot be read ({error}): copy it again") from error
    return _checked(tensors.items())


def find_vectors(folder: Path, digest: str) -> VectorFiles:
    """Read the version that has a digest, and compare its content with it.

    Raises:
        AdapterError: the folder does not have it, or its file has changed.
    """
    path = folder / digest
    if not is_digest(digest) or not path.is_dir():
        raise AdapterError(
            "is not in this worker's folder of steering vectors: run `batchmill steering add` on "
            "its machine, or let all workers share one folder"
        )
    files = read_vectors(path / VECTORS_FILE)
    if files.digest != digest:
        raise AdapterError(
            f"has a file that was changed since it was added (now {files.digest}): add it again"
        )
    return files


def store_vectors(files: VectorFiles, folder: Path) -> Path:
    """Write steering vectors into the folder, under their digest; return where they are.

    Raises:
        AdapterError: as `store_version`.
    """

    def write(draft: Path) -> None:
        tensors = {f"direction.{layer}": each for layer, each in files.directions.items()}
        save_file(tensors, draft / VECTORS_FILE)

    return store_version(
        folder, files.digest, write, lambda path: read_vectors(path / VECTORS_FILE).digest
    )


def _read_gguf(path: Path) -> dict[str, NDArray[Any]]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    field = reader.fields.get("general.architecture")
    architecture = None if field is None else str(field.contents())
    if architecture != _ARCHITECTURE:
        raise AdapterError(
            f"its architecture is {str(architecture)[:40]!r}, and that of steering vectors is "
            f"{_ARCHITECTURE!r}: give a control vector"
        )
    return {each.name: dequantize(each.data, each.tensor_type) for each in reader.tensors}


def _checked(tensors: Iterable[tuple[str, NDArray[Any]]]) -> VectorFiles:
    found: dict[int, NDArray[np.float32]] = {}
    for name, tensor in tensors:
        named = _NAME.fullmatch(name)
        if named is None or int(named[1]) > MAX_LAYER:
            raise AdapterError(
                f"it has the tensor {name[:80]!r}: the names are direction.N, N from 0 to "
                f"{MAX_LAYER}"
            )
        layer = int(named[1])
        if layer in found:
            raise AdapterError(f"it has two directions of layer {layer}: save it again")
        if tensor.ndim != 1 or not tensor.size or not np.issubdtype(tensor.dtype, np.floating):
            raise AdapterError(f"{name} must be a row of floating point numbers")
        with np.errstate(over="ignore"):  # what is too large for float32 is refused below
            found[layer] = np.ascontiguousarray(tensor, dtype="<f4")
        if not np.isfinite(found[layer]).all():
            raise AdapterError(f"{name} has numbers that are not finite")
    if len({len(each) for each in found.values()}) != 1:
        raise AdapterError("it needs at least one direction, and all of the same size")
    if not any(each.any() for each in found.values()):
        raise AdapterError(
            "all numbers of its directions are 0, so it would steer nothing: compute it again"
        )
    directions = dict(sorted(found.items()))
    return VectorFiles(_digest(directions), directions)


def _digest(directions: Directions) -> str:
    """Hash the content: equal directions have one digest, whatever file they came in."""
    hashed = hashlib.blake2b(digest_size=16)
    for layer, direction in directions.items():
        hashed.update(f"{layer} {len(direction)}\n".encode() + direction.tobytes())
    return hashed.hexdigest()
