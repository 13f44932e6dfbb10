"""LoRA adapters of Mixture-of-Experts models: inspect, convert, verify, merge, combine; on files and in memory.

    import peft_cpp

    print(peft_cpp.inspect("my-lora"))
    peft_cpp.convert("my-lora", to="peft-fused", out="my-lora-v5")
    assert peft_cpp.verify("my-lora", "my-lora-v5")

The functions are those of the program ``peft``, which this package installs, on the same core.
"""
# Submodules are imported when something of theirs is first used: importing the package costs a few milliseconds, and
# neither numpy nor torch is imported before there are tensors.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import nn as nn, testing as testing
    from .errors import *
    from .factors import Factor as Factor, Factors as Factors, read_factors as read_factors
    from .files import *
    from .reports import *
    from .state_dict import (ConvertedStateDict as ConvertedStateDict, convert_state_dict as convert_state_dict,
                             detect as detect)
    from .tables import error_codes as error_codes, layouts as layouts

from ._core import __version__ as __version__

# Where each public name is defined.
_HOMES = {
    "errors": ("AdapterError", "ConfigError", "Error", "FileError", "FileFormatError", "InternalError", "LoraWarning",
               "MissingFileError", "MissingNameError", "ModelError", "OutOfMemoryError", "OutputExistsError",
               "RuntimeMissingError", "UsageError"),
    "files": ("combine", "convert", "doctor", "extract", "inspect", "merge", "resize", "targets", "verify", "verify_merged"),
    "state_dict": ("ConvertedStateDict", "convert_state_dict", "detect"),
    "factors": ("Factor", "Factors", "read_factors"),
    "reports": ("AdapterWeight", "Consumer", "ConversionPlan", "ConvertReport", "Difference", "DoctorPart",
                "DoctorReport", "ElementCounts", "EngineReport",
                "InspectReport", "LowRankReport", "LowRankSite", "MergeReport", "MergedDifference", "MergedTensor",
                "PlannedFile", "PlannedTensor", "RankRow", "Report", "RoundingError", "StateDictReport", "Target",
                "TargetsReport", "TensorRow", "VerifyMergedReport", "VerifyReport"),
    "tables": ("error_codes", "layouts"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted([*_HOME_OF, "__version__", "nn", "testing"])


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in ("nn", "testing"):
        return import_module(f"{__name__}.testing")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _end() -> None:
    import atexit

    from ._core import join_threads

    atexit.register(join_threads)  # work that was interrupted ends before the interpreter does


_end()
