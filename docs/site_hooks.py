"""Hooks of the documentation site: root pages, copies of linked files, and the command reference.

MkDocs takes pages from one folder. README, CONTRIBUTING, CHANGELOG and SECURITY stay at the root of
the repository, where code hosts look for them, and join the site here. A link to another file of
the repository, such as an example, leads to a copy of that file.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

#: Page of the site -> file of the repository.
ROOT_PAGES = {
    "readme.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
COMMANDS_PAGE = "reference/commands.md"
#: Where copies of linked files lie in the site.
_SOURCES = "source"
_LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside `docs/`, the command reference, and every linked file."""
    for page, source in ROOT_PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    for source in sorted(_linked_sources(files)):
        path = ROOT / source
        files.append(File.generated(config, f"{_SOURCES}/{source}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page at the site's own copies."""
    here = page.file.src_uri

    def rewrite(match: re.Match[str]) -> str:
        target = _site_path(_repository_path(here, match[1]))
        relative = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"]({relative}{match[2] or ''})"

    return _LINK.sub(rewrite, markdown)


def commands_page() -> str:
    """Return the reference of the command line, made from the commands themselves."""
    # Commands make flags of their settings only when they are named on the command line.
    sys.argv += ["demo", "up", "worker", "deliver", "gateway"]
    import typer

    from batchmill.worker.cli.main import app

    lines = ["# Commands", "", "Every command takes `--help`. This page is made from the code.", ""]
    _describe(typer.main.get_command(app), "batchmill", lines)
    return "\n".join(lines)


def _describe(command: Any, name: str, lines: list[str]) -> None:
    """Add a command, its options, and the commands below it."""
    context = command.context_class(command, info_name=name)
    if commands := getattr(command, "commands", {}):
        for key in sorted(commands):
            _describe(commands[key], f"{name} {key}", lines)
        return
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [f"## {name}", "", _plain(command.help or ""), "", f"`{name} {usage}`", ""]
    rows = [row for each in command.get_params(context) if (row := _parameter_row(each, context))]
    if rows:
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    if command.epilog:
        lines += [*_examples(_plain(command.epilog)), ""]


def _examples(epilog: str) -> list[str]:
    """Return an epilog as Markdown, with the commands in blocks of code."""
    lines: list[str] = []
    for line in filter(None, map(str.strip, epilog.splitlines())):
        if not line.startswith("batchmill "):
            lines += [line, ""]
        elif lines[-2:-1] == ["```"]:
            lines[-2:] = [line, "```", ""]  # one more line of the block before
        else:
            lines += ["```sh", line, "```", ""]
    return lines


def _parameter_row(parameter: Any, context: Any) -> str | None:
    record = parameter.get_help_record(context)
    if record is None or "--help" in record[0]:
        return None
    names, meaning = (_plain(part).replace("|", r"\|").replace("\n", " ") for part in record)
    return f"| `{names}` | {meaning.replace('<', '&lt;')} |"


def _plain(text: str) -> str:
    """Return help text without rich's markup."""
    return re.sub(r"\[/?(?:bold|italic|dim|cyan|green|yellow|red)\]", "", text)


def _repository_path(page: str, link: str) -> str:
    """Return what a link of a page leads to, as a path from the root of the repository."""
    folder = "" if page in ROOT_PAGES else posixpath.join("docs", posixpath.dirname(page))
    return posixpath.normpath(posixpath.join(folder, link))


def _site_path(source: str) -> str:
    """Return where a file of the repository lies in the site."""
    for page, root_file in ROOT_PAGES.items():
        if source == root_file:
            return page
    return source.removeprefix("docs/") if source.startswith("docs/") else f"{_SOURCES}/{source}"


def _linked_sources(files: Files) -> set[str]:
    """Return the repository's files outside `docs/` that a page links to."""
    linked = set()
    for file in files.documentation_pages():
        for link, _ in _LINK.findall(file.content_string):
            source = _repository_path(file.src_uri, link)
            outside = not source.startswith("docs/") and source not in ROOT_PAGES.values()
            if outside and os.path.isfile(ROOT / source):
                linked.add(source)
    return linked
