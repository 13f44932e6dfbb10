"""Progress of a call: ``progress=True`` for a bar, or a function ``progress(done, total)`` of bytes."""
from __future__ import annotations

import sys

from .errors import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Union

    Progress = Union[bool, Callable[[int, int], object], None]


class _Bar:
    """A bar of tqdm, in notebooks too; without tqdm a line on stderr."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._total = -1

    def __call__(self, done: int, total: int) -> None:
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            self._line(done, total)
            return
        if self._bar is None or total != self._total:
            self.close()
            self._bar = tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=self._what)
        self._total = total
        self._bar.update(done - self._bar.n)

    def _line(self, done: int, total: int) -> None:
        percent = 100 if total == 0 else 100 * done // total
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{self._what}: {percent}% of {total} bytes{end}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class shown:
    """``with shown(progress, what) as callback``: the function that the core calls, or None."""

    def __init__(self, progress: Progress, what: str) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise fail("USAGE", "progress is neither a bool nor a function", "progress", got=type(progress).__name__)
        self._callback = _Bar(what) if progress is True else (progress or None)

    def __enter__(self) -> Callable[[int, int], object] | None:
        return self._callback

    def __exit__(self, *exception: object) -> None:
        if isinstance(self._callback, _Bar):
            self._callback.close()
