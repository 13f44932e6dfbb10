"""The stub of the extension module says what the module has: mypy's stubtest does not know nanobind's functions."""
import ast
import pathlib

import peft_cpp
from peft_cpp import _core

STUB = ast.parse((pathlib.Path(peft_cpp.__file__).parent / "_core.pyi").read_text())


def parameters(function):
    """Names of what a function of the stub takes; "" where it is positional alone."""
    return [""] * len(function.args.posonlyargs) + [argument.arg for argument in function.args.args]


def check(name, function, runtime, has_self=False):
    (signature, *_), = runtime.__nb_signature__
    (real,) = ast.parse(signature + ": ...").body
    assert real.name == function.name, name
    said, found = parameters(function), parameters(real)
    if has_self:
        said, found = said[1:], found[1:]
    assert said == found, f"{name}: the stub says {said}, the module has {found}"
    assert (ast.unparse(function.returns) == "None") == (ast.unparse(real.returns) == "None"), name


def test_the_stub_is_complete_and_right():
    names = set()
    for node in STUB.body:
        if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_Progress"):
            names.add(node.target.id)
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
            check(node.name, node, getattr(_core, node.name))
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            kind = getattr(_core, node.name)
            members = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
            public = {name for name in vars(kind) if not name.startswith("_")}
            assert {name for name in members if not name.startswith("_")} == public, node.name
            for name, member in members.items():
                if not member.decorator_list and name in public:
                    check(f"{node.name}.{name}", member, getattr(kind, name), has_self=True)
    there = {name for name in dir(_core) if not (name.startswith("__") and name.endswith("__"))} | {"__version__"}
    assert names == there
