#!/usr/bin/env python3
"""Writes the folders of tests/wild: adapters as they lie about in public repositories, small.

    tests/wild/make.py        needs no packages; the tensors are those that the real PEFT wrote to tests/heads and tests/dense

Each folder has the files that a user has, and expect.json: what every verb has to say. [exit code, words that its output contains].
"""
import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
HEADS, DENSE = HERE.parent / "heads", HERE.parent / "dense"
VERBS = ("inspect", "targets", "convert", "verify", "merge", "combine", "resize")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


def read(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


def write(path, names, header, data):
    """A safetensors file with some of another one's tensors."""
    out, body = {"__metadata__": {"format": "pt"}}, b""
    for name in names:
        begin, end = header[name]["data_offsets"]
        out[name] = header[name] | {"data_offsets": [len(body), len(body) + end - begin]}
        body += data[begin:end]
    text = json.dumps(out).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def turned(path, header, data):
    """lora_a and lora_b of MLX-LM: the transposed matrices."""
    out, body = {}, b""
    for name in sorted(n for n in header if "lora_" in n):
        (rows, cols), (begin, end) = header[name]["shape"], header[name]["data_offsets"]
        size = (end - begin) // (rows * cols)
        at = lambda i, j: data[begin + (i * cols + j) * size:][:size]
        key = name.removeprefix("base_model.model.").removesuffix(".weight").replace("lora_A", "lora_a").replace("lora_B", "lora_b")
        out[key] = {"dtype": header[name]["dtype"], "shape": [cols, rows], "data_offsets": [len(body), len(body) + end - begin]}
        body += b"".join(at(i, j) for j in range(cols) for i in range(rows))
    text = json.dumps(out).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class Call:
    def __reduce__(self):
        return (os.system, ("echo a pickle has run code",))


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in entries.items():
            zipped.writestr(zipfile.ZipInfo(name), data)


def state_dict(path, header, data):
    """What torch.save makes of the LoRA tensors (tests/pickle has files of torch itself)."""
    text = lambda t: b"X" + struct.pack("<I", len(t)) + t.encode()
    number = lambda n: b"J" + struct.pack("<i", n)
    entries, body = {"archive/data.pkl": b"", "archive/byteorder": b"little"}, b"\x80\x02}("
    for i, name in enumerate(sorted(n for n in header if "lora_" in n)):
        (rows, cols), (begin, end) = header[name]["shape"], header[name]["data_offsets"]
        assert header[name]["dtype"] == "F32"
        entries[f"archive/data/{i}"] = data[begin:end]
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(i)) + text("cpu") + number(rows * cols) + b"tQ"
        body += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0)
        body += number(rows) + number(cols) + b"\x86" + number(cols) + number(1) + b"\x86\x89ccollections\nOrderedDict\n)RtR"
    entries["archive/data.pkl"] = body + b"u."
    archive(path, entries)


def lora_only(folder):
    """The adapter without its head."""
    header, data = read(HEADS / "llama-seq-cls" / "adapter_model.safetensors")
    write(folder / "adapter_model.safetensors", sorted(n for n in header if "lora_" in n), header, data)


def config(**changes):
    values = json.loads((HEADS / "llama-seq-cls" / "adapter_config.json").read_text()) | {"task_type": "CAUSAL_LM"} | changes
    return json.dumps({key: value for key, value in values.items() if value != "absent"}, indent=2, sort_keys=True)


def new(name, what, base, everywhere, **verbs):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    bad = (2, everywhere[1]) if everywhere[0] != 0 else everywhere  # verify: 1 is for "different"
    verbs.setdefault("verify", bad)
    expect = {"what": what, "base": base, "verbs": {verb: list(verbs.get(verb, everywhere)) for verb in VERBS}}
    (folder / "expect.json").write_text(json.dumps(expect, indent=1) + "\n")
    return folder


def copy(source, folder):
    for path in source.glob("adapter_*"):
        shutil.copyfile(path, folder / path.name)


def main():
    llama = "../../heads/llama"
    right = (0, [])
    copy(HEADS / "llama-seq-cls", new("classification-head", "SEQ_CLS of PEFT 0.10: the file has score.weight, modules_to_save is null",
                                      llama, right, inspect=(0, ["score.weight", "refuses it"]), merge=(0, ["score"])))
    copy(HEADS / "bert-token-cls", new("token-classifier", "TOKEN_CLS on an encoder, without a base", "", right, inspect=(0, ["classifier"]),
                                       targets=(2, ["--base"]), merge=(2, ["--base"])))
    copy(HEADS / "bert-all-biases", new("original-module", "bias = all: the wrapper of the head is in the file with both of its modules", "",
                                        right, inspect=(0, ["original_module"]), convert=(0, ["original_module"]), targets=(2, ["--base"]),
                                        merge=(2, ["--base"])))

    folder = new("pickle-only", "only adapter_model.bin, as torch.save writes it", llama, right)
    (folder / "adapter_config.json").write_text(config())
    state_dict(folder / "adapter_model.bin", *read(HEADS / "llama-seq-cls" / "adapter_model.safetensors"))

    folder = new("pickle-that-runs-code", "adapter_model.bin with a call of os.system", llama, (1, ["E_PICKLE", "posix.system", "safetensors"]),
                 inspect=(1, ["q_proj", "E_PICKLE"]), targets=right)
    (folder / "adapter_config.json").write_text(config())
    archive(folder / "adapter_model.bin", {"archive/data.pkl": pickle.dumps({"x": Call()}, protocol=2)})

    folder = new("lfs-pointer", "a clone without Git LFS: the weights are a pointer", llama, (1, ["Git LFS pointer", "git lfs pull"]),
                 inspect=(1, ["q_proj", "Git LFS pointer"]), targets=right)
    (folder / "adapter_config.json").write_text(config())
    (folder / "adapter_model.safetensors").write_text(POINTER)

    folder = new("config-pointer", "the config is a pointer", llama, (1, ["adapter_config.json", "Git LFS pointer", "git lfs pull"]))
    (folder / "adapter_config.json").write_text(POINTER)
    lora_only(folder)

    folder = new("config-alone", "a config and nothing else", llama, (3, ["a config and no weights"]), inspect=(1, ["q_proj", "no weights"]),
                 targets=right)
    (folder / "adapter_config.json").write_text(config())

    folder = new("trainer-checkpoint", "a checkpoint of the Trainer: state of the optimizer beside the adapter", llama, right)
    (folder / "adapter_config.json").write_text(config())
    lora_only(folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"PK")
    (folder / "trainer_state.json").write_text("{}")

    many = ["checkpoint-10, checkpoint-20", "--adapter-name"]
    folder = new("checkpoints", "nothing but checkpoints, each an adapter", llama, (3, many), convert=right, targets=(1, ["adapter_config.json"]))
    for step in (10, 20):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "adapter_config.json").write_text(config())
        lora_only(folder / f"checkpoint-{step}")

    folder = new("mlx", "an adapter of MLX-LM", llama, right, inspect=(0, ["mlx"]), targets=(1, ["mlx-lm"]))
    header, data = read(HEADS / "llama-seq-cls" / "adapter_model.safetensors")
    rank = json.loads(config())["r"]
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "num_layers": 2,
                                                            "lora_parameters": {"rank": rank, "scale": 20.0, "dropout": 0.0}}))
    turned(folder / "adapters.safetensors", header, data)

    folder = new("peft-0.3", "a config of 2023, before patterns and versions", llama, right)
    old = {key: "absent" for key in json.loads(config()) if key not in ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
           "init_lora_weights", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type")}
    (folder / "adapter_config.json").write_text(config(**old, enable_lora=None, merge_weights=False))
    lora_only(folder)

    folder = new("merged-linear", "PEFT 0.2's enable_lora: groups of rows of one weight", llama, (1, ["enable_lora"]), inspect=(0, ["enable_lora"]))
    (folder / "adapter_config.json").write_text(config(**old, enable_lora=[True, False, True], merge_weights=False))
    lora_only(folder)

    copy(DENSE / "distilbert" / "adapter", new("unknown-type", "a model type without a row in the table, with its base", "../../dense/distilbert/base", right))

    folder = new("beside-its-base", "an adapter in the folder of its base's config.json", ".", right, merge=(3, ["model.safetensors"]))
    (folder / "adapter_config.json").write_text(config())
    lora_only(folder)
    shutil.copyfile(HEADS / "llama" / "config.json", folder / "config.json")

    folder = new("sharded", "an adapter in two files and an index", llama, right)
    (folder / "adapter_config.json").write_text(config())
    names = sorted(n for n in header if "lora_" in n)
    files = [f"adapter_model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for file, some in zip(files, (names[:1], names[1:])):
        write(folder / file, some, header, data)
    index = {"metadata": {}, "weight_map": {name: files[min(i, 1)] for i, name in enumerate(names)}}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))

    folder = new("whole-model", "a model where an adapter belongs", llama, (1, ["a whole model", "--base"]), targets=(1, []))
    for path in (HEADS / "llama").glob("*"):
        shutil.copyfile(path, folder / path.name)


if __name__ == "__main__":
    main()
