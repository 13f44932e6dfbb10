"""What can go wrong, as exceptions.

Every exception of this package is an :class:`Error`. Its subclasses also derive from ``ValueError``, ``OSError``,
``KeyError``, ``RuntimeError`` or ``MemoryError``, so that ordinary handlers work::

    try:
        peft_cpp.convert("my-lora", to="peft-fused", out="my-lora-v5")
    except peft_cpp.Error as error:
        print(error.code, error.tensor, error.hint)

The codes are those of the command line (docs/errors.md).
"""
from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "AdapterError", "ConfigError", "Error", "FileError", "FileFormatError", "InternalError", "LoraWarning",
    "MissingFileError", "MissingNameError", "ModelError", "OutOfMemoryError", "OutputExistsError",
    "RuntimeMissingError", "UsageError",
]


class LoraWarning(UserWarning):
    """A warning about an adapter or a model: something was left out, folded into other numbers, or looks wrong."""


class Error(Exception):
    """Something is wrong with a file, a config, a tensor or a request.

    Fields that do not apply are empty strings.
    """

    code: str
    """The error's code, such as ``"LO_PAIR"``."""
    file: str
    """The file that the error is about."""
    tensor: str
    """The tensor, config key, module or argument that the error is about."""
    problem: str
    """What is wrong."""
    expected: str
    """What would have been right."""
    got: str
    """What was found."""
    hint: str
    """One thing that helps."""
    python_error: str
    """The exception that the real PEFT raises here, such as ``"ValueError"``."""

    def __init__(self, text: str = "", code: str = "INTERNAL", file: str = "", tensor: str = "", problem: str = "",
                 expected: str = "", got: str = "", hint: str = "", python_error: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.file = file
        self.tensor = tensor
        self.problem = problem
        self.expected = expected
        self.got = got
        self.hint = hint
        self.python_error = python_error

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.text, self.code, self.file, self.tensor, self.problem, self.expected, self.got,
                             self.hint, self.python_error))

    def to_dict(self) -> dict[str, str]:
        """The fields as ``peft ... --json`` prints them."""
        names = ("code", "file", "tensor", "problem", "expected", "got", "hint", "python_error")
        return {name: getattr(self, name) for name in names}


class UsageError(Error, ValueError):
    """An argument makes no sense, or one that is needed was not given."""


class FileFormatError(Error, ValueError):
    """A file is not what it should be: a damaged safetensors file, pickle or GGUF file, a bad index of shards."""


class ConfigError(Error, ValueError):
    """adapter_config.json or a model's config says something that is wrong or not supported."""


class ModelError(Error, ValueError):
    """The model is not known, or not the one that the adapter needs."""


class AdapterError(Error, ValueError):
    """The tensors of an adapter do not fit each other, the config, the model or the target layout."""


class MissingNameError(Error, KeyError):
    """A module, parameter or tensor that was named is not there."""


class FileError(Error, OSError):
    """A file cannot be read or written, or the disk is full."""


class MissingFileError(FileError, FileNotFoundError):
    """There is no such file or folder."""


class OutputExistsError(FileError, FileExistsError):
    """The output exists, and ``overwrite=True`` was not given."""


class OutOfMemoryError(Error, MemoryError):
    """There is not enough memory."""


class RuntimeMissingError(Error, RuntimeError):
    """The part that runs models is not installed."""


class InternalError(Error, RuntimeError):
    """A bug in peft-cpp: please report it."""


# The class of a code: the code itself first, then the part before the underscore.
CLASSES: dict[str, type[Error]] = {
    "ST": FileFormatError, "PK": FileFormatError, "GG": FileFormatError, "NOT": FileFormatError, "E": FileFormatError,
    "IX": FileFormatError, "RS": FileFormatError,
    "CF": ConfigError, "CF_TARGET": MissingNameError,
    "MD": ModelError, "MD_WEIGHTS": MissingNameError, "MD_NEEDED": UsageError,
    "LO": AdapterError, "NUM": AdapterError, "LO_TARGET": MissingNameError, "LO_MISSING": MissingNameError,
    "RT": RuntimeMissingError,
    "IO": FileError, "OUT": FileError, "IO_KIND": FileFormatError, "OUT_EXISTS": OutputExistsError,
    "OUT_ALIAS": UsageError, "OUT_MEMORY": OutOfMemoryError,
    "USAGE": UsageError, "INTERRUPTED": InternalError, "INTERNAL": InternalError,
}


def class_of(code: str) -> type[Error]:
    """The exception class of an error code."""
    return CLASSES.get(code) or CLASSES.get(code.split("_", 1)[0]) or Error


def error_of(code: str, text: str, file: str, tensor: str, problem: str, expected: str, got: str, hint: str,
             python_error: str) -> Error:
    """The exception for an error of the core."""
    kind = class_of(code)
    if code == "IO_OPEN" and file and not os.path.lexists(file):
        kind = MissingFileError
    return kind(text, code, file, tensor, problem, expected, got, hint, python_error)


def fail(code: str, problem: str, tensor: str = "", expected: str = "", got: str = "", hint: str = "") -> Error:
    """The exception for an error that this package finds itself."""
    text = f"error[{code}] {tensor + ': ' if tensor else ''}{problem}"
    if expected:
        text += f": expected {expected}"
    if got:
        text += f"{',' if expected else ':'} got {got}"
    if hint:
        text += f"\nhint: {hint}"
    return class_of(code)(text, code, "", tensor, problem, expected, got, hint, "")
