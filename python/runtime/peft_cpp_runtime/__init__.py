"""Runs models for peft_cpp, on the libtorch of the installed torch: the program peft-torch, and the module of peft_cpp.nn."""
from __future__ import annotations

import importlib.metadata
import importlib.util
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
    """The path of peft-torch, which carries out `peft logits`, `generate`, `params` and `train`. It finds torch beside this
    package; torch of another folder is named in the environment."""
    _check()
    folder = os.path.dirname(os.path.abspath(__file__))
    torch = importlib.util.find_spec("torch")
    for package in torch.submodule_search_locations or () if torch else ():
        if os.path.dirname(package) != os.path.dirname(folder):  # torch of another folder of packages
            libraries = [os.path.join(package, "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
            os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    return os.path.join(folder, "bin", "peft-torch")


def load() -> Any:
    """The extension module."""
    _check()
    import torch  # noqa: F401  brings the libraries that the module needs

    from . import _nn  # type: ignore[attr-defined]

    return _nn
