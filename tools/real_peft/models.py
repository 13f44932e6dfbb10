"""Tiny base models for the environment this runs in: the golden ones, or made from their config.json.

A golden model folder holds config.json and, outside the committed selection, weights. Where weights are missing, or
where transformers 4 cannot read what a v5 model has in memory, the other form is made under `work` by save_pretrained
of the transformers generation that wrote the config; both generations read that form.
"""

import copy
import json
import re
import zlib

import torch
import transformers
from safetensors.torch import load_file

from cases import V4_FORMS

V5 = int(transformers.__version__.split(".")[0]) >= 5
GRANITE_NAMES = (("experts.gate_up_proj", "input_linear.weight"), ("experts.down_proj", "output_linear.weight"),
                 (".router.weight", ".router.layer.weight"))


def written_by_v5(config):
    return not config.get("transformers_version", "5").startswith("4.")


def as_v4_config(config):
    """The same config with the names transformers 4 reads; it ignores the new ones without a word."""
    config = {k: as_v4_config(v) if k.endswith("_config") and isinstance(v, dict) else v for k, v in config.items()}
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        config["rope_theta"] = rope["rope_theta"]
        rest = {k: v for k, v in rope.items() if k != "rope_theta"}
        config["rope_scaling"] = rest if set(rest) - {"rope_type"} else None
    if "num_local_experts" in config and config["model_type"].startswith("qwen"):
        config["num_experts"] = config["num_local_experts"]
    return config


def fill(model):
    """Weights that tell: wide routers, norms near one, nothing left at zero. Seeded by name."""
    state = list(model.named_parameters()) + [(n, b) for n, b in model.named_buffers() if n in model.state_dict()]
    for name, tensor in state:
        if not tensor.is_floating_point() or name.endswith("A_log"):
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        with torch.no_grad():
            if re.search(r"norm\d?\.weight$", name):
                tensor.copy_(1 + 0.1 * noise)
            elif re.search(r"(gate|router(\.layer)?)\.weight$", name):
                tensor.copy_(0.6 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(0.1 * noise)
            else:
                tensor.copy_(0.2 * noise)


class Models:
    def __init__(self, golden, work):
        self.golden, self.work = golden / "models", work / "models"
        self.loaded = {}

    def get(self, name):
        """A fresh copy: an adapter changes the model it is put on."""
        if name not in self.loaded:
            self.loaded[name] = self._load(name).to(torch.float32).eval()
        model = copy.deepcopy(self.loaded[name])
        model.name_or_path = model.config._name_or_path = f"tiny/{name}"
        return model

    def make(self, name):
        """Writes the form that both generations read. Called where the config was written."""
        if (self.work / name / "config.json").exists():
            return
        if self._has_weights(name):
            model = self._load(name)
        else:
            model = self._new(self._config(name))
            fill(model)
        model.save_pretrained(self.work / name)

    def _has_weights(self, name):
        return any((self.golden / name).glob("*.safetensors"))

    def merged(self, folder):
        """A whole model that peft wrote, read as any checkpoint is."""
        config = self._read_config(folder / "config.json")
        return self._from_pretrained(folder, config).to(torch.float32).eval()

    def _config(self, name):
        return self._read_config(self.golden / name / "config.json")

    def _read_config(self, file):
        config = json.loads(file.read_text())
        if written_by_v5(config) and not V5:
            config = as_v4_config(config)
        config.pop("dtype", None)
        config.pop("torch_dtype", None)
        config.pop("transformers_version", None)
        made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
        for part in (made, getattr(made, "text_config", None), getattr(made, "vision_config", None)):
            if part is None:
                continue
            part._attn_implementation = "eager"
            if V5:
                part._experts_implementation = "eager"
        return made

    def _class(self, config):
        return getattr(transformers, config.architectures[0])

    def _new(self, config):
        torch.manual_seed(0)
        return self._class(config)(config)

    def _load(self, name):
        if not V5 and name in V4_FORMS:
            return self._load_v4_form(name)
        config = self._config(name)
        v5_only = written_by_v5(json.loads((self.golden / name / "config.json").read_text())) and not V5
        folder = self.golden / name if self._has_weights(name) and not v5_only else self.work / name
        model = self._new(config)
        tensors = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
        if not tensors:
            raise RuntimeError(f"no weights in {folder}")
        if {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in model.state_dict().items()}:
            model.load_state_dict(tensors)
            return model
        return self._from_pretrained(folder, config)

    def _from_pretrained(self, folder, config):
        extra = {"experts_implementation": "eager"} if V5 else {}
        model, info = self._class(config).from_pretrained(
            folder, config=config, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **extra)
        wrong = {k: v for k, v in info.items() if k in ("missing_keys", "unexpected_keys", "mismatched_keys") and v}
        if wrong:
            raise RuntimeError(f"the base {folder} does not fit its model: {wrong}")
        return model

    def _load_v4_form(self, name):
        """Experts as transformers 4 stores them: other names, or [E, in, out] where v5 has [E, out, in]."""
        model = self._new(self._config(V4_FORMS[name]))
        folder = self.golden / name if self._has_weights(name) else self.work / name
        tensors = load_file(folder / "model.safetensors")
        if name.startswith("granitemoe"):
            for new, old in GRANITE_NAMES:
                tensors = {k.replace(new, old): v for k, v in tensors.items()}
        else:
            tensors = {k: v.transpose(1, 2).contiguous() if ".mlp.experts." in k else v for k, v in tensors.items()}
        model.load_state_dict(tensors)
        return model
