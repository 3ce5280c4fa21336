"""Lua files: what each one includes, what a script is made of, and where key names are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.scripts import (
    LUA_FOLDER,
    SCRIPT_NAMES,
    LuaIncludeError,
    declared_includes,
    definitions,
    script_source,
    used_names,
)

#: Of a script's libraries, at each call.
MOST_FUNCTIONS = {"submit": 60, "claim": 42, "checkpoint": 20, "complete": 49, "renew": 15}
FILES = sorted(LUA_FOLDER.rglob("*.lua"))
LIBRARIES = [path.stem for path in FILES if path.parent.name == "lib"]
LIBRARY_OF = {found.name: library for library in LIBRARIES for found in definitions(library)}
KEYS_LUA = (LUA_FOLDER / "lib" / "keys.lua").read_text(encoding="utf-8")


def test_the_files_are_found() -> None:
    assert {"claim", "submit", "sweep"} <= set(SCRIPT_NAMES)
    assert {"keys", "record", "server"} <= set(LIBRARIES)
    assert len(LIBRARIES) + len(SCRIPT_NAMES) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_includes_exactly_the_libraries_that_it_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    own = set(re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE))
    used = {LIBRARY_OF[name] for name in used_names(text) - own if name in LIBRARY_OF}
    assert declared_includes(text) == sorted(used)


def test_every_definition_of_a_library_has_its_own_name() -> None:
    names = [found.name for library in LIBRARIES for found in definitions(library)]
    assert sorted(names) == sorted(LIBRARY_OF)


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_every_library_name_that_a_script_uses_is_defined_in_it(name: str) -> None:
    source = script_source(name)
    pattern = r"^(?:function lib\.(\w+)\(|lib\.(\w+) = |(\w+) = function\()"
    defined = {"".join(found) for found in re.findall(pattern, source, re.MULTILINE)}
    assert set(re.findall(r"\blib\.(\w+)", re.sub(r"--.*", "", source))) == defined
    assert used_names(source) & defined == set()


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_script_compiles(bench: Any, name: str) -> None:
    assert bench.redis.script_load(script_source(name))


def test_a_script_leaves_out_unused_definitions() -> None:
    assert "requeue_job" not in script_source("renew")
    assert "requeue_job" in script_source("release")


def test_every_library_definition_is_used() -> None:
    code = "\n".join(re.sub(r"--.*", "", path.read_text(encoding="utf-8")) for path in FILES)
    names = re.findall(r"\w+", code)
    assert [name for name in LIBRARY_OF if names.count(name) < 2] == []


def test_an_unknown_script_is_an_error() -> None:
    with pytest.raises(KeyError, match="there are"):
        script_source("nothing")


def write_lua(folder: Path, **files: str) -> Path:
    """Write Lua files, the one called `command` as a script and the others as libraries."""
    for kind in ("commands", "lib"):
        (folder / kind).mkdir()
    for name, text in files.items():
        kind = "commands" if name == "command" else "lib"
        (folder / kind / f"{name}.lua").write_text(text)
    return folder


def test_a_library_comes_after_those_that_it_includes(tmp_path: Path) -> None:
    folder = write_lua(
        tmp_path,
        command="-- @include a\nreturn f()\n",
        a="-- @include b\n\nlocal function f() return G() end\nlocal unused = 1\n",
        b="-- Comment of G.\nlocal function G() return 7 end\n",
    )
    assert script_source("command", folder) == (
        "local lib\nlib = {\n-- Comment of G.\nG = function() return 7 end\n,\n"
        "f = function() return lib.G() end\n,\n}\n\n"
        "-- @include a\nreturn lib.f()\n"
    )


def test_a_definition_is_set_where_it_is(tmp_path: Path) -> None:
    folder = write_lua(
        tmp_path,
        command="-- @include a\nf()\nn = n + 1\nreturn { n = n, m = x.n }\n",
        a="local n = x\nlocal function f()\n  n = n - 1\nend\n",
    )
    assert script_source("command", folder) == (
        "local lib\nlib = {\nf = function()\n  lib.n = lib.n - 1\nend\n,\n}\nlib.n = x\n\n"
        "-- @include a\nlib.f()\nlib.n = lib.n + 1\nreturn { n = lib.n, m = x.n }\n"
    )


def test_rare_definitions_are_made_when_one_is_used(tmp_path: Path, bench: Any) -> None:
    """Those with the mark, and what only they use."""
    folder = write_lua(
        tmp_path,
        command="-- @include a\nif ARGV[1] == 'rare' then return often() .. rare() end\n"
        "return often()\n",
        a="local function helper() return 'helped' end\n"
        "local function often() return 'often ' end\n-- What it does.\n"
        "-- @rare\nlocal function rare() return helper() .. often() end\n",
    )
    source = script_source("command", folder)
    at_each_call, when_used = source.split("setmetatable")
    assert re.findall(r"(\w+) = function", at_each_call) == ["often"]
    assert re.findall(r"function (lib\.\w+)", when_used) == ["lib.helper", "lib.rare"]
    assert bench.redis.eval(source, 0, "rare") == b"often helpedoften "
    assert bench.redis.eval(source, 0, "") == b"often "


@pytest.mark.parametrize("name", ["submit", "claim", "checkpoint", "complete", "renew"])
def test_what_each_job_runs_makes_few_functions(name: str) -> None:
    """Redis makes all of them again at each call, and frees them after it."""
    at_each_call = re.sub(r"--.*", "", script_source(name).split("setmetatable")[0])
    assert at_each_call.count("function") <= MOST_FUNCTIONS[name]


def test_constants_are_written_where_they_are_used(tmp_path: Path) -> None:
    folder = write_lua(
        tmp_path,
        command="-- @include a\nreturn { KEY, TTL / 2, KEY = 'KEY', LIST[1], x.KEY } -- KEY\n",
        a="local KEY = 'k'\n\n-- A week.\nlocal TTL = 7 * 24 -- hours\nlocal LIST = { KEY }\n",
    )
    assert script_source("command", folder) == (
        "local lib\nlib = {\n}\nlib.LIST = { 'k' }\n\n"
        "-- @include a\nreturn { 'k', (7 * 24) / 2, KEY = 'KEY', lib.LIST[1], x.KEY } -- KEY\n"
    )


def test_short_functions_are_written_where_they_are_called(tmp_path: Path) -> None:
    """Each call of a script creates its functions again, and most of them name keys."""
    folder = write_lua(
        tmp_path,
        command="-- @include a\nf(key(x.key, key('a(', b(1, 2))), { key = 'key', y }) -- key(x)\n",
        a="local P = 'p:'\n-- A name.\nlocal function key(a, b) return P .. a .. ':a:' .. b end\n"
        "local function f(x) return g(x) end\n",
    )
    assert script_source("command", folder) == (
        "local lib\nlib = {\nf = function(x) return g(x) end\n,\n}\n\n"
        "-- @include a\nlib.f(('p:' .. x.key .. ':a:' .. (('p:' .. 'a(' .. ':a:' .. (b(1, 2))))), "
        "{ key = 'key', y }) -- key(x)\n"
    )


def test_a_short_function_is_no_value(tmp_path: Path) -> None:
    folder = write_lua(
        tmp_path,
        command="-- @include a\nf(key)\n",
        a="local function key(a) return 'p:' .. a end\n",
    )
    with pytest.raises(LuaIncludeError, match="key is written where it is called"):
        script_source("command", folder)


def test_an_unknown_include_is_an_error(tmp_path: Path) -> None:
    folder = write_lua(tmp_path, command="-- @include a\n", a="-- @include other\n")
    with pytest.raises(LuaIncludeError, match=r"a\.lua includes 'other'; the libraries are a"):
        script_source("command", folder)


def test_an_include_cycle_is_an_error(tmp_path: Path) -> None:
    folder = write_lua(tmp_path, command="-- @include a\n", a="-- @include b\n", b="-- @include a")
    with pytest.raises(LuaIncludeError, match="command -> a -> b -> a"):
        script_source("command", folder)


def test_key_names_are_written_in_one_file() -> None:
    found = [path.name for path in FILES if "'batchmill:" in path.read_text(encoding="utf-8")]
    assert found == ["keys.lua"]


def test_constant_keys_are_those_of_python() -> None:
    constants = dict(re.findall(r"^local ([A-Z_]+) = '(.*)'$", KEYS_LUA, re.MULTILINE))
    assert {"LEASES", "USAGE"} <= set(constants)
    assert constants == {name: getattr(keys, name) for name in constants}


def test_built_keys_are_those_of_python(bench: Any) -> None:
    functions = re.findall(r"^local function (\w+)\(([\w, ]+)\)", KEYS_LUA, re.MULTILINE)
    assert {"job_key", "queued_key"} <= {name for name, _ in functions}
    calls = {name: ["a:b", "c"][: arguments.count(",") + 1] for name, arguments in functions}
    reply = ", ".join(f"{name}(unpack({{'a:b', 'c'}}))" for name in calls)
    built = bench.redis.eval(f"{KEYS_LUA}\nreturn {{ {reply} }}", 0)
    expected = [
        getattr(keys, "channel" if name == "events_channel" else name.removesuffix("_key"))(*args)
        for name, args in calls.items()
    ]
    assert [key.decode() for key in built] == expected


def test_times_to_live_are_those_of_python() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    constants = dict(re.findall(r"^local ([A-Z_]+) = ([\d *]+)", source, re.MULTILINE))
    assert eval(constants["EVENT_TTL_MS"]) == keys.EVENT_TTL_S * 1000
    assert eval(constants["DEAD_TTL_MS"]) == keys.DEAD_TTL_S * 1000
    assert int(constants["DEFAULT_WINDOW_JOBS"]) == keys.DEFAULT_WINDOW_JOBS
