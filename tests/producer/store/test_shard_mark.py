"""What a shard notes about all lists since the first."""

from __future__ import annotations

from batchmill.producer.shard_list import read_shard_list
from batchmill.producer.store.shard_mark import ShardMark, all_lists, homes_of, read_mark


def stored(names: bytes, lists: bytes | None) -> ShardMark:
    mark = read_mark().parse([[b"a", names, b'["f"]', lists]])
    assert mark is not None
    return mark


def test_lists_are_unknown_if_an_earlier_version_noted_the_newest_one() -> None:
    work = [("demo", "acme")]
    known = stored(b"a b", b'["a", "a b"]')
    assert known.lists == ("a", "a b")
    assert homes_of([known], work) is not None
    three = read_shard_list("a=redis://a b=redis://b c=redis://c")
    assert all_lists(three, [known, None]) == ("a", "a b", "a b c")
    for lists in (b'["a"]', b"[]", None):
        unknown = stored(b"a b", lists)
        assert homes_of([unknown, known], work) is None
        assert all_lists(three, [unknown, known]) == ()
