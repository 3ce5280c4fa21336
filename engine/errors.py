"""Errors of the engine, in one tree.

EngineError
 ├── ConfigError                 a value in the engine's configuration cannot work
 ├── RequestError                one request is refused; has a machine-readable `code`
 ├── ModelLoadError              a model, tokenizer or weight file cannot be read
 │    └── UnsupportedModelError  it needs a feature that this engine does not compute
 ├── RankError                   a rank of a divided model failed; its engine cannot continue
 ├── AdapterError                a LoRA adapter cannot be read, or is of a kind not computed here
 └── OutOfBlocksError            the block pool has too few free blocks
"""

from __future__ import annotations

import errno
import re
from typing import Final

from batchmill.engine.contract.errors import ContractError

#: What libraries write if the host or an accelerator has too little memory: torch's allocators, the
#: CUDA runtime and driver (Triton's messages too), cuBLAS and cuDNN. "Out of resource", which a
#: kernel with too much shared memory gets, is another error: no smaller batch helps there.
_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|cannot allocate memory|can't allocate memory|memoryallocation"
    r"|CU(?:BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|DefaultCPUAllocator: ",
    re.IGNORECASE,
)


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""


class ConfigError(EngineError):
    """A configuration value cannot work; the message names the value, the limit and the remedy."""


class RequestError(EngineError):
    """A request is refused; other requests are not affected.

    Attributes:
        code: Machine-readable reason, OpenAI's if it has one (for example
            `context_length_exceeded`, `unsupported_parameter`).
        message: For people; names the value, the limit and the remedy, never prompt or output text.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @classmethod
    def of(cls, error: ContractError) -> RequestError:
        """Return the refusal of a request that breaks the contract."""
        return cls(error.code, error.message)

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str]]:
        """Pickle with both arguments: a worker runs the engine in another process."""
        return type(self), (self.code, self.message)


class ModelLoadError(EngineError):
    """A model, its tokenizer or its weights cannot be found or read."""


class UnsupportedModelError(ModelLoadError):
    """The model needs something that the engine does not compute; the message names it."""


class RankError(EngineError):
    """A rank of a divided model failed: the engine cannot compute anything any more.

    Attributes:
        may_retry: Whether another start may work, as it may once another program has freed memory.
    """

    def __init__(self, message: str, *, may_retry: bool = False) -> None:
        super().__init__(message)
        self.may_retry = may_retry


class AdapterError(EngineError):
    """A LoRA adapter or a steering vector cannot be read, or is not for this model."""


class OutOfBlocksError(EngineError):
    """The block pool has fewer free blocks than a request needs."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host or an accelerator ran out of memory.

    Only one allocator has a class for it (`torch.OutOfMemoryError`, compared by name because this
    module is imported without torch). Everything else says so in the text of a RuntimeError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
