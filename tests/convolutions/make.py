"""Writes what PEFT's merge_and_unload makes of convolutions with LoRA on them.

    python tests/convolutions/make.py tests/convolutions

Made with peft 0.21.2, torch 2.13.0 on a CPU. The same seed gives the same files.
"""
import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

KERNELS = {
    "one": (torch.nn.Conv1d, 4, 6, 5),
    "two": (torch.nn.Conv2d, 3, 6, (2, 5)),
    "point": (torch.nn.Conv2d, 20, 24, 1),  # a product of smaller matrices is no chain of fused multiply-adds in torch
    "three": (torch.nn.Conv3d, 2, 4, (2, 3, 2)),
}


def make_model(dtype):
    torch.manual_seed(5)
    encoder = torch.nn.ModuleDict({name: kind(inner, outer, kernel) for name, (kind, inner, outer, kernel) in KERNELS.items()})
    return torch.nn.ModuleDict({"encoder": encoder}).to(dtype)


def adapted(dtype, dora):
    model = get_peft_model(make_model(dtype), LoraConfig(r=3, lora_alpha=4, target_modules=list(KERNELS), use_dora=dora))
    torch.manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape))
    return model


def main(root):

    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        for dora in (False, True):
            folder = root / (short + ("-dora" if dora else ""))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            save_file(make_model(dtype).state_dict(), folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text(json.dumps({"model_type": "a_model_of_kernels"}) + "\n")
            adapted(dtype, dora).save_pretrained(folder / "adapter")
            (folder / "adapter" / "README.md").unlink(missing_ok=True)
            for name, safe in (("merged", False), ("merged_safe", True)):
                merged = adapted(dtype, dora).merge_and_unload(safe_merge=safe)
                save_file({k: v.contiguous() for k, v in merged.state_dict().items()}, folder / f"{name}.safetensors", {"format": "pt"})


main(pathlib.Path(sys.argv[1]))
