"""The program ``peft``: the command line of the core. Also ``python -m peft_cpp``."""
import os
import sys

from ._core import run_program

# These are carried out by peft-torch, which the package peft-cpp-runtime has.
RUNTIME_VERBS = ("logits", "generate", "params", "train")


def _find_runtime() -> None:
    """Names peft-torch, and the Python that knows tokenizers, in the environment, unless they are named already."""
    try:
        import peft_cpp_runtime  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from shutil import which

        from .errors import fail

        if which("peft-torch"):
            return  # a program that was built from source
        raise fail("RT_PROGRAM", "the part of peft that runs models is not installed",
                   hint='pip install "peft-cpp[runtime]" (docs/python.md)') from None
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
