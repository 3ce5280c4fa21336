"""Structured output: grammars that follow a request's tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as BackendTokenizer

from batchmill.engine.contract.errors import ContractError
from batchmill.engine.contract.structure_check import TOO_COMPLEX, compiled_grammar
from batchmill.engine.contract.structure_check_process import parser_limits
from batchmill.engine.contract.structure_limits import REMEDY, exceeded_limit
from batchmill.engine.errors import RequestError

from .structure_vocabulary import read_vocabulary

# Imported with the first structured output: an engine without one needs no llguidance.
if TYPE_CHECKING:
    import llguidance

#: Compiled grammars that are kept: the jobs of a bulk run have a few distinct ones.
_MAX_KEPT_GRAMMARS = 256


class _CompiledGrammar:
    """A grammar for one vocabulary, whose structures share what its lexer has computed."""

    def __init__(self, vocabulary: llguidance.LLTokenizer, grammar: str) -> None:
        self._vocabulary = vocabulary
        self._grammar = grammar
        #: The state at the start of an output.
        self.first = self.new_matcher()
        #: Whether the shared lexer has failed, and with it every copy of `first`.
        self.is_broken = False

    def new_matcher(self) -> llguidance.LLMatcher:
        """Return a state at the start of an output, with a lexer of its own."""
        import llguidance

        # No output, and no grammar in errors: both could reach logs.
        return llguidance.LLMatcher(
            self._vocabulary, self._grammar, log_level=0, limits=parser_limits()
        )


class Structure:
    """Follows one request's output through its grammar.

    Its state is a function of the output tokens: a new one that appends the same tokens has the
    same state. The structures of one grammar share a lexer, which fails for all of them if one of
    their outputs reaches a limit. Then each continues with a lexer of its own.
    """

    __slots__ = ("_compiled", "_is_alone", "_matcher", "_token_ids")

    def __init__(
        self, compiled: _CompiledGrammar, matcher: llguidance.LLMatcher | None = None
    ) -> None:
        self._compiled = compiled
        self._matcher = compiled.first.deep_copy() if matcher is None else matcher
        self._is_alone = False
        self._token_ids: list[int] = []

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

    @property
    def limit_error(self) -> str | None:
        """Why the output cannot be followed any further: a limit; None if it can."""
        if not self._matcher.is_error():
            return None
        limit = exceeded_limit(self._matcher.get_error())
        return limit and f"the structured output needs more than {limit}, the limit: {REMEDY}"

    def forced_tokens(self) -> tuple[int, ...]:
        """Return the usual tokens of the text that must come next; empty if there is a choice."""
        return tuple(self._matcher.compute_ff_tokens())

    def num_allowed(self, token_ids: Sequence[int]) -> int:
        """Return how many of some tokens may come next, one after another."""
        return self._matcher.validate_tokens(list(token_ids)) if token_ids else 0

    def ahead(self, token_ids: Sequence[int]) -> Structure:
        """Return the structure as it would be after some more tokens; this one stays as it is."""
        copy = Structure(self._compiled, self._matcher.deep_copy())
        copy._is_alone = self._is_alone
        copy._token_ids = [*self._token_ids]
        for token_id in token_ids:
            copy.append(token_id)
        return copy

    def append(self, token_id: int) -> bool:
        """Append one output token.

        Returns:
            False if the grammar does not allow it, or `limit_error` says why; the structure cannot
            be used any more.
        """
        if not self._matcher.consume_token(token_id) and not (
            self.leave_shared_lexer() and self._matcher.consume_token(token_id)
        ):
            return False
        self._token_ids.append(token_id)
        return True

    def leave_shared_lexer(self) -> bool:
        """Continue with a lexer of its own, after an error.

        Returns:
            False if it was alone already, or its own output fails again.
        """
        if self._is_alone:
            return False
        self._is_alone = True
        self._compiled.is_broken |= self.limit_error is not None
        self._matcher = self._compiled.new_matcher()
        return not self._token_ids or self._matcher.consume_tokens(self._token_ids)


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
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[str, _CompiledGrammar] = OrderedDict()

    def compile(self, grammar: str) -> Structure:
        """Return a structure at the start of an output.

        Raises:
            RequestError: `unsupported_parameter` if the model has no end-of-text token;
                `structure_too_complex` if it passes a limit on its compilation;
                `invalid_request` if the grammar does not suit its vocabulary.
        """
        compiled = self._compiled.get(grammar)
        if compiled is None or compiled.is_broken:
            compiled = self._new(grammar)
            self._compiled[grammar] = compiled
            if len(self._compiled) > _MAX_KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Structure(compiled)

    def _new(self, grammar: str) -> _CompiledGrammar:
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
        if self._vocabulary is None:
            self._vocabulary = read_vocabulary(self._backend, self._vocab_size, self._eos_token_ids)
        compiled = _CompiledGrammar(self._vocabulary, grammar)
        if compiled.first.is_error():
            error = compiled.first.get_error()
            limit = exceeded_limit(error)
            if limit is not None:
                raise RequestError(
                    TOO_COMPLEX,
                    f"the structured output needs more than {limit}, the limit: {REMEDY}",
                )
            raise RequestError(
                "invalid_request", f"the structured output cannot be enforced: {error[:200]}"
            )
        return compiled
