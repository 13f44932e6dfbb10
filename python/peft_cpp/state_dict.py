"""Adapters in memory: a mapping from names to arrays, and a config."""
from __future__ import annotations

import os
import warnings

from . import _core, configs
from .arrays import Arrays
from .errors import LoraWarning
from .progress import shown
from .reports import InspectReport, StateDictReport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Union

    from .progress import Progress

    Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]

__all__ = ["ConvertedStateDict", "convert_state_dict", "detect"]


class ConvertedStateDict(tuple):  # type: ignore[type-arg]
    """The pair ``(tensors, config)``, and how it was made: ``report``."""

    tensors: dict[str, Any]
    config: Any
    report: StateDictReport

    def __new__(cls, tensors: dict[str, Any], config: Any, report: StateDictReport) -> ConvertedStateDict:
        self = super().__new__(cls, (tensors, config))
        self.tensors, self.config, self.report = tensors, config, report
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.tensors, self.config, self.report

    def __repr__(self) -> str:
        return f"ConvertedStateDict(<{len(self.tensors)} tensors>, {self.report!r})"


def convert_state_dict(tensors: Mapping[str, Any], config: Any, *, to: str, dtype: str | None = None,
                       block_diagonal: bool = False, base: Path | None = None, family: str | None = None,
                       families: Path | None = None, num_experts: int | None = None, from_: str | None = None,
                       orientation: str | None = None, b_packing: str | None = None, ignore_unused: bool = False,
                       threads: int | None = None, progress: Progress = None) -> ConvertedStateDict:
    """Converts an adapter in memory to another layout: the same bytes that :func:`peft_cpp.convert` writes.

    Args:
        tensors: Names to numpy arrays, torch tensors (CPU) or anything with ``__dlpack__``, all of one kind, of any
            dtype of safetensors, bf16 included. Names as PEFT saves them (``get_peft_model_state_dict``):
            ``base_model.model....lora_A.weight``. They are read in place; only arrays with gaps are copied.
        config: adapter_config.json as a dict, a ``LoraConfig``, or a path.
        to: The layout to make: one of :func:`peft_cpp.layouts`.
        dtype: Cast the factors: "F32", "F16", "BF16" or "F64".
        block_diagonal: Keep gate and up apart (rank 2r) even where they share lora_A.
        base: The model's folder, its config.json, or a module-tree file.
        family, families, num_experts, from_, orientation, b_packing, ignore_unused: As for :func:`peft_cpp.inspect`.
        threads: All cores when not given. The bytes do not depend on it.
        progress: True for a bar, or a function of (done, total) bytes.

    Returns:
        ``(tensors, config)`` of the same kinds as the input, ``report`` beside them. The new arrays own their memory
        together: it is freed with the last of them.

    Raises:
        AdapterError: The tensors do not fit each other or the config, or have no form in the target layout.
        UsageError: An argument makes no sense; a tensor is on a GPU; a fact about the model is needed.
    """
    text, make_config = configs.read(config)
    arrays = Arrays(tensors)
    with shown(progress, "convert") as callback:
        buffer, entries, new_text, report = _core.convert_state_dict(
            arrays.entries, text,
            dict(to=to, dtype=dtype, block_diagonal=block_diagonal, base=base, family=family, families=families,
                 num_experts=num_experts, from_=from_, orientation=orientation, b_packing=b_packing,
                 ignore_unused=ignore_unused, threads=threads), callback)
    for message in report["warnings"]:
        warnings.warn(message, LoraWarning, stacklevel=2)
    new = arrays.new(buffer)
    converted = {name: new(kind, shape, offset) for name, kind, shape, offset in entries}
    return ConvertedStateDict(converted, make_config(new_text), StateDictReport(report))


def detect(tensors: Mapping[str, Any], config: Any, *, base: Path | None = None, family: str | None = None,
           families: Path | None = None, num_experts: int | None = None, from_: str | None = None,
           orientation: str | None = None, b_packing: str | None = None) -> InspectReport:
    """Says what an adapter in memory is, as :func:`peft_cpp.inspect` does for a file.

    Args:
        tensors: As for :func:`convert_state_dict`.
        config: As for :func:`convert_state_dict`.
        base, family, families, num_experts, from_, orientation, b_packing: As for :func:`peft_cpp.inspect`.

    Returns:
        A report; false when the tensors cannot be decoded, and then ``error`` says why.

    Raises:
        ConfigError: The config is wrong.
        UsageError: An argument makes no sense.
    """
    text, _ = configs.read(config)
    arrays = Arrays(tensors)
    return InspectReport(_core.detect(
        arrays.entries, text, dict(base=base, family=family, families=families, num_experts=num_experts, from_=from_,
                                   orientation=orientation, b_packing=b_packing)))
