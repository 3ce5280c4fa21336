"""A list of shards: its form, where work goes, and how little a new shard moves."""

from __future__ import annotations

from collections import Counter

import pytest

from batchmill.producer.broker_url import find_broker, redact, redis_url
from batchmill.producer.shard_list import (
    MAX_SHARDS,
    Shard,
    read_shard_list,
    shard_name_of,
    tagged_like,
)

ID = "gen_" + "0123456789abcdef" * 2


def test_a_list_names_each_broker() -> None:
    text = " a=redis://one/0\n b:draining=sentinel://s1,s2/mill/0 "
    shards = read_shard_list(text)
    assert shards.shards == (
        Shard("a", "redis://one/0"),
        Shard("b", "sentinel://s1,s2/mill/0", is_draining=True),
    )
    assert shards.names == "a b:draining"
    assert shards.only is None
    assert shards.named("b").is_draining
    with pytest.raises(ValueError, match="'c' is not in the list of shards \\(a b:draining\\)"):
        shards.named("c")


@pytest.mark.parametrize("url", ["redis://h/0?db=1", "unix:///a=b", "sentinel://s1,s2/mill"])
def test_a_url_is_a_broker_without_a_name(url: str) -> None:
    only = read_shard_list(url).only
    assert only == Shard("", url)
    assert only.tagged(ID) == ID


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a=redis://x redis://y", "entry 2 of the list of shards must have the form"),
        ("A=redis://x", "shard 'A': a name must be"),
        ("a-1=redis://x", "a name must be"),
        (f"{'a' * 17}=redis://x", "a name must be"),
        ("a=redis://x a=redis://y", "names 'a' twice"),
        ("a:gone=redis://x", "the only mark is ':draining'"),
        ("a:draining=redis://x", "every shard of the list is draining"),
        (" ".join(f"s{i}=redis://x" for i in range(MAX_SHARDS + 1)), "may have 64 at most"),
    ],
)
def test_a_wrong_list_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        read_shard_list(text)
    assert "redis://x" not in str(caught.value)


def test_every_url_of_a_list_is_checked() -> None:
    with pytest.raises(ValueError, match="shard 'b': broker URL starts with 'http'"):
        find_broker("a=redis://x b=http://y")
    assert find_broker("a=redis+socket:///s?virtual_host=1") == "a=unix:///s?db=1"


def test_the_environment_has_one_broker_or_a_list() -> None:
    several = {"BATCHMILL_BROKER_URLS": "a=redis://x/0 b=redis://y/0"}
    assert find_broker(None, several) == "a=redis://x/0 b=redis://y/0"
    with pytest.raises(ValueError, match="are both set"):
        find_broker(None, several | {"BATCHMILL_BROKER_URL": "redis://z/0"})


def test_passwords_of_a_list_are_not_shown() -> None:
    text = "a=redis://u:secret@x/0 b=unix:///s?password=secret"
    assert redact(text) == "a=redis://u:***@x/0 b=unix:///s?password=***"


def test_a_program_for_one_broker_names_the_remedy() -> None:
    with pytest.raises(ValueError, match="set BATCHMILL_SHARD to the name of one"):
        redis_url("a=redis://x b=redis://y")


def test_the_place_of_work_depends_on_names_alone() -> None:
    # Fixed values: another hash would move all work of every running system.
    places = read_shard_list("a=redis://x b=redis://y c=redis://z")
    assert [places.of_work("demo", f"t{i}").name for i in range(8)] == list("abaaccca")
    moved = read_shard_list("c=redis://other a=redis://y:1 b=redis://z")
    for i in range(100):
        assert places.of_work("demo", f"t{i}").name == moved.of_work("demo", f"t{i}").name


def test_a_new_shard_takes_its_share_and_moves_nothing_else() -> None:
    tenants = [f"tenant-{i}" for i in range(3000)]
    three = read_shard_list("a=x://1 b=x://2 c=x://3")
    four = read_shard_list("a=x://1 b=x://2 c=x://3 d=x://4")
    before = {name: three.of_work("demo", name).name for name in tenants}
    after = {name: four.of_work("demo", name).name for name in tenants}
    moved = [name for name in tenants if before[name] != after[name]]
    assert {after[name] for name in moved} == {"d"}
    for counts, share in ((Counter(before.values()), 1000), (Counter(after.values()), 750)):
        assert all(abs(number - share) < 0.15 * share for number in counts.values())


def test_a_draining_shard_gets_no_work_and_the_others_keep_theirs() -> None:
    all_three = read_shard_list("a=x://1 b=x://2 c=x://3")
    draining = read_shard_list("a=x://1 b:draining=x://2 c=x://3")
    for i in range(300):
        before = all_three.of_work("m", str(i)).name
        after = draining.of_work("m", str(i)).name
        assert after != "b"
        assert before in ("b", after)


def test_the_fingerprint_is_of_names_and_marks() -> None:
    texts = [
        "a=redis://x b=redis://y",
        "b=redis://other a=redis://x",
        "a=redis://x b:draining=redis://y",
        "a=redis://x b=redis://y c=redis://z",
    ]
    first, same, draining, longer = (read_shard_list(text).fingerprint for text in texts)
    assert first == same
    assert len({first, draining, longer}) == 3


def test_only_ids_of_ours_name_a_shard() -> None:
    assert shard_name_of(Shard("a", "").tagged(ID)) == "a"
    assert shard_name_of(f"batch_{ID[4:]}-eu1") == "eu1"
    for other in (ID, "order-a", f"{ID}-", f"{ID}-A", f"x{ID}-a"):
        assert shard_name_of(other) is None
    assert tagged_like(ID, f"batch_{ID[4:]}-b") == f"{ID}-b"
    assert tagged_like(ID, "order-b") == ID


def test_a_key_has_an_order_of_shards_that_a_new_one_changes_little() -> None:
    two, three = (
        read_shard_list("a=redis://1 b=redis://2"),
        read_shard_list("a=redis://1 b=redis://2 c=redis://3"),
    )
    names = {key: [shard.name for shard in three.in_order_of(key)] for key in map(str, range(60))}
    assert {order[0] for order in names.values()} == {"a", "b", "c"}
    for key, order in names.items():
        assert [name for name in order if name != "c"] == [
            shard.name for shard in two.in_order_of(key)
        ]
