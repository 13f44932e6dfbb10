"""What several tests share: golden folders, small adapters, tensors of a file."""
import json
import os
import pathlib
import struct

import numpy

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = pathlib.Path(os.environ.get("PEFT_GOLDEN", HERE.parents[1] / "tests" / "golden"))
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model.model."

NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "U8": "uint8",
         "BOOL": "bool"}


def numpy_dtype(name):
    if name in NAMES:
        return numpy.dtype(NAMES[name])
    import ml_dtypes

    return numpy.dtype({"BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
                        "F8_E5M2": ml_dtypes.float8_e5m2}[name])


def load(folder):
    """The tensors of an adapter, by numpy alone."""
    data = (pathlib.Path(folder) / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = numpy.frombuffer(data, numpy_dtype(entry["dtype"]), offset=8 + length + begin,
                                         count=-1 if end > begin else 0)[:int(numpy.prod(entry["shape"]))].reshape(
                                             entry["shape"])
    return tensors


def load_config(folder):
    return json.loads((pathlib.Path(folder) / CONFIG).read_text())


def save(folder, tensors, config):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    short = {numpy_dtype(name): name for name in [*NAMES, "BF16"]}
    header, parts, begin = {}, [], 0
    for name, array in tensors.items():
        header[name] = {"dtype": short[array.dtype], "shape": list(array.shape),
                        "data_offsets": [begin, begin + array.nbytes]}
        parts.append(numpy.ascontiguousarray(array).tobytes())
        begin += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def same_bits(a, b):
    return (a.keys() == b.keys() and
            all(a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and
                a[name].tobytes() == b[name].tobytes() for name in a))


EXPERTS, HIDDEN, WIDTH, RANK, LAYERS = 11, 24, 14, 3, 2


def mixtral(dtype="float32", seed=1, rank=RANK):
    """A per-expert adapter of a small Mixtral, and its config. No two of its dimensions are equal."""
    random = numpy.random.default_rng(seed)

    def matrix(rows, cols):
        return random.standard_normal((rows, cols)).astype(dtype)

    tensors = {}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            for name, out, width in (("w1", WIDTH, HIDDEN), ("w2", HIDDEN, WIDTH), ("w3", WIDTH, HIDDEN)):
                module = f"{PREFIX}layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{module}.lora_A.weight"] = matrix(rank, width)
                tensors[f"{module}.lora_B.weight"] = matrix(out, rank)
        module = f"{PREFIX}layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = matrix(rank, HIDDEN)
        tensors[f"{module}.lora_B.weight"] = matrix(HIDDEN, rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 5, "target_modules": ["q_proj", "w1", "w2", "w3"],
              "task_type": "CAUSAL_LM", "base_model_name_or_path": "mixtral", "peft_version": "0.18.1"}
    return tensors, config


def mixtral_base(folder):
    """The config.json of its model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 50, "hidden_size": HIDDEN,
        "intermediate_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": HIDDEN // 4, "num_local_experts": EXPERTS, "num_experts_per_tok": 2}))
    return folder


def delta(a, b, scale):
    return scale * (numpy.asarray(b, "float64") @ numpy.asarray(a, "float64"))
