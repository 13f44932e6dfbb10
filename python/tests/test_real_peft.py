"""With the real PEFT, transformers and safetensors, where they are installed: what one writes, the other reads."""
import os

import pytest

import peft_cpp
import peft_cpp.testing
import support

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft", minversion="0.19.1")
transformers = pytest.importorskip("transformers", minversion="5")
pytestmark = pytest.mark.filterwarnings("ignore")

BASE = support.GOLDEN / "models" / "qwen3_moe-v5"
ADAPTER = support.GOLDEN / "merge" / "qwen3_moe-bf16" / "adapter"


@pytest.fixture
def lora():
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    return peft.PeftModel.from_pretrained(model, ADAPTER)


def test_state_dict_there_and_back(lora):
    tensors, config = peft.get_peft_model_state_dict(lora), lora.peft_config["default"]
    new, new_config = peft_cpp.convert_state_dict(tensors, config, to="peft-per-expert", base=BASE)
    assert isinstance(new_config, peft.LoraConfig) and new_config.r == config.r and not new_config.target_parameters
    back, back_config = peft_cpp.convert_state_dict(new, new_config, to="peft-fused", base=BASE)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert back_config.target_parameters
    peft_cpp.testing.assert_same_function((tensors, config), (new, new_config), base=BASE, tolerance="exact")


def test_peft_loads_what_we_write(lora, tmp_path):
    ids = torch.arange(1, 13).reshape(2, 6)
    expected = lora(ids).logits
    peft_cpp.convert(ADAPTER, to="peft-per-expert", base=BASE, out=tmp_path / "v4")
    peft_cpp.convert(tmp_path / "v4", to="peft-fused", base=BASE, out=tmp_path / "v5")
    base = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    plain = base(ids).logits
    got = peft.PeftModel.from_pretrained(base, tmp_path / "v5")(ids).logits
    assert torch.equal(got, expected) and not torch.allclose(plain, expected)


def test_safetensors_reads_what_we_write(tmp_path):
    from safetensors.torch import load_file, save_file

    peft_cpp.convert(ADAPTER, to="peft-per-expert", base=BASE, out=tmp_path / "v4")
    tensors = load_file(tmp_path / "v4" / support.WEIGHTS)
    new, config = peft_cpp.convert_state_dict(tensors, tmp_path / "v4", to="peft-fused", base=BASE)
    save_file(new, tmp_path / "new.safetensors")
    again = load_file(tmp_path / "new.safetensors")
    assert all(torch.equal(again[name], new[name]) for name in new)
