#!/usr/bin/env python3
"""Writes the .bin files of this folder with torch, and listing.json, what torch.load says of them.

    /path/to/python-with-torch tests/pickle/make.py

The files of `refused` are what no reader should run or guess at; they are written and never loaded here.
"""
import collections
import json
import os
import pathlib
import pickle
import zipfile

import torch

HERE = pathlib.Path(__file__).parent
torch.manual_seed(13)


def pair(module, out, width, rank=3, dtype=torch.float32):
    prefix = f"base_model.model.model.layers.0.{module}"
    return {f"{prefix}.lora_A.weight": torch.randn(rank, width).to(dtype), f"{prefix}.lora_B.weight": torch.randn(out, rank).to(dtype)}


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(5, 3, bias=False)


def good():
    yield "plain", pair("self_attn.q_proj", 7, 5), {}
    yield "protocol4", {**pair("self_attn.q_proj", 7, 5, dtype=torch.bfloat16), **pair("self_attn.k_proj", 4, 5, dtype=torch.float16)}, {"pickle_protocol": 4}
    yield "ordered", Module().state_dict(), {}  # with _metadata, which BUILD puts on the OrderedDict
    base = torch.arange(60, dtype=torch.float32)
    # Two tensors of one storage, one of them from its middle, and a parameter.
    yield "shared", {"x": base[6:36].reshape(5, 6), "y": base.reshape(4, 15), "z": torch.nn.Parameter(base[:4])}, {}
    # A type without a storage of its own name, other integers, a scalar, no elements.
    yield "types", {"f8": torch.randn(2, 3).to(torch.float8_e4m3fn), "i8": torch.arange(5, dtype=torch.int8), "u16": torch.tensor([0, 1, 65535], dtype=torch.uint16),
                    "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5, dtype=torch.float64), "none": torch.empty(0, 4)}, {}


class Call:
    """Pickled as a call of os.system: loading this runs code."""

    def __reduce__(self):
        return (os.system, ("echo a pickle has run code",))


def refused():
    yield "call", lambda path: torch.save({"x": Call()}, path), "E_PICKLE", ["system"]
    yield "strided", lambda path: torch.save({"x": torch.randn(4, 6).t()}, path), "PK_TENSOR", ["x", "contiguous"]
    yield "expanded", lambda path: torch.save({"x": torch.ones(1, 3).expand(5, 3)}, path), "PK_TENSOR", ["x"]
    yield "nested", lambda path: torch.save({"state_dict": pair("self_attn.q_proj", 7, 5)}, path), "E_PICKLE", ["state_dict"]
    yield "number", lambda path: torch.save({"x": torch.ones(2), "epoch": 3}, path), "E_PICKLE", ["epoch"]
    yield "sparse", lambda path: torch.save({"x": torch.eye(3).to_sparse()}, path), "E_PICKLE", ["_rebuild_sparse_tensor"]
    yield "module", lambda path: torch.save(torch.nn.Linear(2, 3), path), "E_PICKLE", ["torch.nn"]
    yield "legacy", lambda path: torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False), "E_PICKLE", ["before 1.6"]
    yield "script", lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), str(path)), "E_PICKLE", ["TorchScript"]
    yield "pickled", lambda path: path.write_bytes(pickle.dumps({"x": 1}, protocol=2)), "E_PICKLE", ["no archive"]
    yield "compressed", compressed, "PK_ARCHIVE", ["compressed"]


def compressed(path):
    """The same content in a compressed archive: torch refuses it, too."""
    plain = path.with_name("plain.bin")
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), zipfile.ZIP_DEFLATED)


def described(tensor):
    tensor = tensor.detach().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "bytes": raw.hex()}


def main():
    listing = {"torch": torch.__version__, "good": {}, "refused": {}}
    for name, tensors, options in good():
        path = HERE / f"{name}.bin"
        torch.save(tensors if isinstance(tensors, collections.OrderedDict) else dict(tensors), path, **options)
        loaded = torch.load(path, weights_only=False)  # written three lines above
        listing["good"][path.name] = {key: described(value) for key, value in loaded.items()}
    for name, write, code, words in refused():
        path = HERE / f"{name}.bin"
        write(path)
        listing["refused"][path.name] = {"code": code, "words": words}
    (HERE / "listing.json").write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
