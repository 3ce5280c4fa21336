"""Files for code hosts and contributors' tools are valid: workflows, templates, commit hooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ..support.slow_first import SLOW_FILES

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
SCHEMAS = {
    **dict.fromkeys(sorted((GITHUB / "workflows").glob("*.yml")), "vendor.github-workflows"),
    GITHUB / "ISSUE_TEMPLATE" / "bug.yml": "vendor.github-issue-forms",
    GITHUB / "ISSUE_TEMPLATE" / "feature.yml": "vendor.github-issue-forms",
    GITHUB / "ISSUE_TEMPLATE" / "config.yml": "vendor.github-issue-config",
    GITHUB / "dependabot.yml": "vendor.dependabot",
}


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_file_for_the_code_host_follows_its_schema(path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[path], str(path)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_of_every_change_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows" / "check.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["check"]["steps"]]
    assert "bash .ci/run" in steps
    assert "make check" in (ROOT / ".ci" / "run").read_text()


def test_workflows_build_images_from_files_that_exist() -> None:
    workflow = yaml.safe_load((GITHUB / "workflows" / "images.yml").read_text())
    for image in workflow["jobs"]["image"]["strategy"]["matrix"]["include"]:
        dockerfile = ROOT / "compose" / f"{image['file']}.Dockerfile"
        target = image["target"]
        assert not target or f" AS {target}\n" in dockerfile.read_text()


def test_workflows_have_no_more_permissions_than_they_name() -> None:
    for path in (GITHUB / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}, path.name


def test_hooks_before_a_commit_call_tools_of_this_project() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["entry"].split()[0] for hook in hooks} == {".venv/bin/ruff", "make"}


def test_the_slow_files_exist_and_are_listed_once() -> None:
    assert [path for path in SLOW_FILES if not (ROOT / "tests" / path).is_file()] == []
    assert len(set(SLOW_FILES)) == len(SLOW_FILES)
