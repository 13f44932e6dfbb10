"""Makes the adapters of this folder with the real PEFT. Run once for each of three environments, in this order:

    PEFT 0.10.0,  transformers 4.57.6:   python make.py old     config.json of such adapters says modules_to_save: null
    PEFT 0.18.1,  transformers 4.57.6:   python make.py v4
    PEFT 0.21.2,  transformers 5.24.0:   python make.py v5
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (AutoModelForSequenceClassification, BertConfig, BertForTokenClassification, DistilBertConfig,
                          DistilBertForQuestionAnswering, DistilBertForSequenceClassification, LlamaConfig,
                          LlamaForCausalLM, LlamaForSequenceClassification, MixtralConfig,
                          MixtralForSequenceClassification, T5Config, T5ForConditionalGeneration)

from peft import LoraConfig, PeftModel, get_peft_model

HERE = Path(__file__).parent
LABELS = 3
LLAMA = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
             vocab_size=12, pad_token_id=0, tie_word_embeddings=False)
MIXTRAL = dict(LLAMA, num_local_experts=3, num_experts_per_tok=2)
BERT = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=12,
            max_position_embeddings=8)
DISTILBERT = dict(dim=8, hidden_dim=12, n_layers=1, n_heads=2, vocab_size=12, max_position_embeddings=8)
T5 = dict(d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, vocab_size=12, decoder_start_token_id=0)


def fill(model):
    """Random values everywhere a fresh adapter has zeros, or the same head as every other."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.copy_(torch.randn_like(value) / 2)
    return model


def save(name, model, config, **options):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    fill(get_peft_model(model, config)).save_pretrained(folder, **options)
    for left in folder.iterdir():
        if left.name not in ("adapter_config.json", "adapter_model.safetensors"):
            left.unlink()
    path = folder / "adapter_config.json"
    data = json.loads(path.read_text())
    for key in ("target_modules", "target_parameters"):
        if isinstance(data.get(key), list):
            data[key] = sorted(data[key])  # a set: its order is not the same in two runs
    path.write_text(json.dumps(data, indent=2, sort_keys=True))
    print(name, data["modules_to_save"], sorted(load_file(folder / "adapter_model.safetensors")))


def lora(task, targets, **options):
    return LoraConfig(task_type=task, r=2, lora_alpha=4, target_modules=targets, **options)


def old():
    torch.manual_seed(1)
    base = LlamaForCausalLM(LlamaConfig(**LLAMA))
    base.save_pretrained(HERE / "llama")
    with_head = LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=LABELS))
    with_head.model.load_state_dict(base.model.state_dict())
    with_head.save_pretrained(HERE / "llama-with-head")
    save("llama-seq-cls", with_head, lora("SEQ_CLS", ["q_proj"]))
    save("bert-token-cls", BertForTokenClassification(BertConfig(**BERT, num_labels=LABELS)),
         lora("TOKEN_CLS", ["query", "value"]))
    save("distilbert-question-ans", DistilBertForQuestionAnswering(DistilBertConfig(**DISTILBERT)),
         lora("QUESTION_ANS", ["q_lin"]))
    save("distilbert-seq-cls", DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)),
         lora("SEQ_CLS", ["q_lin"]))
    save("t5", T5ForConditionalGeneration(T5Config(**T5)), lora("SEQ_2_SEQ_LM", ["q"]))
    # bias="all" saves what a wrapped head consists of: its bias before, after, and under its own name
    save("bert-all-biases", BertForTokenClassification(BertConfig(**BERT, num_labels=LABELS)),
         lora("TOKEN_CLS", ["query"], bias="all"))


def v4():
    model = MixtralForSequenceClassification(MixtralConfig(**MIXTRAL, num_labels=LABELS))
    model.config.save_pretrained(HERE / "mixtral")
    save("mixtral-seq-cls-v4", model, lora("SEQ_CLS", ["q_proj", "w1", "w2", "w3"]))


def v5():
    head = LlamaForSequenceClassification.from_pretrained(HERE / "llama-with-head")
    save("llama-seq-cls-new", head, lora("SEQ_CLS", ["q_proj"]))
    # What the file of PEFT 0.10 gives on a base that has no head
    base = AutoModelForSequenceClassification.from_pretrained(HERE / "llama", num_labels=LABELS)
    merged = PeftModel.from_pretrained(base, HERE / "llama-seq-cls").merge_and_unload()
    merged.save_pretrained(HERE / "llama-merged")
    print("merged", sorted(merged.state_dict()))
    torch.manual_seed(2)
    mixtral = MixtralForSequenceClassification(MixtralConfig(**MIXTRAL, num_labels=LABELS))
    loaded = PeftModel.from_pretrained(mixtral, HERE / "mixtral-seq-cls-v4", is_trainable=True)
    loaded.save_pretrained(HERE / "mixtral-seq-cls-v5")
    (HERE / "mixtral-seq-cls-v5" / "README.md").unlink()
    print("v5", json.loads((HERE / "mixtral-seq-cls-v5" / "adapter_config.json").read_text())["modules_to_save"],
          sorted(load_file(HERE / "mixtral-seq-cls-v5" / "adapter_model.safetensors")))
    # save_embedding_layers on an embedding that is saved anyway: all parts of PEFT's wrapper are in the file
    save("llama-saved-embedding", LlamaForCausalLM.from_pretrained(HERE / "llama"),
         lora("CAUSAL_LM", ["q_proj"], modules_to_save=["embed_tokens"]), save_embedding_layers=True)


{"old": old, "v4": v4, "v5": v5}[sys.argv[1]]()
