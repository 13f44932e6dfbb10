"""The program ``peft``: the command line of the core. Also ``python -m peft_cpp``."""
import os
import sys

from ._core import run_program

# These are carried out by peft-torch, which the package peft-cpp-runtime has.
RUNTIME_VERBS = ("logits", "generate", "params")


def _find_runtime() -> None:
    """Names peft-torch, and the Python that knows tokenizers, in the environment, unless they are named already."""
    try:
        import peft_cpp_runtime  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return  # the core says what is missing
    os.environ.setdefault("PEFT_PYTHON", sys.executable)
    os.environ["PEFT_TORCH"] = peft_cpp_runtime.program()


def main() -> int:
    if sys.argv[1:] and sys.argv[1] in RUNTIME_VERBS and not os.environ.get("PEFT_TORCH"):
        from .errors import Error

        try:
            _find_runtime()
        except Error as error:
            print(error, file=sys.stderr)
            return 2
    return run_program(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
