"""What is converted, where the result is loaded, and whose logits it must give. Read from the golden data.

A Source is an adapter as its producer wrote it, in the environment that reads it right: its logits are the judge.
A Case is an adapter to convert. Its judge is a source (its own, or one that is the same function), the deltas its
producer recorded, or both.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

# convert: adapters that are not converted without a flag (their READMEs: refuse), or not at all.
CONVERT_FLAGS = {"mixtral-extra-keys": ["--ignore-unused"], "mixtral-extra-expert": ["--ignore-unused"]}
CONVERT_REFUSED = {
    "mixtral-dora": "DoRA on experts has no fused form",
    "mixtral-base-weight-inside": "a base weight inside; what is left without it is another function",
    "mixtral-one-tensor-missing": "half a pair",
}
CONVERT_LIMIT = 1e-5
NATIVE_LIMIT = 1e-4
PER_EXPERT_IN_V4 = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3")  # by name of the golden model
FUSED_IN_V4 = ("gpt_oss", "llama4_text", "qwen3_vl_moe", "granitemoe")
# Models that transformers 4 holds in another form than v5, with fused experts in both: the base of the v4 form.
V4_FORMS = {"qwen3_vl_moe-v5": "qwen3_vl_moe-tf4", "granitemoe-v5": "granitemoe-tf4"}
# Older generations: the environment that reads the file; None: neither (PEFT 0.19.0, or 0.18 on transformers 5).
OLDER = {"p0171": "old", "p0181": "old", "p0181t5": None, "p0190": None}
GRANITE_PARAMETERS = [["input_linear.weight", "experts.gate_up_proj"], ["output_linear.weight", "experts.down_proj"]]


@dataclass
class Source:
    id: str
    env: str
    model: str
    adapter: Path
    ids: object  # [[token]] or a safetensors file with input_ids
    golden: Path | None = None  # the producer's own logits on the golden weights, where both are there
    limit: float = CONVERT_LIMIT
    strict: bool = True  # False: its producer too found keys missing, or did not use some


@dataclass
class Case:
    id: str
    adapter: Path
    to: list  # layouts, one conversion each, the next from the output of the one before
    env: str
    model: str
    ids: object
    source: str | None = None
    golden: Path | None = None
    strict: bool = True
    flags: list = field(default_factory=list)
    limit: float = CONVERT_LIMIT
    deltas: Path | None = None
    rename: list = field(default_factory=list)
    migration: bool = True


def read(path):
    return json.loads(path.read_text())


def folders(group):
    """The cases of a group, if the root has it."""
    return sorted(path.parent for path in group.glob("*/case.json"))


def vocabulary(golden, model):
    config = read(golden / "models" / model / "config.json")
    return config.get("vocab_size") or config["text_config"]["vocab_size"]


def some_ids(golden, model):
    """Token ids below those that mean images and the like in the tiny models."""
    size = vocabulary(golden, model) - 12
    return [[(5 * i * i + 3 * i + 7) % size for i in range(9)], [(11 * i + 2) % size for i in range(9)]]


def has_weights(golden, model):
    return any((golden / "models" / model).glob("*.safetensors"))


def convert_cases(golden):
    """v4 adapter -> fused -> the real PEFT on v5; and what the real PEFT wrote on v5 -> per expert -> v4."""
    sources, cases = [], []
    for folder in folders(golden / "convert"):
        if folder.name in CONVERT_REFUSED:
            continue
        case, name, model = read(folder / "case.json"), folder.name, read(folder / "case.json")["model"]
        native = case["producer"]["peft"] == "0.21.2"
        logits = folder / "expected" / ("logits_producer.safetensors" if native else "logits_v4.safetensors")
        common = dict(model=model, ids=case["input_ids"])
        flags = CONVERT_FLAGS.get(name, [])
        load = case["expect"]["v4"].get("load") or {}
        strict = not load.get("missing") and not load.get("unexpected")
        sources.append(Source(f"convert/{name}", "new" if native else "old", adapter=folder / "adapter", strict=strict,
                              golden=logits if logits.exists() and has_weights(golden, model) else None, **common))
        common.update(source=f"convert/{name}", flags=flags)
        if native:
            cases.append(Case(f"convert/{name} to v4", folder / "adapter", ["peft-per-expert"], "old", **common))
            continue
        as_is = case["expect"].get("right", {}).get("real_peft_on_it", {}).get("as_is", {})
        cases.append(Case(f"convert/{name}", folder / "adapter", ["peft-fused"], "new",
                          migration=as_is.get("max_abs_diff", 0) <= CONVERT_LIMIT, **common))
        written = folder / "expected" / "peft_0.21.2"
        if case["expect"]["v5"]["0.21.2"]["outcome"] == "ok" and (written / "adapter_model.safetensors").exists():
            cases.append(Case(f"convert/{name} written by PEFT 0.21.2, to v4", written, ["peft-per-expert"], "old",
                              **common))
        else:
            cases.append(Case(f"convert/{name} and back", folder / "adapter", ["peft-fused", "peft-per-expert"], "old",
                              strict=strict or bool(flags), **common))
    return sources, cases


def native_cases(golden):
    """Fused files of every generation: the newest to what transformers 4 loads, the older ones to the newest."""
    sources, cases = [], []
    for folder in folders(golden / "native"):
        case, name = read(folder / "case.json"), folder.name
        model, generation, expected = case["model"], case["generation"], folder / "expected"
        family = re.split("-", model)[0]
        if family not in PER_EXPERT_IN_V4 + FUSED_IN_V4 + ("qwen3_5_moe", "qwen3_5_moe_text"):
            continue
        logits = expected / "logits.safetensors"
        comparable = logits.exists() and has_weights(golden, model) and case["base_dtype"] == "float32"
        golden_logits = logits if comparable else None
        common = dict(model=model, ids=logits if golden_logits else some_ids(golden, model))
        adapter, id, source = folder / "adapter", f"native/{name}", f"native/{name}"
        if generation == "p0212":
            if "errors" in case["expect"] or "peft_is_wrong" in case or family.startswith("qwen3_5"):
                continue
            sources.append(Source(id, "new", adapter=adapter, golden=golden_logits, limit=NATIVE_LIMIT, **common))
            layout = "peft-per-expert" if family in PER_EXPERT_IN_V4 else "peft-fused-0.18"
            cases.append(Case(f"{id} to v4", adapter, [layout], "old", source=source, limit=NATIVE_LIMIT, **common))
        elif generation in OLDER or model == "granitemoe-tf4":
            right = expected / "right_delta.safetensors"
            deltas = right if right.exists() else expected / "delta.safetensors"
            if generation in OLDER and OLDER[generation] and family in FUSED_IN_V4:
                sources.append(Source(id, "old", adapter=adapter, golden=golden_logits, limit=NATIVE_LIMIT,
                                      model=model.replace("-tf4", "-v5"), ids=common["ids"]))
            else:
                source = None
            common["model"] = model.replace("-tf4", "-v5")
            judge = None if "errors" in case["expect"] else golden_logits
            cases.append(Case(id, adapter, ["peft-fused"], "new", source=source, golden=judge, limit=NATIVE_LIMIT,
                              deltas=deltas, rename=GRANITE_PARAMETERS if family == "granitemoe" else [], **common))
    return sources, cases


def consumer_cases(golden):
    """One true LoRA per family in many forms: what no environment reads is judged by an equal one."""
    sources, cases = [], []
    for family in ("mixtral", "qwen3_moe", "gpt_oss", "qwen3_5_moe"):
        model = f"consumer-{family}"
        for folder in folders(golden / "consumers" / family):
            common = dict(model=model, ids=some_ids(golden, model))
            id, adapter = f"consumers/{family}/{folder.name}", folder / "adapter"
            if folder.name.startswith("perexpert"):
                sources.append(Source(id, "old", adapter=adapter, **common))
                cases.append(Case(id, adapter, ["peft-fused"], "new", source=id, limit=NATIVE_LIMIT, **common))
            elif folder.name in ("fused-0.18.1", "fused-0.19.0"):
                cases.append(Case(id, adapter, ["peft-fused"], "new", source=f"consumers/{family}/fused",
                                  limit=NATIVE_LIMIT, **common))
            else:
                sources.append(Source(id, "new", adapter=adapter, **common))
                if family != "qwen3_5_moe":  # transformers 4 does not have it
                    layout = "peft-fused-0.18" if family == "gpt_oss" else "peft-per-expert"
                    cases.append(Case(f"{id} to v4", adapter, [layout], "old", source=id, limit=NATIVE_LIMIT, **common))
        marked = golden / "consumers" / "unsloth" / family / "grouped-by-expert"
        if marked.exists():
            cases.append(Case(f"consumers/unsloth/{family}/grouped-by-expert", marked / "adapter", ["peft-fused"],
                              "new", source=f"consumers/{family}/fused", limit=NATIVE_LIMIT, **common))
    return sources, cases


QUICK = re.compile(r"convert/[^ ]*-plain|native/(mixtral|gpt_oss|llama4_text|qwen3_vl_moe)[^ ]*-both-"
                   r"|consumers/[^ ]*/(perexpert-tied|fused|fused-0.*)( |$)")


def all_cases(golden, quick=False):
    sources, cases = {}, []
    for group in (convert_cases, native_cases, consumer_cases):
        more_sources, more_cases = group(golden)
        sources.update({s.id: s for s in more_sources})
        cases += more_cases
    if quick:
        cases = [c for c in cases if QUICK.match(c.id)]
    used = {c.source for c in cases}
    return [s for s in sources.values() if s.id in used], cases
