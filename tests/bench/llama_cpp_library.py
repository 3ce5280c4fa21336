"""A narrow door to llama.cpp's shared libraries, by ctypes.

Written for the libraries of the npm package `@node-llama-cpp/linux-x64` 3.22.1 (llama.cpp
v0.5.0), which hold a variant for every kind of CPU. Parameters are structures that the library
fills with its defaults and that are passed back unread, so that only the few fields set here depend
on its version.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: `enum llama_ftype` of the formats that are written here.
FILE_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15}
#: Words of a structure of parameters: more than the library's own.
_WORDS = 256
# Words of `llama_context_params`.
_CONTEXT_TOKENS, _CONTEXT_BATCH, _CONTEXT_STEP = 0, 1, 2
# Words of `llama_model_quantize_params`.
_QUANTIZE_THREADS, _QUANTIZE_TYPE = 0, 1


def _quiet(level: int, text: bytes, data: int) -> None:
    """Log nothing."""


#: Kept here because the library calls it as long as the process lives.
_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_quiet)


class _Params(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * _WORDS),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class LlamaCpp:
    """The libraries of one folder."""

    def __init__(self, folder: Path) -> None:
        """Load them, and the variant for this CPU.

        Raises:
            OSError: a library is missing.
        """
        ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(str(next(folder.glob("libggml.*so"))), ctypes.RTLD_GLOBAL)
        self.api = ctypes.CDLL(str(next(folder.glob("libllama.*so"))))
        ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        (variant,) = _loaded("libggml-cpu")
        self.cpu = ctypes.CDLL(variant)
        self.cpu.ggml_threadpool_new.restype = ctypes.c_void_p
        self.api.llama_log_set(_QUIET, None)
        for name in ("context", "model", "model_quantize"):
            getattr(self.api, f"llama_{name}_default_params").restype = _Params
        for name in ("model_load_from_file", "init_from_model", "get_memory"):
            getattr(self.api, f"llama_{name}").restype = ctypes.c_void_p
        self.api.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        self.api.llama_batch_init.restype = _Batch

    @property
    def variant(self) -> str:
        """The file of the variant for this CPU."""
        return Path(*_loaded("libggml-cpu")).name

    def quantize(self, source: Path, target: Path, file_type: str, num_threads: int) -> None:
        """Write a GGUF file in another format, of `FILE_TYPES`.

        Raises:
            RuntimeError: the library refuses.
        """
        params = self.api.llama_model_quantize_default_params()
        params.words[_QUANTIZE_THREADS] = num_threads
        params.words[_QUANTIZE_TYPE] = FILE_TYPES[file_type]
        names = str(source).encode(), str(target).encode()
        if self.api.llama_model_quantize(*names, ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp does not quantize {source} to {file_type}")


class LlamaModel:
    """A model with a context of one sequence."""

    def __init__(self, library: LlamaCpp, path: Path, num_tokens: int) -> None:
        """Load a GGUF file, for sequences of at most `num_tokens`.

        Raises:
            RuntimeError: the library refuses.
        """
        self._api, self._cpu = library.api, library.cpu
        self._model = ctypes.c_void_p(
            self._api.llama_model_load_from_file(
                str(path).encode(), self._api.llama_model_default_params()
            )
        )
        params = self._api.llama_context_default_params()
        for word in (_CONTEXT_TOKENS, _CONTEXT_BATCH, _CONTEXT_STEP):
            params.words[word] = num_tokens
        context = self._model and self._api.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self._context = ctypes.c_void_p(context)
        self._pool: ctypes.c_void_p | None = None
        self.set_threads(1)
        self._batch = self._api.llama_batch_init(num_tokens, 0, 1)
        vocab = ctypes.c_void_p(self._api_pointer("llama_model_get_vocab", self._model))
        self.vocab_size = int(self._api.llama_vocab_n_tokens(vocab))

    def set_threads(self, num_threads: int) -> None:
        """Compute with so many threads, which stay alive between two tokens."""
        params = _Params()
        self._cpu.ggml_threadpool_params_init(ctypes.byref(params), num_threads)
        pool = ctypes.c_void_p(self._cpu.ggml_threadpool_new(ctypes.byref(params)))
        self._api.llama_set_n_threads(self._context, num_threads, num_threads)
        self._api.llama_attach_threadpool(self._context, pool, pool)
        if self._pool is not None:
            self._cpu.ggml_threadpool_free(self._pool)
        self._pool = pool

    def forget(self) -> None:
        """Empty the cache."""
        memory = ctypes.c_void_p(self._api.llama_get_memory(self._context))
        self._api.llama_memory_clear(memory, False)

    def decode(self, token_ids: Sequence[int], first: int, *, all_logits: bool = False) -> None:
        """Compute tokens at the positions from `first` on.

        Args:
            token_ids: at most the context's length.
            first: position of the first of them.
            all_logits: keep every token's logits, not only the last one's.

        Raises:
            RuntimeError: the library refuses.
        """
        batch = self._batch
        batch.n_tokens = len(token_ids)
        for i, token in enumerate(token_ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i + 1 == len(token_ids)
        if self._api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")

    def logits(self, index: int) -> NDArray[np.float32]:
        """Return the logits of a token of the last batch, a view; -1 is the last token."""
        row = self._api.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(row, (self.vocab_size,))

    def _api_pointer(self, name: str, *args: ctypes.c_void_p) -> int:
        function = getattr(self._api, name)
        function.restype = ctypes.c_void_p
        return int(function(*args))


def _loaded(name: str) -> list[str]:
    """Return the paths of this process's shared libraries whose name starts so."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if Path(path).name.startswith(name))
