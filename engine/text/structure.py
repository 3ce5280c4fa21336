"""Structured output: grammars that follow a request's tokens, and masks of the next ones."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as BackendTokenizer

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.structure_check import compiled_grammar
from batchmill.engine.errors import RequestError

# Imported with the first structured output: an engine without one needs no llguidance.
if TYPE_CHECKING:
    import llguidance

#: Compiled grammars that are kept: the jobs of a bulk run have a few distinct ones.
_MAX_KEPT_GRAMMARS = 256


class Structure:
    """Follows one request's output through its grammar.

    Its state is a function of the output tokens: a new one that appends the same tokens has the
    same state.
    """

    __slots__ = ("_matcher",)

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether the output follows the grammar and no token can be added to it."""
        matcher = self._matcher
        return matcher.is_stopped() and matcher.is_accepting() and not matcher.is_error()

    @property
    def can_end(self) -> bool:
        """Whether the output follows the grammar so far and may end here."""
        return self._matcher.is_accepting()

    @property
    def matcher(self) -> llguidance.LLMatcher:
        """State of llguidance, for `StructureMasks`."""
        return self._matcher

    def append(self, token_id: int) -> bool:
        """Append one output token.

        Returns:
            False if the grammar does not allow it; the structure cannot be used any more.
        """
        return self._matcher.consume_token(token_id)


class StructureCompiler:
    """Makes a `Structure` for each request of one model.

    The vocabulary is read for the first structure (one second for 50,000 tokens), and each grammar
    is compiled once.
    """

    def __init__(
        self, backend: BackendTokenizer, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        """Keep the model's vocabulary for later.

        Args:
            backend: The model's tokenizer.
            vocab_size: Width of its logits.
            eos_token_ids: Tokens that end its outputs.
        """
        self._backend = backend
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> Structure:
        """Return a structure at the start of an output.

        Raises:
            RequestError: `unsupported_parameter` if the model has no end-of-text token;
                `structure_too_complex` if it passes a limit on its compilation;
                `invalid_request` if the grammar does not suit its vocabulary.
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
                "a structured output needs an end-of-text token, and this model has none",
            )
        try:
            # This runs in the engine's loop. What the check compiles within limits, it can compile.
            compiled_grammar("llguidance", grammar, {})
        except ContractError as refusal:
            raise RequestError.of(refusal) from None
        import llguidance

        # No output, and no grammar in errors: both could reach logs.
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
            # A copy without padding and truncation, which would change the vocabulary's text.
            copied = BackendTokenizer.from_str(self._backend.to_str())
            copied.no_padding()
            copied.no_truncation()
            self._tokenizer = llguidance.LLTokenizer(
                copied.to_str(), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
            )
        return self._tokenizer


class StructureMasks:
    """Computes on another thread which tokens may come next, while the model computes."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = (vocab_size + 31) // 32
        self._thread: ThreadPoolExecutor | None = None
        self._executor: llguidance.LLExecutor | None = None
        self._pending: Future[NDArray[np.int32]] | None = None

    def start(self, structures: Sequence[Structure]) -> None:
        """Start to compute the masks of structures; these must not change until `take`."""
        self.discard()
        if not structures:
            return
        if self._thread is None:
            import llguidance

            self._thread = ThreadPoolExecutor(1, thread_name_prefix="structure-masks")
            # The model needs most of the cores at the same time.
            self._executor = llguidance.LLExecutor(max(1, (os.cpu_count() or 1) // 4))
        self._pending = self._thread.submit(self._fill, structures)

    def take(self) -> NDArray[np.int32]:
        """Return the masks: one bit per token, [num_structures, ceil(vocab_size / 32)] int32."""
        assert self._pending is not None, "start() was not called for this step"
        pending, self._pending = self._pending, None
        return pending.result()

    def discard(self) -> None:
        """Wait for masks that were not taken because their step failed."""
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
                # A grammar that reached a limit ends the output, as if it were complete.
                masks[row] = 0
        return masks
