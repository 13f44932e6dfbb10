"""The factors of an adapter on disk, as views of the file."""
from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

from . import _core
from .arrays import numpy_dtype
from .errors import LoraWarning, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Union

    Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]

__all__ = ["Factor", "Factors", "read_factors"]


class Factor:
    """The update of one matrix of the model: ``delta W [out, in] = scale * B @ A``.

    Unpacks as ``site, A, B, scale``. ``A [rank, in]`` and ``B [out, rank]`` are read-only views of the mapped file, in
    the file's dtype, whatever its layout. For an embedding, W stands for its transpose: [dim, vocabulary].
    """

    __slots__ = ("site", "scale", "dtype", "A", "B", "_index", "_list")
    site: str
    """The place in the model: "model.layers.0.mlp.experts.7.gate"."""
    scale: float
    """What B @ A is multiplied with."""
    dtype: str
    """The dtype in the file, such as "BF16"."""
    A: Any
    """[rank, in], read-only."""
    B: Any
    """[out, rank], read-only."""
    _index: int
    _list: _core.FactorList

    @property
    def module(self) -> str:
        """The module's path in transformers 5."""
        return self._list.parts(self._index)[0]

    @property
    def parameter(self) -> str:
        """The parameter, where LoRA sits on one that is not per expert."""
        return self._list.parts(self._index)[1]

    @property
    def expert(self) -> int:
        """The expert's number, or -1."""
        return self._list.parts(self._index)[2]

    @property
    def projection(self) -> str:
        """"gate", "up" or "down" of an expert; else ""."""
        return self._list.parts(self._index)[3]

    @property
    def kind(self) -> str:
        """"linear" or "embedding"."""
        return self._list.parts(self._index)[4]

    @property
    def rank(self) -> int:
        """The rank."""
        return int(self.A.shape[0])

    def to_delta(self) -> Any:
        """scale * B @ A as a new array [out, in] in float64, summed in float64."""
        buffer, shape = self._list.delta(self._index)
        import numpy

        return numpy.ndarray(shape, numpy.float64, buffer)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.site, self.A, self.B, self.scale))

    def __repr__(self) -> str:
        return (f"Factor({self.site!r}, A={list(self.A.shape)}, B={list(self.B.shape)}, scale={self.scale!r}, "
                f"dtype={self.dtype!r})")


class Factors(Sequence["Factor"]):
    """The factors of an adapter, in natural order of their sites. ``factors["model.layers.0..."]`` finds one by site."""

    def __init__(self, core: _core.FactorList) -> None:
        import numpy

        self._core = core
        self._ndarray = numpy.ndarray
        self._dtypes: dict[str, Any] = {}
        self._sites: dict[str, int] | None = None

    @property
    def layout(self) -> str:
        """The layout of the file; "dense" when it has no experts."""
        return self._core.layout()

    def __len__(self) -> int:
        return len(self._core)

    def _view(self, place: tuple[str, Any, int, tuple[int, int], tuple[int, int]]) -> Any:
        dtype, buffer, offset, shape, strides = place
        known = self._dtypes.get(dtype)
        if known is None:
            known = self._dtypes[dtype] = numpy_dtype(dtype, or_bits=True)
        return self._ndarray(shape, known, buffer, offset, strides)

    def _make(self, index: int) -> Factor:
        factor = Factor.__new__(Factor)
        factor.site, factor.scale, a, b = self._core.at(index)
        factor.dtype = a[0]
        factor.A = self._view(a)
        factor.B = self._view(b)
        factor._index = index
        factor._list = self._core
        return factor

    def __iter__(self) -> Iterator[Factor]:
        make = self._make
        return (make(index) for index in range(len(self._core)))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self._make(index) for index in range(*key.indices(len(self)))]
        if isinstance(key, str):
            return self._make(self._index_of(key))
        index = range(len(self))[key]
        return self._make(index)

    def _index_of(self, site: str) -> int:
        if self._sites is None:
            self._sites = {self._core.site(index): index for index in range(len(self))}
        found = self._sites.get(site)
        if found is None:
            raise fail("LO_TARGET", "the adapter has no factor at this site", site)
        return found

    def sites(self) -> list[str]:
        """The sites of all factors."""
        return [self._core.site(index) for index in range(len(self))]

    def to_delta(self, site: str) -> Any:
        """The update of one matrix, [out, in] in float64.

        Raises:
            MissingNameError: The adapter has no factor there.
        """
        factor: Factor = self[site]
        return factor.to_delta()

    def __repr__(self) -> str:
        return f"Factors(<{len(self)} of {self.layout}>)"


def read_factors(path: Path, *, base: Path | None = None, family: str | None = None, families: Path | None = None,
                 num_experts: int | None = None, adapter_name: str | None = None, from_: str | None = None,
                 orientation: str | None = None, b_packing: str | None = None, ignore_unused: bool = False,
                 allow_trailing_bytes: bool = False, max_tensors: int | None = None,
                 threads: int | None = None) -> Factors:
    """Opens an adapter of any layout as a sequence of factors: ``for site, A, B, scale in read_factors(path)``.

    Nothing is copied: A and B are views of the mapped file. bf16 and 8-bit floats have the dtypes of ml_dtypes when that
    is installed; else A and B hold the bits as unsigned integers, and ``factor.dtype`` says what they are.

    Args:
        path: The adapter's folder.
        base, family, families, num_experts, adapter_name, from_, orientation, b_packing, ignore_unused: As for
            :func:`peft_cpp.inspect`.
        allow_trailing_bytes, max_tensors: As for :func:`peft_cpp.inspect`.
        threads: All cores when not given.

    Returns:
        The factors. What a merge would refuse is refused.

    Raises:
        AdapterError: The adapter cannot be decoded.
        ConfigError: A field of the config makes the factors mean something else.
        FileError: The file cannot be read.
    """
    try:
        import numpy  # noqa: F401
    except ImportError:
        raise fail("USAGE", "factors are numpy arrays, and numpy is not installed", hint="pip install numpy ml_dtypes") from None
    core = _core.read_factors(dict(
        path=path, base=base, family=family, families=families, num_experts=num_experts, adapter_name=adapter_name,
        from_=from_, orientation=orientation, b_packing=b_packing, ignore_unused=ignore_unused,
        allow_trailing_bytes=allow_trailing_bytes, max_tensors=max_tensors, threads=threads))
    for message in core.warnings():
        warnings.warn(message, LoraWarning, stacklevel=2)
    return Factors(core)
