"""The order of the packages is a rule: each imports only the ones before it; there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: The rooms of each folder, from the bottom to the top: a room is a package, or a file at the
#: folder's root. A room imports only rooms before it. `docs/architecture.md` draws the same order.
ORDER = {
    "kernels": ("errors", "reference", "cpu", "gpu", "ops"),
    "engine": (
        *("contract", "errors", "cpu_kernels", "model_shape", "text", "config", "request"),
        *("scheduling", "step", "memory", "models", "models_hf", "loading", "lifecycle"),
        *("sampling", "execution", "engine", "__init__"),
    ),
    "producer": (
        *("plural", "protocol", "results", "errors", "broker_url", "webhook"),
        *("settings", "job", "store", "watch", "client", "bulk", "schemas", "__init__"),
    ),
    "worker": (
        *("errors", "service_errors", "logs", "terminal", "settings", "engine_host", "jobs"),
        *("consumer", "app", "bench", "webhooks", "local", "demo", "cli", "__init__"),
    ),
}
#: What a folder may import of another one. Everything that is not listed is private to its folder.
DOORS = {
    ("producer", "engine"): {"contract"},
    ("engine", "kernels"): {"cpu", "errors", "ops", "reference"},
    ("worker", "engine"): {"__init__", "cpu_kernels", "errors", "lifecycle", "request"},
    ("worker", "producer"): {
        *("__init__", "broker_url", "bulk", "errors", "job", "plural", "protocol", "results"),
        *("settings", "store", "webhook"),
    },
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the four folders, by its dotted name without `batchmill`."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for folder in ORDER
        for path in (ROOT / folder).rglob("*.py")
    }


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of ours that a module imports: lazily and for type checkers only included."""
    package = module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        named = node.module.split(".") if node.module else []
        if node.level:
            named = package[: len(package) - node.level + 1] + named
        elif named[:1] == ["batchmill"]:
            named = named[1:]
        else:
            continue
        if (target := ".".join(named)) in modules():
            found.add(target)
            continue
        for alias in node.names:
            inner = f"{target}.{alias.name}"
            found.add(inner if inner in modules() else f"{target}.__init__")
    return frozenset(found & modules().keys())


def room(module: str) -> tuple[str, str]:
    """The folder of a module, and its room there."""
    folder, name, *_ = module.split(".")
    return folder, name


def all_imports() -> Iterator[tuple[str, str]]:
    """Every import of one of our modules by another one."""
    yield from ((module, target) for module in modules() for target in imports(module))


def circle() -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(imports(module)):
            if found := walk(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(modules()) if (found := walk(module, []))), [])


@pytest.mark.parametrize("folder", sorted(ORDER))
def test_every_room_has_its_place_in_the_order(folder: str) -> None:
    rooms = {room(module)[1] for module in modules() if module.startswith(f"{folder}.")}
    assert rooms - {"__init__"} == set(ORDER[folder]) - {"__init__"}


@pytest.mark.parametrize("folder", sorted(ORDER))
def test_a_room_imports_only_rooms_below_it(folder: str) -> None:
    place = {name: at for at, name in enumerate(ORDER[folder])}
    upward = sorted(
        f"{module} imports {target}"
        for module, target in all_imports()
        if room(module)[0] == room(target)[0] == folder
        and place[room(target)[1]] > place[room(module)[1]]
    )
    assert upward == []


def test_folders_are_entered_by_their_doors_only() -> None:
    through_walls = sorted(
        f"{module} imports {target}"
        for module, target in all_imports()
        if room(module)[0] != room(target)[0]
        and room(target)[1] not in DOORS.get((room(module)[0], room(target)[0]), set())
    )
    assert through_walls == []


def test_every_door_is_used() -> None:
    used: dict[tuple[str, str], set[str]] = {}
    for module, target in all_imports():
        used.setdefault((room(module)[0], room(target)[0]), set()).add(room(target)[1])
    unused = {way: rooms - used.get(way, set()) for way, rooms in DOORS.items()}
    assert {way: rooms for way, rooms in unused.items() if rooms} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle() == []


@pytest.mark.parametrize("module", sorted(name for name in modules() if name.count(".") > 1))
def test_imports_are_relative_in_a_room_and_absolute_across_rooms(module: str) -> None:
    package = module.split(".")[:-1]
    wrong = []
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level > 1:
            wrong.append(f"line {node.lineno}: write the whole name of another room")
        if node.level == 0 and (node.module or "").split(".")[1:-1] == package:
            wrong.append(f"line {node.lineno}: import relatively inside a room")
    assert wrong == []


def test_every_package_says_what_it_owns() -> None:
    silent = [
        module
        for module, path in modules().items()
        if module.endswith(".__init__")
        and "Read `" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert silent == []
