"""Reads the Lua scripts: each command with the library definitions that it uses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

_Value = TypeVar("_Value")

#: `commands/` holds one script per file, `lib/` the definitions that they include.
LUA_FOLDER = Path(__file__).parent / "lua"

#: Every script, by the name of its file.
SCRIPT_NAMES = tuple(sorted(path.stem for path in (LUA_FOLDER / "commands").glob("*.lua")))

_INCLUDE = re.compile(r"^-- @include (.+)$", re.MULTILINE)
_DEFINITION = re.compile(r"^(?:--.*\n)*local (?:function )?(\w+)", re.MULTILINE)
_COMMENT_OR_STRING = re.compile(r"--.*|'[^'\n]*'")
# Not a field: `job.charge` is not a use of a function `charge`, nor is `{ charge = 0 }`.
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*\b(?!\s*=(?!=))")
_WORD = re.compile(r"\w+")
_CONSTANT = re.compile(
    r"(?:--.*\n)*local ([A-Z][A-Z_]*) = ('[^'\n]*'|[\d. *+/()-]+?) *(?:--.*)?\n(?:\n|--.*\n)*"
)


# A function that only returns an expression without calls, such as the name of a key.
_SHORT_FUNCTION = re.compile(
    r"(?:--.*\n)*local function (\w+)\(([\w, ]+)\) return ([^(){}\n]+?) end *(?:--.*)?\n"
    r"(?:\n|--.*\n)*"
)


# The word before the name of a definition, and a statement that sets a variable.
_LOCAL = re.compile(r"^local (function )?\w+", re.MULTILINE)
_STATEMENT = re.compile(r"^( *)(\w+)(?= =)", re.MULTILINE)
# Makes the rare definitions when the first of them is looked for.
_RARE_DEFINITIONS = """
setmetatable(lib, { __index = function(_, name)
%s
return rawget(lib, name)
end })
"""


class Definition(NamedTuple):
    """One function or constant of a library, with the comment above it."""

    name: str
    text: str


class ShortFunction(NamedTuple):
    """A function that is written where it is called: its parameters and its expression."""

    parameters: tuple[str, ...]
    expression: str

    def with_arguments(self, arguments: Sequence[str]) -> str:
        """Return the expression with arguments in place of the parameters."""
        values = dict(zip(self.parameters, arguments, strict=True))
        return f"({_with_values(self.expression, values)})"


class Replacements(NamedTuple):
    """What takes the place of names in a script."""

    places: Mapping[str, str]
    short: Mapping[str, ShortFunction]
    constants: Mapping[str, str]


class LuaIncludeError(ValueError):
    """A Lua file includes a library that does not exist, or itself through others."""


@cache
def script_source(name: str, folder: Path = LUA_FOLDER) -> str:
    """Return a script's full text: the library definitions that it needs, then its own file.

    Redis runs the whole text at each call, and creates its functions again. Those that the script
    never calls are left out, those that it calls rarely are created when it does (`@rare`), and
    names of keys and constants are written where they are used. What is left are fields of one
    table: Lua searches a list of all local variables that functions use, for each of them, each
    time that it creates a function.

    Raises:
        KeyError: there is no such script.
        LuaIncludeError: an included library does not exist, or includes itself.
    """
    path = folder / "commands" / f"{name}.lua"
    if not path.is_file():
        raise KeyError(f"no script is called {name!r}; there are {', '.join(_names(path.parent))}")
    own = path.read_text(encoding="utf-8")
    libraries = _resolve_includes(own, folder / "lib", (name,))
    available = [found for library in libraries for found in definitions(library, folder)]
    needed, new = set[str](), set(used_names(own))
    while new:
        needed |= new
        uses = [used_names(found.text) for found in available if found.name in new]
        new = set().union(*uses) - needed
    used = [found for found in available if found.name in needed]
    constants = {
        match[1]: match[2] for found in used if (match := _CONSTANT.fullmatch(found.text + "\n"))
    }
    short = {
        match[1]: ShortFunction(tuple(match[2].split(", ")), match[3])
        for found in used
        if (match := _SHORT_FUNCTION.fullmatch(found.text + "\n"))
    }
    kept = [found for found in used if found.name not in constants and found.name not in short]
    places = {found.name: f"lib.{found.name}" for found in kept}
    return _join(own, kept, Replacements(places, short, constants))


@cache
def definitions(library: str, folder: Path = LUA_FOLDER) -> tuple[Definition, ...]:
    """Return the definitions of a library in their order; each one starts in the first column."""
    text = _read_library(folder / "lib", library)
    starts = [*_DEFINITION.finditer(text)]
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return tuple(
        Definition(start[1], text[start.start() : end])
        for start, end in zip(starts, ends, strict=True)
    )


def _join(own: str, used: Sequence[Definition], replacements: Replacements) -> str:
    """Return the text of a script: its libraries, as one table of definitions, and its own text."""
    rare = _rare_names(own, used)
    common = [found for found in used if found.name not in rare]
    # A constructor makes room for all of its fields at once.
    functions = "".join(_as_item(found, replacements) for found in common if _is_function(found))
    values = "".join(_as_field(found, replacements) for found in common if not _is_function(found))
    rarely = "".join(_as_field(found, replacements) for found in used if found.name in rare)
    loader = _RARE_DEFINITIONS % rarely if rarely else ""
    table = f"local lib\nlib = {{\n{functions}}}\n{values}{loader}"
    return f"{table}\n{_replaced(own, replacements)}"


def _is_function(found: Definition) -> bool:
    local = _LOCAL.search(found.text)
    return local is not None and local[1] is not None


def _as_item(found: Definition, replacements: Replacements) -> str:
    """Return the text of a function as an item of the constructor of the table."""
    text = _replaced(found.text, replacements)
    head = f"local function {replacements.places[found.name]}"
    return f"{text.replace(head, f'{found.name} = function', 1).rstrip()}\n,\n"


def _as_field(found: Definition, replacements: Replacements) -> str:
    """Return the text of a definition as a field of the table, which others find there."""
    place = replacements.places[found.name]
    text = _LOCAL.sub(lambda match: f"{match[1] or ''}{place}", found.text, count=1)
    return _replaced(text, replacements)


def _replaced(text: str, replacements: Replacements) -> str:
    """Return a Lua text with fields, expressions and values in place of names."""
    words = _words(text)
    short = _found(replacements.short, words)
    words = words.union(*(_words(function.expression) for _, function in short))
    return _replace(
        text, _found(replacements.places, words), short, _found(replacements.constants, words)
    )


def _found(values: Mapping[str, _Value], words: Set[str]) -> tuple[tuple[str, _Value], ...]:
    return tuple((name, values[name]) for name in sorted(values.keys() & words))


@cache
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text))


@cache
def _replace(
    text: str,
    places: tuple[tuple[str, str], ...],
    short: tuple[tuple[str, ShortFunction], ...],
    constants: tuple[tuple[str, str], ...],
) -> str:
    """Do what `_replaced` does. Kept, because a definition becomes the same in most scripts."""
    text = _with_fields(text, dict(places))
    return _with_values(_with_expressions(text, dict(short)), dict(constants))


def _with_fields(text: str, places: Mapping[str, str]) -> str:
    """Return a Lua text with fields of the table in place of names, also where they are set."""
    text = _with_values(text, places)
    return _STATEMENT.sub(lambda match: f"{match[1]}{places.get(match[2], match[2])}", text)


def _rare_names(own: str, used: Sequence[Definition]) -> set[str]:
    """Return the definitions with the mark `@rare`, and those that only such ones use."""
    rare, used_by_common = set[str](), set(used_names(own))
    for found in reversed(used):  # a definition comes before those that use it
        if found.name not in used_by_common or "-- @rare\n" in found.text:
            rare.add(found.name)
        else:
            used_by_common |= used_names(found.text)
    return rare


@cache
def used_names(text: str) -> frozenset[str]:
    """Return every name in a Lua text except fields, comments and strings."""
    return frozenset(_NAME.findall(_COMMENT_OR_STRING.sub("", text)))


def declared_includes(text: str) -> list[str]:
    """Return the libraries that the `-- @include` lines of a Lua text name."""
    return [name.strip() for line in _INCLUDE.findall(text) for name in line.split(",")]


def _with_values(text: str, constants: Mapping[str, str]) -> str:
    """Return a Lua text with the values of constants in place of their names."""

    def put_values(code: str) -> str:
        return _NAME.sub(lambda name: _as_operand(constants.get(name[0], name[0])), code)

    kept = _COMMENT_OR_STRING.findall(text)
    pieces = _COMMENT_OR_STRING.split(text)
    return "".join(
        put_values(piece) + keep for piece, keep in zip(pieces, [*kept, ""], strict=True)
    )


def _with_expressions(text: str, functions: Mapping[str, ShortFunction]) -> str:
    """Return a Lua text with the expressions of short functions in place of their calls.

    Raises:
        LuaIncludeError: such a function is used without being called.
    """
    if not functions:
        return text
    names = re.compile(rf"(?<![\w.:'])({'|'.join(functions)})\b(?!\s*=(?!=))(\(?)")
    parts, at = [], 0
    while (found := names.search(text, at)) is not None:
        line_start = text.rfind("\n", 0, found.start()) + 1
        if "--" in text[line_start : found.start()]:
            parts.append(text[at : found.end()])
            at = found.end()
            continue
        if not found[2]:
            raise LuaIncludeError(f"{found[1]} is written where it is called, and is no value")
        arguments, end = _read_arguments(text, found.end())
        called = [_with_expressions(argument, functions) for argument in arguments]
        parts += (text[at : found.start()], functions[found[1]].with_arguments(called))
        at = end
    return "".join(parts) + text[at:]


def _read_arguments(text: str, start: int) -> tuple[list[str], int]:
    """Return the arguments of a call whose parenthesis is open, and where the call ends."""
    arguments, depth, at, begin = [], 0, start, start
    while True:
        if text[at] == "'":
            at = text.index("'", at + 1)
        elif text[at] in "([{":
            depth += 1
        elif text[at] in ")]}" and depth:
            depth -= 1
        elif text[at] in ")," and not depth:
            arguments.append(text[begin:at].strip())
            begin = at + 1
            if text[at] == ")":
                return arguments, at + 1
        at += 1


def _as_operand(value: str) -> str:
    return f"({value})" if " " in value and not value.startswith("'") else value


def _resolve_includes(text: str, libraries: Path, path: tuple[str, ...]) -> list[str]:
    """Return all libraries that a text includes, directly or not, each after those it includes."""
    order: dict[str, None] = {}
    _add_includes(declared_includes(text), libraries, path, order)
    return list(order)


def _add_includes(
    included: Sequence[str], libraries: Path, path: tuple[str, ...], order: dict[str, None]
) -> None:
    """Append libraries, and before each of them those that it includes, once each."""
    for library in included:
        if library in path:
            raise LuaIncludeError(f"Lua files include each other: {' -> '.join((*path, library))}")
        if library in order:
            continue
        if not (libraries / f"{library}.lua").is_file():
            raise LuaIncludeError(
                f"{path[-1]}.lua includes {library!r}; the libraries are "
                f"{', '.join(_names(libraries))}"
            )
        _add_includes(_includes_of(libraries, library), libraries, (*path, library), order)
        order[library] = None


@cache
def _includes_of(libraries: Path, library: str) -> list[str]:
    return declared_includes(_read_library(libraries, library))


@cache
def _read_library(libraries: Path, name: str) -> str:
    return (libraries / f"{name}.lua").read_text(encoding="utf-8")


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.lua"))
