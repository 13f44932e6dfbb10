"""Arrays of numpy, torch and other libraries: where they lie in memory, and new ones over a result."""
from __future__ import annotations

import sys

from . import _core
from .errors import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    # (name, dtype, shape, address)
    Entry = tuple[str, str, tuple[int, ...], int]


def _is_numpy(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class Arrays:
    """The arrays of a mapping. They are kept alive, and copied only where they are not contiguous."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        if not hasattr(tensors, "items"):
            raise fail("USAGE", "the tensors are no mapping from names to arrays", "tensors",
                       got=type(tensors).__name__)
        self.entries: list[Entry] = []
        self.kept: list[Any] = []
        self.kind: str | None = None
        self._names: dict[Any, str] = {}
        self._namespace: Any = None
        for name, value in tensors.items():
            if not isinstance(name, str):
                raise fail("USAGE", "the name of a tensor is no text", "tensors", got=repr(name)[:100])
            self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        if _is_torch(value):
            kind, add = "torch", self._add_torch
        elif _is_numpy(value):
            kind, add = "numpy", self._add_numpy
        elif hasattr(value, "__dlpack__"):
            kind, add = "dlpack", self._add_dlpack
        else:
            raise fail("USAGE", "not an array", name, "a numpy array, a torch tensor, or something with __dlpack__",
                       type(value).__name__)
        if self.kind is None:
            self.kind = kind
        elif self.kind != kind:
            raise fail("USAGE", "the tensors are of two kinds", name, self.kind, kind,
                       "convert them to one kind first: the result has the kind of the input")
        add(name, value)

    def _add_torch(self, name: str, value: Any) -> None:
        if value.device.type != "cpu":
            raise fail("USAGE", "the tensor is not in the memory of the CPU", name, "cpu", str(value.device),
                       "tensor.cpu()")
        torch = sys.modules["torch"]
        if value.layout is not torch.strided or value.is_quantized:
            raise fail("USAGE", "the tensor is not dense", name, "torch.strided", str(value.layout))
        if value.is_complex() and value.is_conj():
            value = value.resolve_conj()
        if value.is_neg():
            value = value.resolve_neg()
        if not value.is_contiguous():
            value = value.contiguous()
        dtype = self._names.get(value.dtype)
        if dtype is None:
            dtype = self._names[value.dtype] = str(value.dtype).replace("torch.", "")
        address = value.data_ptr()
        if address == 0 and value.numel() != 0:
            raise fail("USAGE", "the tensor has no memory of its own", name, got=type(value).__name__)
        self.kept.append(value)
        self.entries.append((name, dtype, tuple(value.shape), address))

    def _add_numpy(self, name: str, value: Any) -> None:
        dtype = self._names.get(value.dtype)
        if dtype is None:
            if not value.dtype.isnative:
                raise fail("USAGE", "the array is in the byte order of another machine", name,
                           got=str(value.dtype), hint='array.astype(array.dtype.newbyteorder("="))')
            dtype = self._names[value.dtype] = value.dtype.name
        if not value.flags.c_contiguous:
            value = sys.modules["numpy"].ascontiguousarray(value)
        self.kept.append(value)
        self.entries.append((name, dtype, value.shape, value.__array_interface__["data"][0]))

    def _add_dlpack(self, name: str, value: Any) -> None:
        if self._namespace is None and hasattr(value, "__array_namespace__"):
            self._namespace = value.__array_namespace__()
        held = _core.import_dlpack(value, name)
        self.kept.append(held)
        self.entries.append((name, held.dtype, held.shape, held.address))

    def new(self, buffer: Any) -> Callable[[str, tuple[int, ...], int], Any]:
        """A function that makes an array of this kind of (dtype, shape, offset in the buffer)."""
        if self.kind == "torch":
            return _new_torch(buffer)
        if self.kind == "dlpack":
            return _new_dlpack(buffer, self._namespace)
        return new_numpy(buffer)


def numpy_dtype(name: str, or_bits: bool = False) -> Any:
    """The numpy dtype for a dtype of safetensors; those that numpy lacks are ml_dtypes'. With ``or_bits`` an unsigned
    integer of the same width stands in when ml_dtypes is not installed."""
    import numpy

    plain = _core.long_name(name)
    if plain in _NATIVE:
        return numpy.dtype(plain)
    try:
        import ml_dtypes

        return numpy.dtype(getattr(ml_dtypes, plain))
    except (ImportError, AttributeError):
        if or_bits:
            return numpy.dtype("uint16" if plain == "bfloat16" else "uint8")
        raise fail("USAGE", f"numpy has no {plain}", hint="pip install ml_dtypes") from None


_NATIVE = frozenset(("bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "complex64",
                     "float64", "int64", "uint64"))


def new_numpy(buffer: Any, or_bits: bool = False) -> Callable[[str, tuple[int, ...], int], Any]:
    import numpy

    dtypes: dict[str, Any] = {}

    def new(dtype: str, shape: tuple[int, ...], offset: int) -> Any:
        known = dtypes.get(dtype)
        if known is None:
            known = dtypes[dtype] = numpy_dtype(dtype, or_bits)
        return numpy.ndarray(shape, known, buffer, offset)

    return new


def _new_torch(buffer: Any) -> Callable[[str, tuple[int, ...], int], Any]:
    import torch  # type: ignore[import-not-found,unused-ignore]

    dtypes: dict[str, Any] = {}

    def new(dtype: str, shape: tuple[int, ...], offset: int) -> Any:
        known = dtypes.get(dtype)
        if known is None:
            known = dtypes[dtype] = getattr(torch, _core.long_name(dtype))
        count = 1
        for dimension in shape:
            count *= dimension
        if count == 0:
            return torch.empty(shape, dtype=known)
        return torch.frombuffer(buffer, dtype=known, count=count, offset=offset).view(shape)

    return new


def _new_dlpack(buffer: Any, namespace: Any) -> Callable[[str, tuple[int, ...], int], Any]:
    take = getattr(namespace, "from_dlpack", None)

    def new(dtype: str, shape: tuple[int, ...], offset: int) -> Any:
        array = _core.export_dlpack(buffer, dtype, shape, offset)
        return take(array) if take is not None else array

    return new
