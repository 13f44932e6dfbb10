"""The tables that the core works from."""
from __future__ import annotations

from typing import NamedTuple

from . import _core

__all__ = ["ErrorCode", "error_codes", "layouts"]


class ErrorCode(NamedTuple):
    """One row of the table of error codes."""

    name: str
    exit_code: int
    meaning: str


def layouts() -> list[str]:
    """The names of the layouts that ``to`` and ``from_`` take: "peft-per-expert", "peft-fused", ..."""
    return list(_core.layout_names())


def error_codes() -> list[ErrorCode]:
    """All error codes, with the exit code of the command line and what they mean."""
    return [ErrorCode(*row) for row in _core.error_codes()]
