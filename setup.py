"""Adds to pyproject.toml what depends on how a release is built.

BATCHMILL_BUILD_KERNELS=1 compiles the C++ kernels into the wheel. Without it, the wheel holds only
their sources (`py3-none-any`): it is built without a compiler, installs anywhere, and compiles the
kernels at their first use. With it, the wheel holds a library for each instruction set of this
architecture (`py3-none-linux_x86_64`) and needs no compiler later. The libraries are loaded with
ctypes, so that one wheel is for every Python.

BATCHMILL_REPOSITORY_URL is the address of the repository. With it, the metadata has the project's
links, and those of the README are absolute, as a package index needs them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
WITH_KERNELS = os.environ.get("BATCHMILL_BUILD_KERNELS", "") not in ("", "0")
REPOSITORY_URL = os.environ.get("BATCHMILL_REPOSITORY_URL", "").rstrip("/")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

_RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


class BuildPackages(build_py):
    """Copies the packages, then compiles the kernels from the copied sources."""

    def run(self) -> None:
        """Build the packages; an editable install compiles nothing."""
        super().run()
        if self.editable_mode:
            return
        built = Path(self.build_lib, "batchmill", "kernels", "cpu", "built")
        shutil.rmtree(built, ignore_errors=True)  # of an earlier build in this folder
        if WITH_KERNELS:
            command = [sys.executable, "-m", "batchmill.kernels.cpu.build", "--for-wheel", built]
            environment = {**os.environ, "PYTHONPATH": self.build_lib, "PYTHONSAFEPATH": "1"}
            subprocess.run(command, env=environment, check=True)


class PlatformDistribution(Distribution):
    """Says that the wheel is for one platform if it has compiled kernels."""

    def has_ext_modules(self) -> bool:
        """Return whether the wheel has compiled code."""
        return WITH_KERNELS


class Wheel(bdist_wheel):
    """Names the platform of compiled kernels, but no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel's name."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if WITH_KERNELS else (python, abi, platform)


def readme() -> str:
    """Return the README, with absolute links if the repository's address is known."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not REPOSITORY_URL:
        return text

    def absolute(link: re.Match[str]) -> str:
        mark, label, path = link.groups()
        kind = "raw" if mark else "blob"
        return f"{mark}[{label}]({REPOSITORY_URL}/{kind}/v{VERSION}/{path})"

    return _RELATIVE_LINK.sub(absolute, text)


def project_urls() -> dict[str, str]:
    """Return the links of the project's page on a package index."""
    if not REPOSITORY_URL:
        return {}
    return {
        "Source": REPOSITORY_URL,
        "Documentation": f"{REPOSITORY_URL}/blob/v{VERSION}/docs/index.md",
        "Changelog": f"{REPOSITORY_URL}/blob/v{VERSION}/CHANGELOG.md",
        "Issues": f"{REPOSITORY_URL}/issues",
    }


# For an editable install: no folder of the checkout is called batchmill, so none is taken for it.
warnings.filterwarnings("ignore", message="Editable installation")

setup(
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildPackages, "bdist_wheel": Wheel},
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls=project_urls(),
)
