"""The errors of the kernels, apart from `ValueError` for arguments that do not fit together.

KernelError
├── CppBuildError         the C++ kernels could not be built or loaded
└── TritonMissingError    a Triton kernel was called and Triton is not installed
"""

from __future__ import annotations


class KernelError(Exception):
    """Base of every error that the kernels raise on purpose."""


class CppBuildError(KernelError):
    """The C++ kernels could not be built or loaded; the message names the reason and the remedy."""


class TritonMissingError(KernelError):
    """A Triton kernel was called and Triton is not installed; the message names the remedy."""
