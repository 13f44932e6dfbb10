"""Models that run, where peft-cpp-runtime is installed: the logits of the real programs, and tensors that are shared with torch."""
import json
import os
import subprocess
import sys

import pytest

import peft_cpp
import support

torch = pytest.importorskip("torch")
pytest.importorskip("peft_cpp_runtime")
from peft_cpp import nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::peft_cpp.LoraWarning")
CASES = sorted(path.parent for path in (support.GOLDEN / "runtime").glob("*/case.json"))
CASE = support.GOLDEN / "runtime" / "mixtral"


def read(folder):
    case = json.loads((folder / "case.json").read_text())
    return case, support.GOLDEN / "models" / case["model"]


def load(name):
    case, base = read(support.GOLDEN / "runtime" / name)
    return case, nn.load_model(base, dtype=torch.float32)


def distance(case, logits, name):
    from safetensors.torch import load_file

    expected = load_file(support.GOLDEN / case["id"] / "expected" / f"{name}.safetensors")["logits"]
    mask = torch.tensor(case["attention_mask"]).bool()
    return (logits - expected)[mask].abs().max().item()


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_logits_of_the_real_programs(folder):
    case, base = read(folder)
    ids, mask = torch.tensor(case["input_ids"]), torch.tensor(case["attention_mask"])
    positions = torch.tensor(case["position_ids"])
    model = nn.load_model(base, dtype="float32")
    tolerance = {name: row["abs"] for name, row in case["expect"]["tolerance"]["fp32"].items()}
    assert distance(case, model.forward(ids, mask, positions).logits, "base") <= tolerance["base"]
    lora = nn.PeftModel.from_pretrained(model, folder / "adapter")
    assert distance(case, lora.forward(ids, mask, positions).logits, "lora") <= tolerance["lora"]
    with lora.disable_adapter():
        assert distance(case, lora.forward(ids, mask, positions).logits, "base") <= tolerance["base"]


def test_tensors_are_shared(tmp_path):
    case, model = load("mixtral")
    ids = torch.tensor(case["input_ids"])[:1]
    lora = nn.get_peft_model(model, {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"],
                                     "target_parameters": ["mlp.experts.down_proj"]})
    before = lora.logits(ids)
    assert torch.equal(before, model.logits(ids))  # B is zero
    parameters = lora.trainable_parameters()
    assert all(isinstance(tensor, torch.Tensor) and tensor.requires_grad and tensor.is_leaf for tensor in parameters)
    again = lora.trainable_parameters()
    assert [tensor.data_ptr() for tensor in parameters] == [tensor.data_ptr() for tensor in again]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    output = lora.forward(ids)
    assert output.logits.requires_grad and output.aux_loss is None
    output.logits.square().sum().backward()
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in parameters)
    optimizer.step()
    assert not torch.equal(lora.logits(ids), before)
    trainable, total = lora.get_nb_trainable_parameters()
    assert trainable == sum(tensor.numel() for tensor in parameters) < total
    lora.save_pretrained(tmp_path / "saved")
    assert peft_cpp.inspect(tmp_path / "saved", base=model._core.folder())
    saved = lora.state_dict()
    after = lora.logits(ids)
    base = lora.unload()
    assert torch.equal(base.logits(ids), before)
    loaded = nn.PeftModel.from_pretrained(base, tmp_path / "saved")
    assert torch.equal(loaded.logits(ids), after)
    assert saved.keys() == loaded.state_dict().keys()
    with pytest.raises(peft_cpp.UsageError):
        lora.logits(ids)


def test_adapters(tmp_path):
    case, model = load("mixtral")
    ids, mask = torch.tensor(case["input_ids"]), torch.tensor(case["attention_mask"])
    lora = nn.PeftModel.from_pretrained(model, CASE / "adapter")
    lora.add_adapter("other", lora.peft_config())
    assert lora.adapter_names == ["default", "other"] and lora.active_adapters == ["default"]
    with_default = lora.logits(ids, mask)
    lora.merge_adapter()
    assert torch.allclose(lora.logits(ids, mask), with_default, atol=1e-4)
    lora.unmerge_adapter()
    assert torch.equal(lora.logits(ids, mask), with_default)
    lora.set_adapter("other")
    other = lora.logits(ids, mask)
    mixed = lora.logits(ids, mask, adapter_names=["default", "other"])
    assert torch.allclose(mixed[0], with_default[0], atol=1e-5) and torch.allclose(mixed[1], other[1], atol=1e-5)
    lora.delete_adapter("other")
    tokens = lora.generate(ids, mask, max_new_tokens=4)
    assert len(tokens) == 2 and all(1 <= len(row) <= 4 for row in tokens)
    with pytest.raises(peft_cpp.Error):
        lora.set_adapter("nowhere")
    with pytest.raises(peft_cpp.Error):
        nn.load_model(tmp_path / "nowhere")
    with pytest.raises(TypeError):
        model.forward("text")
    with pytest.raises(peft_cpp.UsageError, match="positions"):
        model.forward(ids, mask, torch.arange(ids.shape[1] + 1))


def test_another_torch_is_one_clear_error(monkeypatch):
    import peft_cpp_runtime

    monkeypatch.setattr(peft_cpp_runtime, "TORCH", "1.2.3")
    with pytest.raises(peft_cpp.RuntimeMissingError, match="1.2.3") as caught:
        nn.load_model("x")
    assert caught.value.expected == "torch 1.2.3" and caught.value.hint


def test_generate_from_pip_alone():
    case, base = read(CASE)
    run = subprocess.run([sys.executable, "-m", "peft_cpp", "generate", "--base", base, "--adapter", CASE / "adapter", "--ids", "5,6,7",
                          "--max-new-tokens", "3", "--json"], capture_output=True, text=True,
                         env={"PATH": os.defpath, "PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)
