"""What vLLM's LoRA manager binds, on a CPU: its parser, its names, its packing and scaling, over the model's class without weights.

    in_vllm.py MODEL_FOLDER [--mixed]      one process for a model; --mixed: enable_mixed_moe_lora_format

The answer is the update that vLLM would add to each matrix: `layers.L.experts.J.{gate,up,down}`, `layers.L.q_proj`, ..., and
`layers.L.router`. No CPU kernel of vLLM runs LoRA on experts, so there are no logits; where its constructors ask for such a kernel,
they are told that there is one.
"""

from worker import serve  # first: it keeps stdout for answers

import argparse
import os
import re

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1",
                  HF_HUB_OFFLINE="1")

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.layers import fused_moe
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.fused_moe.experts import cpu_moe
from vllm.model_executor.model_loader.utils import initialize_model

# vLLM's gpt-oss knows YaRN alone; nothing here computes a position.
YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}
PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate": ["router"], "router": ["router"]}


def without_kernels():
    """Experts with LoRA are set up as on a GPU, but for what asks for the kernel."""
    cpu_moe.CPUUnquantizedExperts.supports_lora = staticmethod(lambda: True)
    cpu_moe.CPUUnquantizedExperts._supports_grouped_gemm = classmethod(lambda cls, config: (True, None))

    def start(self, layer, slices):
        torch.nn.Module.__init__(self)
        self.base_layer, self.moe_config, self._shared_experts = layer, layer.moe_config, layer._shared_experts
        parallel = self.moe_config.moe_parallel_config
        self.tp_size, self.tp_rank, self.device = parallel.tp_size, parallel.tp_rank, torch.device("cpu")
        self._w13_slices, self.enable_moe_shared_loras = slices, False
        self.n_slices = self.local_num_experts * (slices + 1)

    by_projection = fused_moe.FusedMoEWithLoRA
    by_projection.__init__ = lambda self, layer: start(self, layer, 2 if layer.moe_config.is_act_and_mul else 1)
    by_projection.set_mapping = lambda self, wrapper: None
    fused_moe.FusedMoE3DWithLoRA.__init__ = lambda self, layer: start(self, layer, 1)


def make_manager(folder, mixed):
    options = {"enable_mixed_moe_lora_format": True} if mixed else {}
    if "gpt_oss" in folder:
        options["hf_overrides"] = {"rope_parameters": YARN, "max_position_embeddings": 131072}
    config = EngineArgs(model=folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=2,
                        max_num_batched_tokens=64, enable_lora=True, max_lora_rank=16, max_loras=1, **options).create_engine_config()
    without_kernels()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{20000 + os.getpid() % 20000}", 0, "gloo")
        initialize_model_parallel(1, 1)
        torch.set_default_dtype(torch.float32)
        model = initialize_model(vllm_config=config)
        manager = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), getattr(model, "embedding_modules", {}))
        manager.create_lora_manager(model, config)
    return manager


def product(a, b):
    return (b.double() @ a.double()).float().contiguous().numpy()


def of_experts(module, interleaved):
    """-> (expert, projection, update)"""
    for expert in range(module.w2_lora_a_stacked[0].shape[1]):
        pairs = [product(a[0][expert], b[0][expert]) for a, b in zip(module.w13_lora_a_stacked, module.w13_lora_b_stacked)]
        if len(pairs) == 1:
            both = pairs[0]
            pairs = [both[::2], both[1::2]] if interleaved else [both[:len(both) // 2], both[len(both) // 2:]]
        yield expert, "gate", pairs[0].copy()
        yield expert, "up", pairs[1].copy()
        yield expert, "down", product(module.w2_lora_a_stacked[0][0][expert], module.w2_lora_b_stacked[0][0][expert])


def bound(manager):
    result = {}
    interleaved = type(manager.model).__name__ == "GptOssForCausalLM"
    for name, module in manager.modules.items():
        layer = re.search(r"layers\.\d+", name)
        if not layer or not (hasattr(module, "lora_a_stacked") or isinstance(module, fused_moe.FusedMoEWithLoRA)):
            continue
        if isinstance(module, fused_moe.FusedMoEWithLoRA):
            for expert, projection, update in of_experts(module, interleaved):
                result[f"{layer[0]}.experts.{expert}.{projection}"] = update
            continue
        leaf = name.split(".")[-1]
        pairs = list(zip(module.lora_a_stacked, module.lora_b_stacked))
        parts = PARTS.get(leaf, [leaf] if len(pairs) == 1 else [f"{leaf}.{i}" for i in range(len(pairs))])
        for part, (a, b) in zip(parts, pairs):
            result[f"{layer[0]}.{part}"] = product(a[0][0], b[0][0])
    return result


class Answers:
    def __init__(self, folder, mixed):
        self.worker, self.mixed, self.number = make_manager(folder, mixed), mixed, 0

    def __call__(self, job):
        manager = self.worker._adapter_manager
        manager.remove_all_adapters()
        for module in manager.modules.values():
            module.reset_lora(0)
        self.number += 1
        request = LoRARequest(f"adapter{self.number}", self.number, job["adapter"], is_3d_lora_weight=self.mixed)
        manager.add_adapter(self.worker._load_adapter(request))
        manager.activate_adapter(self.number)
        return bound(manager)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--mixed", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    serve(Answers(arguments.model, arguments.mixed))
