"""Models that llama.cpp has split into several GGUF files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchmill.engine.errors import ModelLoadError

from .file_hash import file_hash

if TYPE_CHECKING:
    from gguf import GGUFReader

_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
#: Metadata that is of the parts, or that the writer writes itself.
_OWN_KEYS = ("GGUF.", "split.", "general.architecture", "general.alignment")


def model_parts(path: Path) -> list[Path]:
    """Return all files of a model, in their order, if one of them is given; else just this file.

    Raises:
        ModelLoadError: a part is missing.
    """
    name = _PART_NAME.fullmatch(path.name)
    if name is None or int(name[3]) < 2:
        return [path]
    numbers = range(1, int(name[3]) + 1)
    parts = [path.with_name(f"{name[1]}-{number:05}-of-{name[3]}{name[4]}") for number in numbers]
    lacking = [part.name for part in parts if not part.is_file()]
    if lacking:
        raise ModelLoadError(
            f"{path} is one of {len(parts)} parts of a model, and {len(lacking)} are missing, "
            f"among them {lacking[0]}: put all parts into one folder"
        )
    return parts


def parts_hash(parts: Sequence[Path]) -> str:
    """Return a hash of the content of all parts; of a single file that of the file.

    Raises:
        OSError: a file cannot be read.
    """
    hashes = [file_hash(part) for part in parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha1("".join(hashes).encode()).hexdigest()


def join_parts(parts: Sequence[Path], joined: Path) -> None:
    """Write the parts of a model as one file.

    Raises:
        ModelLoadError: they do not belong together.
        Exception: a file cannot be read as GGUF.
    """
    from gguf import GGUFReader, GGUFWriter

    readers = [GGUFReader(part) for part in parts]
    _check_together(parts, readers)
    first = readers[0]
    architecture = _value(first, "general.architecture")
    with closing(GGUFWriter(joined, architecture, endianess=first.endianess)) as writer:
        for field in first.fields.values():
            if not field.name.startswith(_OWN_KEYS):
                kinds = field.types
                element = kinds[-1] if len(kinds) > 1 else None
                writer.add_key_value(field.name, field.contents(), kinds[0], sub_type=element)
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        for each in tensors:
            data = each.data
            writer.add_tensor_info(each.name, data.shape, data.dtype, data.nbytes, each.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in tensors:
            writer.write_tensor_data(each.data, tensor_endianess=first.endianess)


def _check_together(parts: Sequence[Path], readers: Sequence[GGUFReader]) -> None:
    """Refuse files that were renamed, or that belong to different models.

    Raises:
        ModelLoadError: they are.
    """
    for number, (part, reader) in enumerate(zip(parts, readers, strict=True)):
        found = (_value(reader, "split.no"), _value(reader, "split.count"))
        if found != (number, len(parts)):
            raise ModelLoadError(
                f"{part} says that it is part {found[0]} (from 0) of {found[1]}, and its name says "
                f"{number} of {len(parts)}: download it again under its own name"
            )
    num_tensors = sum(len(reader.tensors) for reader in readers)
    expected = _value(readers[0], "split.tensors.count")
    if expected is not None and num_tensors != expected:
        raise ModelLoadError(
            f"{parts[0]} and the other parts hold {num_tensors} tensors together, and its metadata "
            f"says {expected}: download them again"
        )


def _value(reader: GGUFReader, name: str) -> Any:
    field = reader.fields.get(name)
    return None if field is None else field.contents()
