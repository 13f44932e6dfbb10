"""Names of the Hugging Face hub. Nothing is downloaded unless the caller says so."""
from __future__ import annotations

import os
import re

from .errors import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[-+.0-9eE]+)?")


def local(path: T, download: bool) -> T | str:
    """The path itself; with ``download`` the folder of a hub name that is no path, fetched when it is not there."""
    if not download or not isinstance(path, str) or os.path.exists(path) or not _REPO.fullmatch(path):
        return path
    try:
        from huggingface_hub import snapshot_download  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise fail("USAGE", "download=True needs the package huggingface_hub", path,
                   hint="pip install huggingface_hub") from None
    name, at, weight = path.partition("@")
    return str(snapshot_download(name)) + at + weight
