"""Draft corpus: the outputs of earlier requests of one kind, and the drafts they give."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

from .suffix_index import MAX_MATCH, START, SuffixIndex


class DraftCorpus:
    """The outputs that requests of one kind draft from. The caller replaces them as it likes.

    Replacing them changes no token of a running request: its later drafts come from the new ones.
    """

    __slots__ = ("__weakref__", "_index", "_sequences", "version")

    def __init__(self) -> None:
        """Begin without any output."""
        self._sequences: Sequence[Sequence[int]] = ()
        self._index: SuffixIndex | None = None
        #: Counts the replacements.
        self.version = 0

    def replace(self, sequences: Sequence[Sequence[int]]) -> None:
        """Take other outputs in place of all of them; they are indexed when they are needed."""
        self._sequences, self._index = sequences, None
        self.version += 1

    @property
    def is_empty(self) -> bool:
        """Whether it has no outputs now."""
        return not self._sequences

    @property
    def index(self) -> SuffixIndex | None:
        """The index of the outputs; None without any."""
        if self._index is None and self._sequences:
            self._index = SuffixIndex(self._sequences)
        return self._index


class CorpusLookup:
    """Proposes draft tokens for one request from a corpus.

    It finds the longest end of the request's output that occurs in the corpus, and proposes what
    followed it there most often, as far as that is probable.
    """

    __slots__ = ("_corpus", "_num_matched", "_num_seen", "_version")

    def __init__(self, corpus: DraftCorpus) -> None:
        """Bind to a corpus, which may still be empty."""
        self._corpus = corpus
        self._version = -1
        # The match at the last call: each token since then can make it longer by one.
        self._num_matched, self._num_seen = 0, 0

    @property
    def is_empty(self) -> bool:
        """Whether the corpus has no outputs now."""
        return self._corpus.is_empty

    def propose(
        self, output_token_ids: Sequence[int], max_tokens: int, least_probability: float
    ) -> tuple[int, ...]:
        """Propose the next tokens.

        Args:
            output_token_ids: All output tokens; those of the last call, and possibly more.
            max_tokens: Most tokens to propose.
            least_probability: That all of the proposed tokens are right.

        Returns:
            An empty tuple if the corpus knows nothing probable.
        """
        index = self._corpus.index
        if index is None:
            return ()
        num_tokens = len(output_token_ids)
        if self._version != self._corpus.version:
            self._version, self._num_matched, self._num_seen = self._corpus.version, MAX_MATCH, 0
        context = list(output_token_ids[-MAX_MATCH:])
        if num_tokens < MAX_MATCH:
            context.insert(0, START)
        match = index.find(context, self._num_matched + num_tokens - self._num_seen)
        self._num_matched = 0 if match is None else match.depth
        self._num_seen = num_tokens
        if match is None:
            return ()
        return index.propose(match, max_tokens, least_probability)


class DraftCorpora:
    """The corpora of an engine, by the names that its caller gives them.

    One without outputs exists as long as requests use it: names may be as many as requests.
    """

    __slots__ = ("_by_name", "_filled", "_vocab_size")

    def __init__(self, vocab_size: int) -> None:
        """Begin without any; the model has so many tokens."""
        self._by_name: WeakValueDictionary[str, DraftCorpus] = WeakValueDictionary()
        self._filled: dict[str, DraftCorpus] = {}
        self._vocab_size = vocab_size

    def find(self, name: str | None) -> DraftCorpus | None:
        """Return the corpus of a name, which may be filled later; None without a name."""
        return None if name is None else self._by_name.setdefault(name, DraftCorpus())

    def replace(self, name: str, sequences: Sequence[Sequence[int]]) -> None:
        """Replace the outputs of a corpus; without any, it is forgotten once nothing uses it.

        An output without tokens is left out, and one with a token that the model does not have:
        whoever can write to the caller's store may have made it, and as a draft it would fail the
        step of all requests.
        """
        known = [each for each in sequences if each and self._is_known(each)]
        corpus = self._by_name.setdefault(name, DraftCorpus())
        corpus.replace(known)
        if known:
            self._filled[name] = corpus
        else:
            self._filled.pop(name, None)

    def _is_known(self, token_ids: Sequence[int]) -> bool:
        return min(token_ids) >= 0 and max(token_ids) < self._vocab_size
