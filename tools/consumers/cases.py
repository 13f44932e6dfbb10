"""The adapters of the golden group `consumers`, and what is right for each: logits, and the update of every matrix."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss", "qwen3_5_moe")
ROLES = {"attn": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate", "up"), "down": ("down",), "router": ("router",)}


@dataclass
class Case:
    id: str
    family: str
    adapter: Path  # what a user has: a folder, or a GGUF file
    folder: Path
    peft: Path | None  # the case of the same function in PEFT's form; None: Tinker's, which have a truth of their own
    logits: Path
    flags: list

    def ids(self, root):
        return read(root / "consumers" / self.family / "ids.json")["ids"]


def read(path):
    return json.loads(path.read_text())


def peft_cases(root, family):
    for path in sorted((root / "consumers" / family).glob("*/case.json")):
        folder = path.parent
        yield Case(f"{family}/{folder.name}", family, folder / "adapter", folder, folder, folder / "expected/right-logits.safetensors", [])


def named_case(root, text):
    """The PEFT case that `what` of a case.json names: "case fused-router of gpt_oss", 'the case "fused" of gpt_oss'."""
    name, family = re.search(r'case "?([\w.-]+)"? of (\w+)', text).groups()
    return root / "consumers" / family / name


def program_cases(root, program, family):
    for path in sorted((root / "consumers" / program / family).glob("*/case.json")):
        folder, case = path.parent, read(path)
        adapter, flags, peft = folder / "adapter", [], None
        if program == "llama_cpp":
            adapter, peft = folder / "right.gguf", root / "consumers" / case["peft_adapter"]
        elif program != "tinker":
            peft = named_case(root, case["what"])
        if folder.name.endswith("-unmarked"):
            flags = ["--b-packing", "grouped-by-expert"]
        logits = (peft or folder) / "expected/right-logits.safetensors"
        if program == "mlx_lm":  # some have fewer layers or modules than PEFT's
            own = folder.parent / ("experts-attn-tied" if folder.name == "old-2d" else folder.name)
            logits = own / "expected/mlx-logits.safetensors"
        yield Case(f"{program}/{family}/{folder.name}", family, adapter, folder, peft, logits, flags)


def all_cases(root):
    for family in FAMILIES:
        yield from peft_cases(root, family)
        for program in ("llama_cpp", "mlx_lm", "tinker", "unsloth"):
            yield from program_cases(root, program, family)


def updates(case, root):
    """Right updates by `layers.L...`, scale included."""
    if case.peft is None:
        return updates_of_cookbook(case.folder / "expected/peft")
    own = read(case.folder / "case.json")
    about = read(case.peft / "case.json") if case.peft.exists() else {}  # gpt-oss has no per-expert file in PEFT
    targets = re.search(r"targets \[(.*)\]", about.get("what", "targets ['attn', 'gate_up', 'down']")).group(1)
    roles = {name for role in re.findall(r"'(\w+)'", targets) for name in ROLES[role]}
    truth = load_file(root / "consumers" / case.family / f"truth-{about.get('truth') or own['truth']}.safetensors")
    result = {}
    for key in truth:
        place, side = key.rsplit(".", 1)
        role = place.split(".")[-1]
        if side != "A" or role not in roles or int(place.split(".")[1]) not in own.get("layers", [0, 1]):
            continue
        kind = "attn" if role in ROLES["attn"] else role
        rank, alpha = own["dims"]["r"], own["dims"]["alpha"]
        rank, scale = about.get("ranks", {}).get(kind, rank), about.get("scale", {}).get(kind, alpha / rank)
        a, b = truth[key][:rank].astype(np.float64), truth[place + ".B"][:, :rank].astype(np.float64)
        result[place] = scale * b @ a
    return result


def updates_of_cookbook(folder):
    config, tensors = read(folder / "adapter_config.json"), load_file(folder / "adapter_model.safetensors")
    result = {}
    for key in tensors:
        match = re.search(r"(layers\.\d+)\.(?:mlp\.(experts\.\d+\.\w+)_proj|.*?(\w+))\.lora_A\.weight$", key)
        if not match:
            continue
        a, b = tensors[key].astype(np.float64), tensors[key.replace("lora_A", "lora_B")].astype(np.float64)
        result[f"{match[1]}.{match[2] or match[3]}"] = config["lora_alpha"] / config["r"] * b @ a
    return result
