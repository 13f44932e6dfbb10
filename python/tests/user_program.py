"""A user's program, for `mypy --strict`: every public function and result has types."""
from __future__ import annotations

import pathlib

import peft_cpp
import peft_cpp.testing


def use(folder: pathlib.Path, tensors: dict[str, object]) -> str:
    report = peft_cpp.inspect(folder, base="model")
    text: str = report.layout + report.tensors[0].key
    experts: int = report.num_experts
    if not report:
        return report.error
    converted: peft_cpp.ConvertReport = peft_cpp.convert(folder, to="peft-fused", out="out",
                                                         progress=lambda done, total: print(done, total))
    size: int | None = converted.bytes_out
    assert peft_cpp.verify(folder, "out").same
    merged = peft_cpp.merge([(folder, 0.5), "other@2"], base="model", out="merged", mode="best")
    norms: list[float | None] = [tensor.delta_norm for tensor in merged.tensors]
    low: peft_cpp.LowRankReport = peft_cpp.resize(folder, rank=8, dry_run=True)
    new, config = peft_cpp.convert_state_dict(tensors, {"r": 8}, to="peft-fused", family="mixtral")
    for factor in peft_cpp.read_factors(folder):
        site: str = factor.site
        scale: float = factor.scale
        text += f"{site} {scale} {factor.to_delta().shape}"
    try:
        peft_cpp.testing.assert_same_function(folder, "out", tolerance="exact")
    except peft_cpp.AdapterError as error:
        text += error.code + error.hint
    return f"{text} {experts} {size} {norms} {low.worst} {len(new)} {config} {peft_cpp.layouts()}"
