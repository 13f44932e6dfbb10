"""Every layout and every kind of file: written, read, and back; folders as they lie about, read as the command line reads them."""
import json
import subprocess
import sys

import numpy
import pytest

import peft_cpp
import support

pytestmark = pytest.mark.filterwarnings("ignore::peft_cpp.LoraWarning")
WILD = sorted(path.parent for path in (support.GOLDEN.parent / "wild").glob("*/expect.json"))


@pytest.mark.parametrize("layout", peft_cpp.layouts())
def test_there_and_back(layout, adapter, tmp_path):
    """The same function in every layout; and the bytes of the original where the layout keeps all of it."""
    out, back = tmp_path / ("out.gguf" if layout == "gguf" else "out"), tmp_path / "back"
    options = {"base": support.mixtral_base(tmp_path / "base")}
    peft_cpp.convert(adapter, to=layout, out=out, **options)
    report = peft_cpp.inspect(out, **options)
    assert report and report.num_experts == support.EXPERTS, report.error
    assert peft_cpp.verify(adapter, out, **options)
    factors = peft_cpp.read_factors(out, **options)
    assert len(factors) == len(support.mixtral()[0]) // 2
    peft_cpp.convert(out, to="peft-per-expert", out=back, **options)
    assert peft_cpp.verify(adapter, back, **options)
    one_scale = ("gguf", "mlx", "tinker", "megatron-bridge", "sglang", "veomni", "ktransformers", "nemo")
    if layout not in one_scale:  # these have no place for the scale that the config gives
        assert support.same_bits(support.load(back), support.load(adapter))


@pytest.mark.parametrize("folder", WILD, ids=lambda folder: folder.name)
def test_as_they_lie_about(folder, tmp_path):
    expect = json.loads((folder / "expect.json").read_text())
    options = {"base": folder / expect["base"]} if expect.get("base") else {}
    run = subprocess.run([sys.executable, "-m", "peft_cpp", "inspect", folder, "--json",
                          *(word for value in options.values() for word in ("--base", value))], capture_output=True, text=True)
    try:
        report = peft_cpp.inspect(folder, **options)
        assert report.to_dict() == json.loads(run.stdout) and bool(report) == (run.returncode == 0)
    except peft_cpp.Error as error:
        assert run.returncode != 0 and error.code in run.stdout + run.stderr
    code = expect["verbs"]["convert"][0]
    out = tmp_path / "out"
    try:
        peft_cpp.convert(folder, to="peft-per-expert", out=out, **options)
        assert code == 0 and out.exists()
    except peft_cpp.Error as error:
        assert error.code and not out.exists()


def test_a_pickle_and_shards(adapter, fused, tmp_path):
    """adapter_model.bin as torch.save writes it, and the same tensors in two files with an index."""
    tensors = support.load(fused)
    config = (fused / support.CONFIG).read_text()
    names = sorted(tensors)
    shards = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        folder = support.save(tmp_path / f"part-{number}", {name: tensors[name] for name in part}, {})
        shards[f"adapter_model-0000{number}-of-00002.safetensors"] = (folder / support.WEIGHTS, part)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for name, (path, _) in shards.items():
        path.rename(sharded / name)
    weight_map = {tensor: name for name, (_, part) in shards.items() for tensor in part}
    (sharded / "adapter_model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (sharded / support.CONFIG).write_text(config)
    folders = [sharded]
    try:
        import torch

        (tmp_path / "pickle").mkdir()
        torch.save({name: torch.from_numpy(numpy.array(array)) for name, array in tensors.items()},
                   tmp_path / "pickle" / "adapter_model.bin")
        (tmp_path / "pickle" / support.CONFIG).write_text(config)
        folders.append(tmp_path / "pickle")
    except ImportError:
        pass
    for folder in folders:
        assert peft_cpp.verify(fused, folder, family="mixtral", tolerance="exact")
        peft_cpp.convert(folder, to="peft-per-expert", family="mixtral", out=tmp_path / f"back-{folder.name}")
        assert support.same_bits(support.load(tmp_path / f"back-{folder.name}"), support.load(adapter))
        for factor in peft_cpp.read_factors(folder, family="mixtral"):
            assert factor.A.shape[0] == factor.B.shape[1] == support.RANK
