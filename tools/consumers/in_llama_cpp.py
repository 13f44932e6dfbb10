"""Runs a LoRA in llama.cpp: GGUF files through the C interface that llama-cpp-python wraps."""

from worker import serve  # first: it keeps stdout for answers

import ctypes
from functools import lru_cache

import llama_cpp as c
import numpy as np

messages = []


@c.llama_log_callback
def keep(_level, text, _data):
    messages.append(text.decode("utf-8", "replace"))


def said(what):
    lines = [line for line in "".join(messages).splitlines() if line.strip()]
    return RuntimeError(f"{what}: {lines[-1] if lines else 'no message'}")


@lru_cache(maxsize=None)
def load_model(path):
    options = c.llama_model_default_params()
    options.use_mmap, options.n_gpu_layers = False, 0
    model = c.llama_model_load_from_file(path.encode(), options)
    if not model:
        raise said("model")
    return model


def new_context(model):
    options = c.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 256
    options.n_threads = options.n_threads_batch = 1
    options.type_k = options.type_v = 0  # F32: other caches round
    options.flash_attn_type = 0
    context = c.llama_init_from_model(model, options)
    if not context:
        raise said("context")
    return context


def logits_of(context, model, tokens):
    width = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    try:
        if c.llama_decode(context, batch):
            raise said("decode")
        rows = [np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (width,)).copy() for i in range(len(tokens))]
    finally:
        c.llama_batch_free(batch)
    return np.stack(rows)


def answer(job):
    messages.clear()
    model = load_model(job["model"])
    adapter = None
    if job["adapter"]:
        adapter = c.llama_adapter_lora_init(model, job["adapter"].encode())
        if not adapter:
            raise said("adapter")
    result = {}
    for number, tokens in enumerate(job["ids"]):
        context = new_context(model)
        if adapter and c.llama_set_adapters_lora(
                context, (c.llama_adapter_lora_p_ctypes * 1)(adapter), 1, (ctypes.c_float * 1)(1)):
            raise said("set adapter")
        result[f"logits.{number}"] = logits_of(context, model, tokens)
        c.llama_free(context)
    if adapter:
        c.llama_adapter_lora_free(adapter)
    return result


c.llama_log_set(keep, ctypes.c_void_p(0))
c.llama_backend_init()
serve(answer)
