"""The golden adapters that the real programs wrote, through the Python API: in memory as on disk, both directions."""
import json

import numpy
import pytest

import peft_cpp
import support

CASES = sorted(path.parent for path in (support.GOLDEN / "convert").glob("*/case.json"))
pytestmark = pytest.mark.filterwarnings("ignore::peft_cpp.LoraWarning")


def wide(array):
    return numpy.asarray(array, "float64")


def right_answer(case):
    """The folder of the newest PEFT that got the case right, or of the right file made by hand; None when neither is there."""
    expect = case["expect"]
    right = [version for version, answer in expect["v5"].items() if answer["outcome"] == "ok"]
    if not right:
        return None
    converted = expect["files"]["converted"]
    for folder, versions in converted.items():
        if folder != "weights_as_in" and right[-1] in versions:
            if expect["v5"][right[-1]].get("missing", 0) > 0:
                return None  # filled up with empty LoRA
            return converted.get("weights_as_in", {}).get(folder, folder)
    return None


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_convert(path, tmp_path):
    case = json.loads((path / "case.json").read_text())
    adapter = path / "adapter"
    options = {"base": support.GOLDEN / "models" / case["model"]}
    judge = case.get("judge") or ""
    if judge.startswith("refuse with the reason"):
        with pytest.raises(peft_cpp.AdapterError) as caught:
            peft_cpp.convert(adapter, to="peft-fused", out=tmp_path / "fused", **options)
        assert caught.value.code == "LO_NO_FORM"
        with pytest.raises(peft_cpp.AdapterError):
            peft_cpp.convert_state_dict(support.load(adapter), adapter, to="peft-fused", **options)
        return
    if judge.startswith("strict: refuse"):
        with pytest.raises(peft_cpp.Error):
            peft_cpp.convert(adapter, to="peft-fused", out=tmp_path / "fused", **options)
        options["ignore_unused"] = True
    for layout in ("peft-fused", "peft-fused-0.19.0", "peft-fused-0.18", "unsloth-grouped"):
        there = tmp_path / layout
        peft_cpp.convert(adapter, to=layout, out=there, sync=False, **options)
        assert peft_cpp.verify(adapter, there, **options)
        back = tmp_path / (layout + "-back")
        peft_cpp.convert(there, to="peft-per-expert", from_=layout, out=back, sync=False, **options)
        in_memory(adapter, there, layout, {}, options)
        in_memory(there, back, "peft-per-expert", {"from_": layout}, options)
    fused = support.load(tmp_path / "peft-fused")
    answer = right_answer(case)
    if answer is not None:
        expected = support.load(path / "expected" / answer)
        assert fused.keys() == expected.keys()
        for name in fused:
            assert numpy.array_equal(wide(fused[name]), wide(expected[name])), name
    right = path / "expected" / "right"
    if right.exists():
        assert peft_cpp.verify(right, tmp_path / "peft-fused", **options)


def in_memory(source, written, to, more, options):
    """Converts in memory, with numpy and where it is there torch, and compares with the file."""
    tensors = support.load(source)
    new, config = peft_cpp.convert_state_dict(tensors, source, to=to, **more, **options)
    expected = support.load(written)
    assert support.same_bits(new, expected)
    assert config == support.load_config(written)
    try:
        import torch
    except ImportError:
        return
    given = {name: as_torch(torch, array) for name, array in tensors.items()}
    new, _ = peft_cpp.convert_state_dict(given, source, to=to, **more, **options)
    assert new.keys() == expected.keys()
    for name, tensor in new.items():
        assert tensor.flatten().view(torch.uint8).numpy().tobytes() == expected[name].tobytes(), name


def as_torch(torch, array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("uint16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("path", sorted((support.GOLDEN / "native").glob("*/adapter")), ids=lambda path: path.parent.name)
def test_native(path, tmp_path):
    """Fused files of the real PEFT: reports and conversions of a file and of its tensors in memory."""
    case = json.loads((path.parent / "case.json").read_text())
    options = {"base": support.GOLDEN / "models" / case["model"]}
    of_file = peft_cpp.inspect(path, **options).to_dict()
    in_memory_report = peft_cpp.detect(support.load(path), path, **options).to_dict()
    for report in (of_file, in_memory_report):
        report["error"] = report["error"].partition(":")[2]
        report["path"] = ""
    assert of_file == in_memory_report
    try:
        peft_cpp.convert(path, to="peft-per-expert", out=tmp_path / "out", sync=False, **options)
    except peft_cpp.Error as error:
        with pytest.raises(type(error)) as caught:
            peft_cpp.convert_state_dict(support.load(path), path, to="peft-per-expert", **options)
        assert caught.value.code == error.code
        return
    in_memory(path, tmp_path / "out", "peft-per-expert", {}, options)
