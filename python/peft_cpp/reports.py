"""What the functions of this package return.

A report has the fields that ``peft VERB --json`` prints, as attributes: ``report.layout``, ``report.tensors[0].key``.
``to_dict()`` gives the same JSON object back.
"""
from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, ClassVar

__all__ = [
    "AdapterWeight", "Consumer", "ConversionPlan", "ConvertReport", "Difference", "DoctorPart", "DoctorReport",
    "ElementCounts", "EngineReport", "InspectReport", "LowRankReport", "LowRankSite", "MergeReport",
    "MergedDifference", "MergedTensor", "PackedTensor", "PlannedFile", "PlannedTensor", "RankRow", "Report",
    "RoundingError", "StateDictReport", "Target", "TargetsReport", "TensorRow", "VerifyMergedReport", "VerifyReport",
]


class Report:
    """A result: named fields, read-only by convention. Fields that a result does not have are ``None``."""

    # The classes of the fields that hold objects, or lists of them.
    _kinds: ClassVar[Mapping[str, type["Report"]]] = {}
    # Fields that the short text of repr() shows.
    _shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        for name in self._field_names():
            setattr(self, name, None)
        for name, value in self._values.items():
            setattr(self, name, self._typed(name, value))

    @classmethod
    def _field_names(cls) -> list[str]:
        names: list[str] = []
        for base in reversed(cls.__mro__):
            names += [name for name in base.__dict__.get("__annotations__", {}) if not name.startswith("_")]
        return names

    def _typed(self, name: str, value: Any) -> Any:
        kind = self._kinds.get(name)
        if kind is None or value is None:
            return value
        return [kind(element) for element in value] if isinstance(value, list) else kind(value)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain dicts, lists, texts and numbers: what ``--json`` prints."""
        from copy import deepcopy

        return deepcopy(self._values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Report) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def _items(self) -> Iterator[tuple[str, Any]]:
        names = self._shown or tuple(self._values)
        return ((name, self._values[name]) for name in names if name in self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in self._items())})"

    def _repr_html_(self) -> str:
        return f"<b>{type(self).__name__}</b>{_table(self._values)}"


def _short(value: Any) -> str:
    text = repr(value)
    if isinstance(value, (list, dict)) and len(text) > 60:
        return f"<{len(value)} entries>"
    return text if len(text) <= 200 else text[:197] + "..."


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


_ROWS = 20  # of a list, in a notebook


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return _table(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        names = list(value[0])
        head = "".join(f"<th>{_escaped(name)}</th>" for name in names)
        rows = "".join("<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in names) + "</tr>"
                       for row in value[:_ROWS])
        more = f"<p>and {len(value) - _ROWS} more</p>" if len(value) > _ROWS else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"
    if isinstance(value, list):
        lines = [_escaped(str(element)) for element in value[:_ROWS]]
        if len(value) > _ROWS:
            lines.append(f"and {len(value) - _ROWS} more")
        return "<br>".join(lines)
    return "" if value is None else _escaped(str(value))


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th style='text-align:left'>{_escaped(str(name))}</th><td style='text-align:left'>"
                   f"{_cell(value)}</td></tr>" for name, value in values.items() if value not in ([], {}, "", None))
    return f"<table>{rows}</table>"


# ---- inspect, detect


class TensorRow(Report):
    """Tensors whose names differ in layer and expert alone."""

    key: str
    shape: str
    meaning: str
    count: int


class RankRow(Report):
    """Sites with the same rank, alpha and scale."""

    site: str
    rank: int
    alpha: float | None
    scale: float | None
    count: int


class Consumer(Report):
    """What a program makes of the file: "reads it right", "refuses", "silently wrong"."""

    name: str
    verdict: str
    why: str


class InspectReport(Report):
    """What an adapter is. ``error`` is empty unless the file cannot be decoded; the report is true when it could be."""

    path: str
    producer: str
    layout: str
    family: str
    model_type: str
    dtype: str
    evidence: list[str]
    tensors: list[TensorRow]
    num_tensors: int
    num_layers: int
    num_experts: int
    bytes: int
    parameters: int
    ranks: list[RankRow]
    orientation: str
    b_packing: str
    anomalies: list[str]
    warnings: list[str]
    consumers: list[Consumer]
    config: dict[str, Any]
    error: str

    _kinds = {"tensors": TensorRow, "ranks": RankRow, "consumers": Consumer}
    _shown = ("path", "layout", "model_type", "dtype", "num_tensors", "num_layers", "num_experts", "anomalies", "error")

    def __bool__(self) -> bool:
        return not self.error


# ---- targets


class Target(Report):
    """A module or parameter that a config puts LoRA on. ``lora_a`` and ``lora_b`` are shapes."""

    name: str
    kind: str
    rank: int
    alpha: float | None
    scale: float | None
    shape: list[int]
    lora_a: list[int]
    lora_b: list[int]
    key: str
    pattern: str


class TargetsReport(Report):
    """What a config puts LoRA on, and the config that PEFT would save."""

    generation: str
    targets: list[Target]
    modules_to_save: list[str]
    excluded: list[str]
    warnings: list[str]
    config_after: dict[str, Any]

    _kinds = {"targets": Target}
    _shown = ("generation", "targets", "modules_to_save", "excluded")


# ---- plans


class PlannedTensor(Report):
    """A tensor that would be written, put together from ``blocks`` pieces."""

    name: str
    dtype: str
    shape: list[int]
    blocks: int


class PlannedFile(Report):
    """A file that would be written."""

    name: str
    tensors: list[PlannedTensor]

    _kinds = {"tensors": PlannedTensor}


class ConversionPlan(Report):
    """What would be written: of ``dry_run=True``."""

    files: list[PlannedFile]
    texts: list[str]
    copies: list[str]
    exactness: str
    steps: list[str]
    warnings: list[str]
    bytes_in: int
    bytes_out: int
    peak_memory: int

    _kinds = {"files": PlannedFile}
    _shown = ("exactness", "bytes_out", "steps")


# ---- convert


class ConvertReport(Report):
    """What was converted. ``plan`` is there after ``dry_run=True``; ``config`` alone after ``config_only=True``."""

    adapter: str
    adapter_names: list[str]
    to: str
    run: list[str] | None
    tensors_in: int
    tensors_out: int
    exactness: str
    unused: list[str]
    notes: list[str]
    warnings: list[str]
    out: str | None
    bytes_in: int | None
    bytes_out: int | None
    seconds: float | None
    plan: ConversionPlan | None
    config: dict[str, Any] | None

    _kinds = {"plan": ConversionPlan}
    _shown = ("adapter", "from", "to", "tensors_in", "tensors_out", "exactness", "out")

    @property
    def from_(self) -> str:
        """The layouts that were read."""
        return str(self._values.get("from", ""))

    @property
    def for_(self) -> str:
        """With ``for_`` the engine, its version and how it runs."""
        return str(self._values.get("for", ""))


class StateDictReport(Report):
    """How a state dict was converted."""

    to: str
    tensors_in: int
    tensors_out: int
    exactness: str
    steps: list[str]
    notes: list[str]
    unused: list[str]
    warnings: list[str]
    bytes_out: int

    _shown = ("from", "to", "tensors_in", "tensors_out", "exactness")

    @property
    def from_(self) -> str:
        """The layout that was read."""
        return str(self._values["from"])


# ---- doctor


class DoctorPart(Report):
    """What an engine makes of one kind of module."""

    part: str
    modules: int
    rank: int
    example: str
    verdict: str
    why: str
    message: str
    shown_by: str
    measured: bool


class EngineReport(Report):
    """What an engine makes of an adapter; ``run`` starts it, ``mend`` is a command that makes the adapter right."""

    engine: str
    version: str
    mode: str
    title: str
    answer: str
    right: bool
    measured: bool
    parts: list[DoctorPart]
    run: list[str]
    mend: str

    _kinds = {"parts": DoctorPart}
    _shown = ("title", "answer", "measured", "mend")

    def __bool__(self) -> bool:
        return self.right


class DoctorReport(Report):
    """Whether an adapter works in an engine; true when it does in all that were asked for."""

    path: str
    layout: str
    model_type: str
    all_right: bool
    engines: list[EngineReport]

    _kinds = {"engines": EngineReport}

    def __bool__(self) -> bool:
        return self.all_right

    def __repr__(self) -> str:
        answers = ", ".join(f"{engine.title}: {engine.answer}" for engine in self.engines)
        return f"DoctorReport({self.path!r}, {self.layout!r}, {answers})"


# ---- verify


class Difference(Report):
    """One site at which two adapters differ."""

    site: str
    what: str
    relative: float | None


class VerifyReport(Report):
    """Whether two adapters are the same function; true when they are."""

    same: bool
    exactness: str | None
    compared: int
    identical: int
    largest_relative: float | None
    where: str
    differences: list[Difference]
    num_differences: int
    left_out: list[str]
    notes: list[str]

    _kinds = {"differences": Difference}
    _shown = ("same", "exactness", "compared", "identical", "largest_relative", "where", "num_differences")

    def __bool__(self) -> bool:
        return self.same


class ElementCounts(Report):
    """Elements by their distance from W + delta in fp64."""

    exact: int
    one_rounding: int
    two_roundings: int
    beyond: int


class MergedDifference(Report):
    """One tensor that is not what the base and the adapters give."""

    tensor: str
    kind: str
    what: str
    factor: float | None
    relative: float | None
    elements: int


class VerifyMergedReport(Report):
    """Whether a model is its base with adapters merged; true when it is."""

    same: bool
    tensors: int
    changed: int
    copied: int
    elements: ElementCounts
    bound: str
    worst_places: float | None
    worst_tensor: str
    differences: list[MergedDifference]
    num_differences: int
    left_out: list[str]
    notes: list[str]

    _kinds = {"differences": MergedDifference, "elements": ElementCounts}
    _shown = ("same", "tensors", "changed", "copied", "num_differences")

    def __bool__(self) -> bool:
        return self.same


# ---- merge


class AdapterWeight(Report):
    """An adapter that was used, and its weight."""

    path: str
    weight: float
    layout: str | None
    digest: str | None


class MergedTensor(Report):
    """What one adapter did to one matrix."""

    tensor: str
    file: str
    site: str
    rule: str
    adapter: int
    use_dora: bool
    exactness: str
    r: int | None
    scaling: float | None
    base_norm: float | None
    delta_norm: float | None


class RoundingError(Report):
    """mode="fast" against the exact sum, on sampled rows."""

    sampled: int
    different: int
    max_ulps: float | None


class PackedTensor(Report):
    """A tensor that was stored in a quantised type: what that costs, beside the update it got."""

    tensor: str
    type: str
    delta_norm: float | None
    error_norm: float | None
    delta_kept: float | None


class MergeReport(Report):
    """What a merge did, or with ``dry_run=True`` would do."""

    base: str
    adapters: list[AdapterWeight]
    mode: str
    exactness: str
    tensors_changed: int
    tensors_copied: int
    tensors_dequantized: int
    untied: bool
    zero_deltas: list[str]
    unused: list[str]
    warnings: list[str]
    tensors: list[MergedTensor]
    out: str | None
    bytes_in: int | None
    bytes_out: int | None
    files_written: int | None
    files_resumed: int | None
    published: bool | None
    seconds: float | None
    packed: list[PackedTensor] | None
    error: RoundingError | None
    plan: ConversionPlan | None
    seconds_estimate: float | None

    _kinds = {"adapters": AdapterWeight, "tensors": MergedTensor, "packed": PackedTensor,
              "error": RoundingError, "plan": ConversionPlan}
    _shown = ("base", "adapters", "mode", "tensors_changed", "tensors_copied", "bytes_out", "out")


# ---- combine, resize, extract


class LowRankSite(Report):
    """What was made of one matrix: ``relative`` is the error, as a part of the norm of what was asked for."""

    site: str
    rank: int
    norm: float | None
    relative: float | None


class LowRankReport(Report):
    """An adapter whose factors were computed, and what that costs."""

    sites: list[LowRankSite]
    worst: float | None
    mean: float | None
    where: str
    left_out: list[str]
    unused: list[str]
    notes: list[str]
    warnings: list[str]
    exactness: str
    type: str | None
    adapters: list[AdapterWeight] | None
    adapter: str | None
    base: str | None
    finetuned: str | None
    rank: int | None
    out: str | None
    bytes_out: int | None
    seconds: float | None
    plan: ConversionPlan | None

    _kinds = {"sites": LowRankSite, "adapters": AdapterWeight, "plan": ConversionPlan}
    _shown = ("type", "adapter", "rank", "sites", "worst", "where", "mean", "out")
