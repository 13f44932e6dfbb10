"""Models that run, with LoRA on them: PEFT's names and behaviour on the core of this repository (docs/runtime.md).

Needs the package peft-cpp-runtime: ``pip install "peft-cpp[runtime]"``. Tensors are torch's own, in and out, without a
copy: the same storage, device and gradients.

    from peft_cpp import nn

    base = nn.load_model("Qwen3-30B-A3B", dtype="bfloat16")
    model = nn.get_peft_model(base, {"r": 8, "target_modules": "all-linear"})
    optimizer = torch.optim.AdamW(model.trainable_parameters())
    model.forward(ids).logits.sum().backward()
"""
from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from typing import NamedTuple

from . import configs
from .errors import LoraWarning, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Union

    Path = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]

__all__ = ["CausalLM", "ForwardOutput", "PeftModel", "get_peft_model", "load_model"]


def _core() -> Any:
    """The extension module of the runtime."""
    try:
        import peft_cpp_runtime  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise fail("RT_PROGRAM", "the package peft-cpp-runtime is not installed",
                   hint='pip install "peft-cpp[runtime]"') from None
    return peft_cpp_runtime.load()


def _warn(messages: Sequence[str], known: int = 0) -> int:
    for message in messages[known:]:
        warnings.warn(message, LoraWarning, stacklevel=3)
    return len(messages)


def _ids(value: Any) -> Any:
    torch = sys.modules["torch"]
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)


def _dtype_name(dtype: Any) -> str:
    return "" if dtype is None else str(dtype).replace("torch.", "")


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


class ForwardOutput(NamedTuple):
    """What a forward pass gives."""

    logits: Any
    """[sequences, tokens, vocabulary]"""
    aux_loss: Any
    """The routers' load balancing loss, a scalar without its coefficient; None unless it was wanted."""


class CausalLM:
    """A causal language model that :func:`load_model` loaded."""

    def __init__(self, core: Any) -> None:
        self._core = core
        _warn(core.warnings())

    def forward(self, ids: Any, mask: Any = None, positions: Any = None, *, logits_to_keep: int = 0,
                want_aux_loss: bool = False) -> ForwardOutput:
        """Runs the model, with gradients where parameters want them. Ids are int64 [sequences, tokens]; the mask has 1 for
        tokens and 0 for padding."""
        return ForwardOutput(*self._core.forward(_ids(ids), mask, positions, logits_to_keep, want_aux_loss))

    __call__ = forward

    def logits(self, ids: Any, mask: Any = None) -> Any:
        """The logits [sequences, tokens, vocabulary], without gradients."""
        return self._core.logits(_ids(ids), mask)

    def generate(self, ids: Any, mask: Any = None, *, max_new_tokens: int = 20, temperature: float = 0.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0, eos_token_ids: Sequence[int] | None = None) -> list[list[int]]:
        """The new tokens of each sequence. Temperature 0 takes the likeliest. Without ``eos_token_ids`` those of the
        folder's generation_config.json end a sequence."""
        return self._core.generate(_ids(ids), mask, self._options(max_new_tokens, temperature, top_k, top_p, seed, eos_token_ids))  # type: ignore[no-any-return]

    def _options(self, max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int,
                 eos_token_ids: Sequence[int] | None) -> Any:
        ends = None if eos_token_ids is None else list(eos_token_ids)
        return _core().generate_options(self._core.folder(), max_new_tokens, temperature, top_k, top_p, seed, ends)

    def named_parameters(self) -> list[tuple[str, Any]]:
        """Full names and tensors in registration order; a tied tensor once."""
        return self._core.parameters()  # type: ignore[no-any-return]

    @property
    def model_type(self) -> str:
        """The model_type of config.json."""
        return self._core.model_type()  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"CausalLM({self.model_type!r}, {self._core.parameter_count()} parameters, {self._core.folder()!r})"


def load_model(folder: Path, *, dtype: Any = None, device: str = "cpu", threads: int = 0,
               check_finite: bool = True) -> CausalLM:
    """Loads a model folder of either transformers generation.

    Args:
        folder: Has config.json and the checkpoint, in one file or many.
        dtype: A torch dtype or its name; what config.json says when not given.
        device: "cpu", "cuda", "cuda:1".
        threads: For loading; 0: all cores.
        check_finite: NaN or infinity in a weight is an error.

    Returns:
        The model.

    Raises:
        ModelError: The model is of a type that does not run here, or its tensors do not fit config.json.
        RuntimeMissingError: peft-cpp-runtime is not installed, or does not fit the torch that is.
        FileError: A file cannot be read.
    """
    return CausalLM(_core().load_model(os.fsdecode(folder), _dtype_name(dtype), device, threads, check_finite))


class PeftModel:
    """A model with adapters, as in PEFT. It holds its base; one base has one PeftModel at a time."""

    def __init__(self, core: Any, base: CausalLM) -> None:
        self._core = core
        self.base = base
        self._warned = _warn(core.warnings())

    @classmethod
    def from_pretrained(cls, base: CausalLM, folder: Path, *, adapter_name: str = "default", is_trainable: bool = False,
                        changed_base: str = "") -> PeftModel:
        """The base with an adapter of any layout. ``changed_base`` ("is_residual", "subtract") is for PiSSA and its like."""
        return cls(_core().from_pretrained(base._core, os.fsdecode(folder), adapter_name, is_trainable, changed_base), base)

    def save_pretrained(self, folder: Path, *, selected_adapters: Sequence[str] = (),
                        path_initial_model_for_weight_conversion: Path = "") -> None:
        """Saves adapters, each in its folder: complete or not at all."""
        self._core.save_pretrained(os.fsdecode(folder), list(selected_adapters),
                                   os.fsdecode(path_initial_model_for_weight_conversion))

    def forward(self, ids: Any, mask: Any = None, positions: Any = None, *, logits_to_keep: int = 0,
                want_aux_loss: bool = False, training: bool = False, adapter_names: Sequence[str] = ()) -> ForwardOutput:
        """As :meth:`CausalLM.forward`; ``training`` turns dropout on, ``adapter_names`` mixes adapters in one batch."""
        return ForwardOutput(*self._core.forward(_ids(ids), mask, positions, logits_to_keep, want_aux_loss, training,
                                                 list(adapter_names)))

    __call__ = forward

    def logits(self, ids: Any, mask: Any = None, *, adapter_names: Sequence[str] = ()) -> Any:
        """The logits [sequences, tokens, vocabulary], without gradients."""
        return self._core.logits(_ids(ids), mask, list(adapter_names))

    def generate(self, ids: Any, mask: Any = None, *, max_new_tokens: int = 20, temperature: float = 0.0, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0, eos_token_ids: Sequence[int] | None = None,
                 adapter_names: Sequence[str] = ()) -> list[list[int]]:
        """As :meth:`CausalLM.generate`."""
        options = self.base._options(max_new_tokens, temperature, top_k, top_p, seed, eos_token_ids)
        return self._core.generate(_ids(ids), mask, options, list(adapter_names))  # type: ignore[no-any-return]

    def load_adapter(self, folder: Path, adapter_name: str, *, is_trainable: bool = False, changed_base: str = "") -> None:
        """Another adapter from a folder; it is not active yet."""
        self._core.load_adapter(os.fsdecode(folder), adapter_name, is_trainable, changed_base)
        self._warned = _warn(self._core.warnings(), self._warned)

    def add_adapter(self, adapter_name: str, config: Any, *, seed: int = 0) -> None:
        """A new adapter; it is not active yet. ``config`` is a dict, a LoraConfig or a path."""
        self._core.add_adapter(adapter_name, configs.read(config)[0], seed)
        self._warned = _warn(self._core.warnings(), self._warned)

    def set_adapter(self, names: str | Sequence[str], *, inference_mode: bool = False) -> None:
        """Makes these the active ones; several add up. They get gradients, all others lose theirs."""
        self._core.set_adapter(_names(names), inference_mode)

    def set_requires_grad(self, names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Gradients of these adapters on or off."""
        self._core.set_requires_grad(_names(names), requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter away."""
        self._core.delete_adapter(adapter_name)

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, *,
                             combination_type: str = "svd", svd_rank: int = 0, density: float = 1.0,
                             majority_sign_method: str = "total", seed: int = 0) -> None:
        """A new adapter of several."""
        self._core.add_weighted_adapter(list(adapters), list(weights), adapter_name, combination_type, svd_rank, density,
                                        majority_sign_method, seed)

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """``with model.disable_adapter():`` runs the base alone."""
        disabled = self._core.disable_adapter()
        try:
            yield
        finally:
            disabled.end()

    def merge_adapter(self, adapter_names: Sequence[str] = (), *, safe_merge: bool = False, keep_base: bool = True) -> None:
        """Adds the active adapters to the weights."""
        self._core.merge_adapter(safe_merge, keep_base, list(adapter_names))

    def unmerge_adapter(self) -> None:
        """Gives the weights back, bit for bit unless ``keep_base`` was false."""
        self._core.unmerge_adapter()

    def merge_and_unload(self, adapter_names: Sequence[str] = (), *, safe_merge: bool = False) -> CausalLM:
        """The base with the adapters in its weights. This object cannot be used afterwards."""
        return CausalLM(self._core.merge_and_unload(safe_merge, list(adapter_names)))

    def unload(self) -> CausalLM:
        """The base as it was. This object cannot be used afterwards."""
        return CausalLM(self._core.unload())

    def state_dict(self, adapter_name: str = "default") -> dict[str, Any]:
        """The tensors of an adapter, by their names in PEFT's file: what ``get_peft_model_state_dict`` gives."""
        return dict(self._core.state_dict(adapter_name))

    def trainable_parameters(self) -> list[Any]:
        """What an optimiser gets. Changing them changes the model: they are its own tensors."""
        return self._core.trainable_parameters()  # type: ignore[no-any-return]

    def get_delta_weight(self, parameter: str, adapter_name: str = "default") -> Any:
        """The scaled update of a base parameter, in its shape."""
        return self._core.get_delta_weight(parameter, adapter_name)

    def peft_config(self, adapter_name: str = "default") -> dict[str, Any]:
        """adapter_config.json of an adapter."""
        return json.loads(self._core.peft_config(adapter_name))  # type: ignore[no-any-return]

    @property
    def adapter_names(self) -> list[str]:
        """All adapters."""
        return self._core.adapter_names()  # type: ignore[no-any-return]

    @property
    def active_adapters(self) -> list[str]:
        """Those that act."""
        return self._core.active_adapters()  # type: ignore[no-any-return]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Trainable parameters, and all."""
        return self._core.get_nb_trainable_parameters()  # type: ignore[no-any-return]

    def print_trainable_parameters(self) -> None:
        """Prints both, as PEFT does."""
        print(self._core.trainable_parameters_line())

    def __repr__(self) -> str:
        return f"PeftModel({self.base!r}, adapters={self.adapter_names}, active={self.active_adapters})"


def get_peft_model(base: CausalLM, config: Any, *, adapter_name: str = "default", seed: int = 0) -> PeftModel:
    """Puts a new adapter on a model.

    Args:
        base: What :func:`load_model` gave.
        config: A dict, a ``LoraConfig`` of PEFT, or a path. Fields that are not there have PEFT's defaults.
        adapter_name: Its name.
        seed: Of the initialisation.

    Returns:
        The model with the adapter, which is active and has gradients.

    Raises:
        ConfigError: A value of the config is not implemented; it is named.
        MissingNameError: The config names a module or parameter that the model lacks.
    """
    return PeftModel(_core().get_peft_model(base._core, configs.read(config)[0], adapter_name, seed), base)
