#!/usr/bin/env python3
"""Tiny dense and encoder models of the real transformers, LoRA on them by the real PEFT, and what merge_and_unload() makes.

    VENV/bin/python tests/dense/make.py --out tests/dense [CASE ...]

CASE/base      the model: config.json and its weights, in fp32
CASE/adapter   LoRA with random factors, as save_pretrained() writes it
CASE/merged    the tensors that merge_and_unload() changed, in the names of the base's file
With transformers 4 a folder is called CASE-v4. A case whose base was saved from another class than the one that PEFT had
("bert-bare": a checkpoint without the prefix "bert.") says so in CASES.
"""
import argparse
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

transformers.logging.set_verbosity_error()
V4 = transformers.__version__.startswith("4.")

LLAMA = dict(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
             head_dim=6, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2)
BERT = dict(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16,
            type_vocab_size=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMALL_VISION = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
QWEN_VISION = dict(depth=1, hidden_size=8, embed_dim=8, intermediate_size=12, num_heads=2, patch_size=4, spatial_merge_size=2,
                   temporal_patch_size=2, out_hidden_size=16, num_position_embeddings=16, deepstack_visual_indexes=[0])
QWEN_TEXT = LLAMA | dict(rope_scaling={"rope_type": "default", "mrope_section": [1, 1, 1]})
DELTA = dict(layer_types=["linear_attention", "full_attention"], num_hidden_layers=2, linear_num_key_heads=2, linear_num_value_heads=4,
             linear_key_head_dim=4, linear_value_head_dim=6, linear_conv_kernel_dim=3)
T5 = dict(vocab_size=24, d_model=16, d_kv=6, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2, pad_token_id=0,
          decoder_start_token_id=0, eos_token_id=1)
WHISPER = dict(vocab_size=24, num_mel_bins=5, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
               encoder_ffn_dim=24, decoder_ffn_dim=28, d_model=16, max_source_positions=8, max_target_positions=8, pad_token_id=0,
               bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)

# name: (model_type, config, class the base is saved from, class under PEFT ("": the same), LoraConfig)
CASES = {
    "bert": ("bert", BERT, "BertForSequenceClassification", "",
             dict(task_type="SEQ_CLS", target_modules=["query", "value", "word_embeddings"])),
    "bert-bare": ("bert", BERT, "BertModel", "BertForSequenceClassification",
                  dict(target_modules=["query", "intermediate.dense"])),
    "bert-features": ("bert", BERT, "BertForMaskedLM", "BertModel",
                      dict(task_type="FEATURE_EXTRACTION", target_modules=["query", "value"])),
    "distilbert": ("distilbert", dict(vocab_size=24, dim=16, hidden_dim=24, n_layers=1, n_heads=2, max_position_embeddings=16,
                                      pad_token_id=0), "DistilBertForMaskedLM", "DistilBertForSequenceClassification",
                   dict(target_modules=["q_lin", "v_lin", "lin1", "word_embeddings"])),
    "roberta": ("roberta", BERT, "RobertaForMaskedLM", "RobertaForTokenClassification",
                dict(target_modules=["query", "value", "word_embeddings"])),
    "t5": ("t5", T5, "T5ForConditionalGeneration", "",
           dict(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v", "wi", "shared"])),
    "t5-gated": ("t5", T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), "T5ForConditionalGeneration", "",
                 dict(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v", "wi_0", "wi_1", "lm_head"])),
    "whisper": ("whisper", WHISPER, "WhisperForConditionalGeneration", "",
                dict(target_modules=["q_proj", "v_proj", "conv1", "embed_tokens"])),
    "gpt2": ("gpt2", dict(vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2),
             "GPT2LMHeadModel", "", dict(task_type="CAUSAL_LM", target_modules=["c_attn", "c_proj", "c_fc", "wte"],
                                         fan_in_fan_out=True)),
    "gpt2-bare": ("gpt2", dict(vocab_size=24, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2),
                  "GPT2Model", "GPT2LMHeadModel", dict(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)),
    "gpt_neox": ("gpt_neox", BERT | dict(tie_word_embeddings=False), "GPTNeoXForCausalLM", "",
                 dict(task_type="CAUSAL_LM", target_modules=["query_key_value", "dense", "embed_in"]
                      + (["embed_out"] if V4 else ["lm_head"]))),
    "falcon": ("falcon", dict(vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1, eos_token_id=2),
               "FalconForCausalLM", "", dict(task_type="CAUSAL_LM", target_modules=["query_key_value", "dense_h_to_4h", "word_embeddings"])),
    "falcon-new": ("falcon", dict(vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_kv_heads=2, bos_token_id=1,
                                  eos_token_id=2, new_decoder_architecture=True), "FalconForCausalLM", "",
                   dict(task_type="CAUSAL_LM", target_modules=["query_key_value", "dense"])),
    "bloom": ("bloom", dict(vocab_size=24, hidden_size=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0),
              "BloomModel", "BloomForCausalLM", dict(task_type="CAUSAL_LM", target_modules=["query_key_value", "dense", "word_embeddings"])),
    "opt": ("opt", dict(vocab_size=24, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16,
                        word_embed_proj_dim=8, do_layer_norm_before=False, pad_token_id=0, bos_token_id=1, eos_token_id=2),
            "OPTForCausalLM", "", dict(task_type="CAUSAL_LM", target_modules=["q_proj", "fc1", "project_in", "embed_tokens"])),
    "gemma3": ("gemma3", dict(text_config=LLAMA | dict(sliding_window=8), vision_config=SMALL_VISION, mm_tokens_per_image=4,
                              image_token_index=5, boi_token_index=6, eoi_token_index=7), "Gemma3ForConditionalGeneration", "",
               dict(target_modules=["q_proj", "o_proj", "embed_tokens"])),
    "qwen2_vl": ("qwen2_vl", (lambda: dict(text_config=QWEN_TEXT, vision_config=QWEN_VISION | dict(hidden_size=16))),
                 "Qwen2VLForConditionalGeneration", "", dict(target_modules=["q_proj", "v_proj", "qkv", "embed_tokens"])),
    "qwen3_vl": ("qwen3_vl", (lambda: dict(text_config=QWEN_TEXT, vision_config=QWEN_VISION)), "Qwen3VLForConditionalGeneration", "",
                 dict(target_modules=["q_proj", "v_proj", "qkv", "embed_tokens"])),
    "qwen3_5": ("qwen3_5", (lambda: dict(text_config=QWEN_TEXT | DELTA, vision_config=QWEN_VISION)), "Qwen3_5ForConditionalGeneration", "",
                dict(target_modules=["q_proj", "v_proj", "in_proj_qkv", "out_proj", "embed_tokens"])),
    "qwen3_5-text": ("qwen3_5", (lambda: dict(text_config=QWEN_TEXT | DELTA, vision_config=QWEN_VISION)), "Qwen3_5ForConditionalGeneration",
                     "Qwen3_5ForCausalLM", dict(task_type="CAUSAL_LM", target_modules=["q_proj", "in_proj_z", "down_proj"])),
}


def randomize(model):
    generator = torch.Generator().manual_seed(7)
    seen = set()
    for _, tensor in sorted(model.named_parameters()):
        if tensor.data_ptr() not in seen:
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.25)
            seen.add(tensor.data_ptr())


def config_of(model_type, values):
    return transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type](**(values() if callable(values) else values))


def tensors_of(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def changed_in_base_names(base, model, save_class):
    """What merging changed, as a model of the base's class saves it."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        merged = tensors_of(Path(temporary))
        if type(model).__name__ != save_class:
            again = getattr(transformers, save_class).from_pretrained(temporary, dtype=torch.float32)
            again.save_pretrained(temporary + "/again")
            kept = tensors_of(Path(temporary + "/again"))  # heads that the other class lacks are random in it
            merged = {k: v for k, v in kept.items() if any(k.endswith(m) or m.endswith(k) for m in merged)}
    return {k: v for k, v in merged.items() if k in base and not torch.equal(v, base[k])}


def make(name, folder):
    model_type, values, save_class, peft_class, lora = CASES[name]
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    model = getattr(transformers, save_class)(config_of(model_type, values))
    randomize(model)
    model.save_pretrained(folder / "base")
    peft_class = peft_class or save_class
    model = getattr(transformers, peft_class).from_pretrained(folder / "base", dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **lora))
    model.peft_config["default"].base_model_name_or_path = f"tiny/{name}"
    model.save_pretrained(folder / "adapter")
    base = tensors_of(folder / "base")
    changed = changed_in_base_names(base, model.merge_and_unload(), save_class)
    (folder / "merged").mkdir()
    save_file(changed, folder / "merged/model.safetensors")
    for extra in [*folder.glob("base/generation_config.json"), *folder.glob("adapter/README.md")]:
        extra.unlink()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder.name}: {peft_class}, {len(changed)} tensors changed, {size} bytes")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    for name in options.cases or CASES:
        try:
            make(name, options.out / (name + ("-v4" if V4 else "")))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
