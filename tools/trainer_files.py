#!/usr/bin/env python3
"""Has the real packages of trainers write small adapters of a Qwen3-MoE: tests/layouts/trainers.

    pip download --no-deps veomni==0.1.12 nemo-automodel==0.7.0 kt-kernel==0.7.2, unpack the wheels side by side;
    PYTHONPATH=... python tools/trainer_files.py WHEELS OUT      (torch, transformers, safetensors, gguf)

Each case is a folder as its program leaves it, and beside it expected.safetensors: the same factors one expert after
the other, under PEFT's names. That file is NeMo's own per-expert export, KT's own conversion for SGLang, and of VeOmni
the slices that its forward pass takes.
"""
import importlib
import json
import pathlib
import sys
import types

import torch
from safetensors.torch import load_file, save_file

WHEELS, OUT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
E, H, I, R, ALPHA, LAYERS = 12, 26, 20, 3, 6, (0, 11)
PREFIX = "base_model.model.model."


def without_init(name, folder):
    """A package whose __init__ imports too much: only its folder."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def save(case, tensors, config, expected, **texts):
    folder = OUT / case
    folder.mkdir(parents=True, exist_ok=True)
    if tensors:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    for name, content in {"adapter_config": config, **texts}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True))
    save_file({k: v.contiguous() for k, v in expected.items()}, OUT / f"{case}.expected.safetensors")


def attention():
    tensors = {}
    for layer in LAYERS:
        name = f"{PREFIX}layers.{layer}.self_attn.q_proj."
        tensors[name + "lora_A.weight"] = torch.randn(R, H)
        tensors[name + "lora_B.weight"] = torch.randn(10, R)
    return tensors


def veomni():
    root = WHEELS / "veomni/veomni"
    for name in ("veomni", "veomni.utils", "veomni.lora"):
        without_init(name, WHEELS / "veomni" / name.replace(".", "/"))
    del root
    config = importlib.import_module("veomni.lora.config")
    layers = importlib.import_module("veomni.lora.moe_layers")
    state = importlib.import_module("veomni.lora.state_dict")
    for mode, kind in (("independent", layers.LoraIndependentExperts), ("shared", layers.LoraSharedExperts)):
        tensors, expected = {}, {}
        for layer in LAYERS:
            base = torch.nn.Module()
            base.num_experts, base.hidden_dim, base.intermediate_dim, base.act_fn = E, H, I, torch.nn.functional.silu
            base.gate_up_proj = torch.nn.Parameter(torch.randn(E, 2 * I, H))
            base.down_proj = torch.nn.Parameter(torch.randn(E, H, I))
            wrapped = kind(base, R, ALPHA)
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.data.normal_()
            model = torch.nn.Module()
            model.experts = wrapped
            path = f"{PREFIX}layers.{layer}.mlp."
            for name, tensor in state.get_lora_state_dict(model).items():
                tensors[path + name] = tensor.detach()
            for projection in ("gate_proj", "up_proj", "down_proj"):
                a, b = wrapped.get_lora_A_weight(projection).detach(), wrapped.get_lora_B_weight(projection).detach()
                for e in range(E):
                    key = f"{path}experts.{e}.{projection}."
                    expected[key + "lora_A.weight"] = (a if a.dim() == 2 else a[e]).clone()
                    expected[key + "lora_B.weight"] = (b if b.dim() == 2 else b[e]).clone()
        dense = attention()
        own = config.VeOmniLoraConfig(r=R, lora_alpha=ALPHA, target_modules=["q_proj"], moe_mode=mode, target_parameters=[
            "model.layers.*.mlp.experts.down_proj", "model.layers.*.mlp.experts.gate_up_proj"], task_type="CAUSAL_LM")
        save(f"veomni-{mode}", {**tensors, **dense}, own.to_peft_dict(), {**expected, **dense})


def nemo():
    module = importlib.import_module("nemo_automodel.components.moe.state_dict_mixin")

    class Adapter(module.MoESplitExpertsStateDictMixin):
        _is_gated_moe, _expert_path_segment, _last_expert_ids = True, "mlp.experts", list(range(E))
        moe_config = types.SimpleNamespace(n_routed_experts=E, moe_inter_dim=I, dim=H)

        def _v5_peft_hf_expert_path_segment(self):
            return "mlp.experts"

        def _split_experts_weights(self, tensor, count):
            return [tensor[e] for e in range(count)]
    adapter = Adapter()
    shapes = dict(lora_gate_and_up_A=(E, H, R), lora_gate_and_up_B=(E, R, 2 * I), lora_down_A=(E, I, R), lora_down_B=(E, R, H))
    for case, legacy in (("nemo", False), ("nemo-legacy", True)):
        tensors, expected = {}, {}
        for layer in LAYERS:
            for name, shape in shapes.items():
                native = torch.randn(*shape)
                path = f"{PREFIX}layers.{layer}.mlp.experts.{name}"
                tensors.update(adapter._convert_lora_to_paramwrapper(path, native, legacy_layout=legacy))
                expected.update(adapter._convert_lora_expert_to_hf(path, native, E, I, "mlp.experts"))
        config = dict(task_type="CAUSAL_LM", peft_type="LORA", r=R, lora_alpha=ALPHA, use_dora=False, target_modules=[], bias="none",
                      base_model_name_or_path="tiny", target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"])
        stamp = module._PARAMWRAPPER_LAYOUT_LEGACY if legacy else module._PARAMWRAPPER_LAYOUT_MODERN
        save(case, tensors, config, expected, automodel_peft_config={module._PARAMWRAPPER_LAYOUT_METADATA_KEY: stamp})


def ktransformers():
    lora = importlib.import_module("kt_kernel.sft.lora")
    convert = importlib.import_module("kt_kernel.sft.convert_kt_to_sglang_adapter")
    shapes = [(E, R, H), (E, I, R), (E, R, H), (E, I, R), (E, R, I), (E, H, R)]
    wrappers = [types.SimpleNamespace(layer_idx=layer, _fused_expert_lora_params=[
        torch.nn.Parameter(torch.randn(*shape).to(torch.bfloat16)) for shape in shapes]) for layer in LAYERS]
    dense = attention()
    config = dict(peft_type="LORA", r=R, lora_alpha=ALPHA, target_modules=["q_proj"], bias="none", task_type="CAUSAL_LM")
    save("ktransformers", dense, config, {})
    folder = OUT / "ktransformers"
    lora._save_fused_expert_lora(wrappers, str(folder))
    convert.convert_kt_to_sglang_adapter(folder, OUT / "sglang-of-kt", base_model_name_or_path="tiny")
    made = load_file(OUT / "sglang-of-kt/adapter_model.safetensors")
    (OUT / "ktransformers.expected.safetensors").unlink()
    save_file({f"base_model.model.{k}": v.contiguous() for k, v in made.items()}, OUT / "ktransformers.expected.safetensors")
    for file in (OUT / "sglang-of-kt").iterdir():
        file.unlink()
    (OUT / "sglang-of-kt").rmdir()


torch.manual_seed(5)
for name in ("veomni", "nemo_automodel", "kt_kernel"):
    sys.path.insert(0, str(WHEELS / name))
(OUT / "base").mkdir(parents=True, exist_ok=True)
(OUT / "base/config.json").write_text(json.dumps(dict(
    model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], hidden_size=H, moe_intermediate_size=I, intermediate_size=I, num_experts=E,
    num_hidden_layers=12, num_attention_heads=2, num_key_value_heads=1, head_dim=5, vocab_size=17, decoder_sparse_step=1, mlp_only_layers=[]), indent=1))
veomni()
nemo()
ktransformers()
