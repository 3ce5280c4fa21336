"""What can go wrong in this folder, apart from `ValueError` for arguments that disagree.

KernelError
└── CppBuildError    the C++ kernels could not be built or loaded
"""

from __future__ import annotations


class KernelError(Exception):
    """Root of this folder's errors."""


class CppBuildError(KernelError):
    """The C++ kernels could not be built or loaded; the message says why and what helps."""
