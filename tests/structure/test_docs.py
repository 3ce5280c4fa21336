"""Every page is correct: its links resolve, and the names that it uses exist."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from .public_interface import (
    FOLDERS,
    ROOT,
    named_variables,
    plain_variables,
    problem_of_call,
    settings,
    variable_names,
)

README = ROOT / "README.md"
NAMED_FOLDERS = (*FOLDERS, "compose", "docs", "examples", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PAGE_NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=PAGE_NAMES)


def code_spans(text: str) -> list[str]:
    """Return a page's inline code and the lines of its shell blocks."""
    shell = re.findall(r"^```(?:sh|shell|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
    return re.findall(r"`([^`\n]+)`", without_blocks) + lines


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts derive them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        if not linked.exists() or (anchor and anchor not in heading_anchors(linked)):
            broken.append(target)
    assert broken == []


@every_page
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    missing = []
    for span in code_spans(page.read_text()):
        path, _, test = span.partition("::")
        if not re.fullmatch(
            r"(engine|kernels|producer|worker|tests|docs|compose|examples)/[\w./*-]*", path
        ):
            continue
        files = list(ROOT.glob(path)) if "*" in path else [ROOT / path]
        exists = bool(files) and all(file.exists() for file in files)
        if not exists or (test and f"def {test}(" not in files[0].read_text()):
            missing.append(span)
    assert missing == []


@every_page
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {t for s in code_spans(page.read_text()) for t in re.findall(r"\bmake ([a-z]+)", s)}
    assert named - targets == set()


def test_the_site_is_built_with_its_warnings_as_errors() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (build,) = re.findall(r"mkdocs build.*", makefile)
    assert "strict: true" in (ROOT / "mkdocs.yml").read_text()
    assert "-q" not in build, "a quiet build does not count warnings, so none would fail it"


@every_page
def test_variables_that_a_page_names_exist(page: Path) -> None:
    assert named_variables(page.read_text()) - variable_names() == set()


@every_page
def test_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    problems = []
    for span in code_spans(page.read_text()):
        match = re.search(r"(?:^|\s|/)batchmill ([a-z-].*)", span)
        if match is None or "pip install" in span or "from batchmill import" in span:
            continue
        # A pipe or redirection belongs to the shell, a comment to the reader.
        call = re.split(r"\s[|>#&]|;", match.group(1))[0]
        problem = problem_of_call(shlex.split(call))
        if problem is not None:
            problems.append(f"{span}: {problem}")
    assert problems == []


@every_page
def test_public_names_that_a_page_uses_are_exported(page: Path) -> None:
    named = re.findall(r"\bbatchmill\.(producer|engine)\.(\w+)", page.read_text())
    named += [
        (folder, name.strip())
        for folder, names in re.findall(
            r"from batchmill\.(producer|engine) import ([\w, ]+)", page.read_text()
        )
        for name in names.split(",")
    ]
    missing = [
        f"batchmill.{folder}.{name}"
        for folder, name in named
        if name not in importlib.import_module(f"batchmill.{folder}").__all__
        and not (ROOT / folder / name).is_dir()
        and not (ROOT / folder / f"{name}.py").is_file()
    ]
    assert missing == []


@every_page
def test_prose_has_lines_of_at_most_120_characters(page: Path) -> None:
    if page.parent.name == "changelog.d":
        return  # a release wraps the fragments
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in prose.splitlines() if len(line) > 120 and line[0] != "|"] == []


@every_page
def test_json_examples_are_json(page: Path) -> None:
    for block in re.findall(r"^```json\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        json.loads(block)


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert re.findall(r"^\| \[\d+\]\((\S+)\)", index, re.MULTILINE) == pages


def test_the_configuration_page_lists_every_setting_as_the_code_documents_it() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in page if line.startswith("| `BATCHMILL_")}
    expected = {variable: setting.row(variable) for variable, setting in settings().items()}
    wrong = [row for variable, row in expected.items() if rows.get(variable) != row]
    assert not wrong, "the page must say:\n" + "\n".join(wrong)
    assert set(rows) - set(expected) == plain_variables()


def test_the_readme_states_the_right_defaults() -> None:
    rows = re.findall(r"^\| `(BATCHMILL_\w+)` \| `([^`]+)` \|", README.read_text(), re.MULTILINE)
    assert len(rows) >= 4
    assert [name for name, text in rows if settings()[name].written_default != f"`{text}`"] == []


def test_the_architecture_page_has_a_row_for_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`\w+/\w+`(?:, `\w+/\w+`)*) \|", page, re.MULTILINE)
    described = re.findall(r"`(\w+/\w+)`", "".join(rows))
    packages = [
        path.parent.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).glob("*/__init__.py")
    ]
    assert sorted(described) == sorted(packages)
