"""Runs models for peft_cpp, on the libtorch of the installed torch: the program peft-torch, and the module of peft_cpp.nn."""
from __future__ import annotations

import importlib.metadata
import os
from typing import Any

from ._built_for import PEFT_CPP, TORCH


def _check() -> None:
    """The binary interface of libtorch changes with each version: another torch is one clear error."""
    from peft_cpp.errors import fail

    for name, wanted in (("torch", TORCH), ("peft-cpp", PEFT_CPP)):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        if found.partition("+")[0] != wanted:
            raise fail("RT_PROGRAM", f"peft-cpp-runtime does not fit the installed {name}", "peft-cpp-runtime",
                       f"{name} {wanted}", found, f'pip install "{name}=={wanted}", or a peft-cpp-runtime for {name} {found}')


def program() -> str:
    """The path of peft-torch, which carries out `peft logits`, `generate` and `params`."""
    _check()
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "peft-torch")


def load() -> Any:
    """The extension module."""
    _check()
    import torch  # noqa: F401  brings the libraries that the module needs

    from . import _nn  # type: ignore[attr-defined]

    return _nn
