"""One request's structured output: a grammar that follows its tokens, and what may come next."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as BackendTokenizer

from batchmill.engine.errors import RequestError

# Imported where a structured output is first asked for: an engine without any needs no llguidance.
if TYPE_CHECKING:
    import llguidance

#: Compiled grammars kept: bulk jobs come with a few distinct ones.
_MAX_KEPT_GRAMMARS = 256


class Structure:
    """Follows one request's output through its grammar.

    A function of the output tokens alone: made anew and shown the same tokens, it stands where it
    stood.
    """

    __slots__ = ("_matcher",)

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether the output follows the grammar and nothing can be added to it."""
        matcher = self._matcher
        return matcher.is_stopped() and matcher.is_accepting() and not matcher.is_error()

    @property
    def can_end(self) -> bool:
        """Whether the output follows the grammar as it is."""
        return self._matcher.is_accepting()

    @property
    def matcher(self) -> llguidance.LLMatcher:
        """Llguidance's own state, for `StructureMasks`."""
        return self._matcher

    def append(self, token_id: int) -> bool:
        """Take one output token.

        Returns:
            False where the grammar does not allow it; the structure is of no use then.
        """
        return self._matcher.consume_token(token_id)


class StructureCompiler:
    """Makes a `Structure` for each request of one model.

    The vocabulary is read when the first one is asked for (a second for 50,000 tokens), and each
    grammar is compiled once.
    """

    def __init__(
        self, backend: BackendTokenizer, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        """Remember the model.

        Args:
            backend: Its tokenizer.
            vocab_size: Width of its logits.
            eos_token_ids: Tokens that end its outputs.
        """
        self._backend = backend
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> Structure:
        """A structure at the start of an output.

        Raises:
            RequestError: `unsupported_parameter` where the model names no end-of-text token;
                `invalid_request` where the grammar does not suit its vocabulary.
        """
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._new_matcher(grammar)
            self._compiled[grammar] = matcher
            if len(self._compiled) > _MAX_KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Structure(matcher.deep_copy())

    def _new_matcher(self, grammar: str) -> llguidance.LLMatcher:
        if not self._eos_token_ids:
            raise RequestError(
                "unsupported_parameter",
                "a structured output needs an end-of-text token, and this model names none",
            )
        import llguidance

        # Silent, and without the grammar in its errors: both would end up in logs.
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(self._read_tokenizer(), grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(
                "invalid_request",
                f"the structured output cannot be enforced: {matcher.get_error()[:200]}",
            )
        return matcher

    def _read_tokenizer(self) -> llguidance.LLTokenizer:
        import llguidance

        if self._tokenizer is None:
            # A copy: padding and truncation would end up in the vocabulary's text.
            copied = BackendTokenizer.from_str(self._backend.to_str())
            copied.no_padding()
            copied.no_truncation()
            self._tokenizer = llguidance.LLTokenizer(
                copied.to_str(), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
            )
        return self._tokenizer


class StructureMasks:
    """Works out which tokens may come next, on a thread of its own while the model computes."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = (vocab_size + 31) // 32
        self._thread: ThreadPoolExecutor | None = None
        self._executor: llguidance.LLExecutor | None = None
        self._pending: Future[NDArray[np.int32]] | None = None

    def start(self, structures: Sequence[Structure]) -> None:
        """Begin with the masks of the structures as they stand; they must stay so until `take`."""
        self.discard()
        if not structures:
            return
        if self._thread is None:
            import llguidance

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="structure-masks")
            # The model wants most of the cores at the same time.
            self._executor = llguidance.LLExecutor(max(1, (os.cpu_count() or 1) // 4))
        self._pending = self._thread.submit(self._fill, structures)

    def take(self) -> NDArray[np.int32]:
        """The masks: a bit for each token, [num_structures, ceil(vocab_size / 32)] int32."""
        assert self._pending is not None, "start() was not called for this step"
        pending, self._pending = self._pending, None
        return pending.result()

    def discard(self) -> None:
        """Wait for masks that nobody took: their step failed."""
        if self._pending is not None:
            self.take()

    def _fill(self, structures: Sequence[Structure]) -> NDArray[np.int32]:
        from llguidance.numpy import fill_next_token_bitmask_par

        masks = np.zeros((len(structures), self._num_words), dtype=np.int32)
        assert self._executor is not None
        matchers = [(each.matcher, row) for row, each in enumerate(structures)]
        fill_next_token_bitmask_par(self._executor, matchers, masks)
        for row, each in enumerate(structures):
            if each.matcher.is_error():
                # A grammar that ran into a limit lets the output end, as if it were complete.
                masks[row] = 0
        return masks
