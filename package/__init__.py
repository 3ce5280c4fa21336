"""The package `batchmill` itself: `from batchmill import Client`, and `batchmill.__version__`.

The folders beside this one are its packages. Nothing of them is imported before a name is used, so
that `import batchmill.engine` needs no Redis client, and `import batchmill.producer` no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchmill.producer import *  # noqa: F403

    __version__: str

#: Packages of their own, which Python imports after this module said that it has no such name.
_PACKAGES = frozenset({"engine", "kernels", "producer", "worker"})

_CHECKOUT = Path(__file__).parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "kernels").is_dir():
    # An editable install finds packages by name, but not `kernels`, which has no `__init__.py`.
    __path__.append(str(_CHECKOUT))  # noqa: F405


def __getattr__(name: str) -> Any:
    """Return a public name of `batchmill.producer`, or the installed version.

    Raises:
        AttributeError: the package has no such name.
    """
    if name == "__version__":
        return _version()
    if name not in _PACKAGES and (name == "__all__" or not name.startswith("_")):
        from batchmill import producer

        if name == "__all__":
            return list(producer.__all__)
        if name in producer.__all__:
            return getattr(producer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    from batchmill import producer

    return sorted({*globals(), *producer.__all__, *_PACKAGES, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("batchmill")
    except PackageNotFoundError:
        return "0+unknown"  # run from a checkout that is not installed
