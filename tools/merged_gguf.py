#!/usr/bin/env python3
"""Runs merged GGUF files in the real llama.cpp, and compares their logits with those of base + adapter.

    merged_gguf.py PEFT GOLDEN WORK      PEFT: the program; GOLDEN: a folder with consumers/; WORK: an empty folder

Needs llama-cpp-python, gguf, numpy and safetensors. For each base of GOLDEN/consumers/llama_cpp the script
makes bases of every type that fits its rows (by the gguf package), has PEFT merge a LoRA file of llama.cpp into each,
and makes what is right itself: the dequantised weight + scale * B * A, stored by the gguf package, in a file whose other tensors
are the base's. Exit code 1 when llama.cpp has other logits for a merged file than for that.
"""
import importlib.util
import json
import pathlib
import subprocess
import sys

import gguf
import numpy as np

TYPES = ("F32", "F16", "Q8_0", "Q5_1", "Q4_0", "MXFP4")
KEPT = ("Q8_0", "Q4_0", "MXFP4")  # what --keep-quantized writes again
# The type of tensors that change, by flags; "": their own, quantised ones F16.
FORMS = (("--out-dtype F32", "F32"), ("", ""), ("--out-dtype Q8_0", "Q8_0"), ("--keep-quantized", "keep"))
ALLOWED = 2e-3  # of the largest change of a logit: a sum in fp32 may be a last place of F16 off


def write(path, reader, tensors):
    """A file with the reader's keys and these tensors: name -> (array, type or None)."""
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(reader, kind):
    """The base with its matrices in one type, as far as their rows fill blocks."""
    kind = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    tensors = {}
    for tensor in reader.tensors:
        plain = len(tensor.shape) < 2 or int(tensor.shape[0]) % block or tensor.name.endswith(".bias") or "ffn_gate_inp" in tensor.name or "_norm" in tensor.name \
            or "conv1d" in tensor.name or "ssm_" in tensor.name
        tensors[tensor.name] = (tensor.data, tensor.tensor_type) if plain else (gguf.quants.quantize(tensor.data, kind), kind)
    return tensors


def right(base, lora, form):
    """The base with every tensor that the LoRA changes computed here, and stored by the gguf package."""
    factors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64) for tensor in lora.tensors}
    alpha = float(lora.fields["adapter.lora.alpha"].contents())
    tensors = {}
    for tensor in base.tensors:
        tensors[tensor.name] = (tensor.data, tensor.tensor_type)
        if tensor.name + ".lora_a" not in factors:
            continue
        a, b = factors[tensor.name + ".lora_a"], factors[tensor.name + ".lora_b"]
        delta = alpha / b.shape[-1] * np.matmul(b, a)
        own = tensor.tensor_type.name
        values = (gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64) + delta).astype(np.float32)
        kind = own if own in ("F32", "F16") else "F16"
        if "ffn_gate_inp" in tensor.name:
            kind = own
        elif form == "keep" and own in KEPT:
            kind = own
        elif form not in ("", "keep"):
            kind = form if form == "F32" or int(tensor.shape[0]) % 32 == 0 else "F16"
            if own == "F16" and form == "F32":
                values = values.astype(np.float16).astype(np.float32)  # a plain tensor is rounded to its own type first
        kind = gguf.GGMLQuantizationType[kind]
        tensors[tensor.name] = (gguf.quants.quantize(values, kind), kind)
    return tensors


def far(x, y):
    return max(float(np.abs(a - b).max()) for a, b in zip(x, y))


def main():
    peft, golden, work = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    spec = importlib.util.spec_from_file_location("check", golden.parent / "tools/consumers/llama_cpp/check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)

    def logits(path, ids):
        outs, error, _ = check.run(str(path), None, ids)
        if error:
            sys.exit(f"{path}: {error}")
        return outs
    bad = 0
    for folder in sorted((golden / "consumers/llama_cpp").iterdir()):
        ids = json.loads((golden / "consumers" / folder.name / "ids.json").read_text())
        ids = ids["ids"] if isinstance(ids, dict) else ids
        plain = gguf.GGUFReader(folder / "base.gguf")
        lora = folder / "fused/right.gguf"
        for kind in TYPES:
            base, oracle, merged = work / f"{folder.name}-{kind}.gguf", work / "right.gguf", work / "merged.gguf"
            write(base, plain, quantised(plain, kind))
            reader, factors = gguf.GGUFReader(base), gguf.GGUFReader(lora)
            write(oracle, plain, right(reader, factors, "F32"))
            exact = logits(oracle, ids)
            moved = far(logits(base, ids), exact)
            for flags, form in FORMS:
                write(oracle, plain, right(reader, factors, form))
                command = [peft, "merge", "--base", base, "--adapter", lora, "--out", merged, "--overwrite", "--quiet", *flags.split()]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                got = logits(merged, ids)
                distance = far(got, logits(oracle, ids))
                bad += distance > ALLOWED * moved
                print(f"{folder.name} {kind} {flags or '(default)'}: {'right' if distance <= ALLOWED * moved else 'WRONG'}, {distance:.2g} from base + adapter in "
                      f"these types; {far(got, exact):.2g} from it in F32, which moves logits by {moved:.3g}")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
