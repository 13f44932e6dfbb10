"""``python -m peft_cpp``: the command line, as the program ``peft``."""
import sys

from ._core import run_program

sys.exit(run_program(sys.argv[1:]))
