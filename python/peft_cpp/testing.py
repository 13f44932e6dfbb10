"""Helpers for the tests of other projects; no plugin is needed."""
from __future__ import annotations

import ctypes
import json
import os
import tempfile

from . import configs
from .arrays import Arrays
from .files import verify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .reports import VerifyReport

__all__ = ["assert_same_function"]


def _save(tensors: Any, config: Any, folder: str) -> None:
    """An adapter in memory as a folder."""
    from ._core import dtype_name

    arrays = Arrays(tensors)
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    begin = 0
    for name, dtype, shape, address in arrays.entries:
        known, bits = dtype_name(dtype)
        count = 1
        for dimension in shape:
            count *= dimension
        size = count * bits // 8
        parts.append(ctypes.string_at(address, size) if size else b"")
        header[name] = {"dtype": known, "shape": list(shape), "data_offsets": [begin, begin + size]}
        begin += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "adapter_model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(parts))
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
        file.write(configs.read(config)[0])


def assert_same_function(a: Any, b: Any, **options: Any) -> VerifyReport:
    """Fails unless two adapters are the same function, whatever their layouts, and says where they differ.

    Args:
        a: An adapter's folder, or a pair (tensors, config) in memory.
        b: The other one.
        **options: Arguments of :func:`peft_cpp.verify`: ``tolerance="exact"``, ``base=...``.

    Returns:
        The report of :func:`peft_cpp.verify`.

    Raises:
        AssertionError: They differ.
        Error: One of them cannot be read.
    """
    __tracebackhide__ = True
    with tempfile.TemporaryDirectory() as temporary:
        paths = []
        for number, adapter in enumerate((a, b)):
            if isinstance(adapter, tuple):
                tensors, config = adapter
                folder = os.path.join(temporary, "ab"[number])
                os.mkdir(folder)
                _save(tensors, config, folder)
                adapter = folder
            paths.append(adapter)
        report = verify(*paths, **options)
    if not report:
        lines = [f"{d.site}: {d.what}" for d in report.differences[:10]]
        raise AssertionError(f"different: {report.num_differences} differences, {report.compared} matrices compared, "
                             f"{report.identical} identical\n" + "\n".join(lines))
    return report
