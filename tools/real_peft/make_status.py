#!/usr/bin/env python3
"""Writes tests/nn/status.json: what get_layer_status and get_model_status of the real PEFT say after each step of a
few stories about adapters. tests/nn/status_test.cpp tells the same stories. A step without "layers" leaves them as they
were before it.

    build/venvs/new/bin/python tools/real_peft/make_status.py > tests/nn/status.json
"""

import dataclasses
import json
import os
import tempfile
import warnings

import peft
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": False, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "max_position_embeddings": 32768,
    "tie_word_embeddings": False, "attention_bias": False,
}
DENSE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": True,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
PLAIN = {"target_modules": ["q_proj", "v_proj"]}
WHOLE = {**PLAIN, "modules_to_save": ["lm_head", "layernorm"], "trainable_token_indices": [5, 9]}
EXPERTS = {**PLAIN, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]}

# A step is a method's name and its arguments; "save", "from_pretrained" and "load_adapter" share one folder.
STORIES = {
    "experts": (MOE, [["new", EXPERTS], ["merge_adapter"], ["unmerge_adapter"]]),
    "gradients": (MOE, [
        ["new", WHOLE], ["add_adapter", "other", WHOLE], ["set_requires_grad", ["other"], True],
        ["set_requires_grad", ["default", "other"], False], ["set_adapter", "other", False],
        ["set_adapter", "default", True], ["set_adapter", "default", False], ["delete_adapter", "default"]]),
    "different targets": (MOE, [
        ["new", WHOLE], ["add_adapter", "other", {"target_modules": ["k_proj"]}], ["set_adapter", "other", False],
        ["merge_adapter"], ["unmerge_adapter"], ["set_adapter", "default", False], ["merge_adapter"],
        ["unmerge_adapter"]]),
    "frozen from the start": (MOE, [["new", {**WHOLE, "inference_mode": True}], ["set_adapter", "default", False]]),
    "loaded": (MOE, [
        ["new", WHOLE], ["save"], ["from_pretrained", False], ["load_adapter", "other", False],
        ["set_adapter", "other", False], ["set_adapter", "default", False], ["load_adapter", "third", True]]),
    "loaded to be trained": (MOE, [["new", EXPERTS], ["save"], ["from_pretrained", True]]),
    "whole blocks": (MOE, [["new", {"target_modules": ["lm_head", "embed_tokens"], "modules_to_save": ["self_attn"]}]]),
    "dora": (DENSE, [["new", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}]]),
    "lora_bias": (DENSE, [["new", {"target_modules": ["q_proj"], "lora_bias": True}], ["merge_adapter"]]),
    "tied tokens": (DENSE, [["new", {**PLAIN, "trainable_token_indices": [5, 9]}], ["merge_adapter"]]),
}


def without_backend(status):
    fields = dataclasses.asdict(status)
    fields.pop("quantization_backend")
    return fields


def tell(config, steps, folder):
    file = os.path.join(folder, "config.json")
    with open(file, "w") as out:
        json.dump(config, out)
    base = lambda: transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    lora = lambda fields: LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **fields)
    saved = os.path.join(folder, "saved")
    model, said, before = None, [], None
    for name, *arguments in steps:
        if name == "new":
            model = get_peft_model(base(), lora(arguments[0]))
        elif name == "add_adapter":
            model.add_adapter(arguments[0], lora(arguments[1]))
        elif name == "save":
            model.save_pretrained(saved)
        elif name == "from_pretrained":
            model = PeftModel.from_pretrained(base(), saved, is_trainable=arguments[0])
        elif name == "load_adapter":
            model.load_adapter(saved, arguments[0], is_trainable=arguments[1])
        else:
            getattr(model, name)(*arguments)
        layers = [without_backend(layer) for layer in model.get_layer_status()]
        told = {"step": [name, *arguments], "model": without_backend(model.get_model_status())}
        said.append(told if layers == before else {**told, "layers": layers})
        before = layers
    return {"config": config, "steps": said}


def main():
    warnings.filterwarnings("ignore")
    stories = {}
    for name, (config, steps) in STORIES.items():
        with tempfile.TemporaryDirectory() as folder:
            stories[name] = tell(config, steps, folder)
    made_by = f"PEFT {peft.__version__}, transformers {transformers.__version__}"
    print(f'{{"made_by": {json.dumps(made_by)}, "stories": {{')
    print(",\n".join(f"{json.dumps(name)}: {text(story)}" for name, story in stories.items()) + "}}")


# One line for each layer: a story can be read, and a difference seen.
def text(story):
    steps = []
    for step in story["steps"]:
        layers = ",\n  ".join(json.dumps(layer) for layer in step.pop("layers", []))
        rest = json.dumps(step)[:-1]
        steps.append(rest + (f', "layers": [\n  {layers}]}}' if layers else "}"))
    return f'{{"config": {json.dumps(story["config"])}, "steps": [\n ' + ",\n ".join(steps) + "]}"


if __name__ == "__main__":
    main()
