"""Integers that remember how they were made, so that the shape of a weight tells its formula.

A config is filled with Symbols instead of plain numbers; what the real model class computes from them keeps the
expression, and the tensor that is made of them too. torch.empty and its like are wrapped for that.
"""
import builtins
import math
import re

import torch

ATOM = re.compile(r"[\w.\[\]]+")


def text_of(x):
    return x.text if isinstance(x, (Symbol, Real)) else repr(x)


def wrapped(x):
    t = text_of(x)
    return t if ATOM.fullmatch(t) else f"({t})"


def combine(op, a, b, value):
    if op in "+-" and text_of(b) == "0":
        return make(value, text_of(a))
    if op == "+" and text_of(a) == "0":
        return make(value, text_of(b))
    if op == "*" and "1" in (text_of(a), text_of(b)):
        return make(value, text_of(b) if text_of(a) == "1" else text_of(a))
    if op in ("//", "/") and text_of(b) == "1":
        return make(value, text_of(a))
    if op == "//" and text_of(a) == text_of(b):
        return 1
    left = text_of(a) if op == "+" else wrapped(a)
    return make(value, f"{left} {op} {wrapped(b)}")


def make(value, text):
    if isinstance(value, bool) or value is NotImplemented:
        return value
    if isinstance(value, float):
        return Real(value, text)
    return Symbol(value, text) if isinstance(value, int) else value


def operators(base):
    def add(name, op):
        plain = getattr(base, f"__{name}__")
        swapped = getattr(base, f"__r{name}__")

        def forward(self, other):
            value = plain(self, other)
            if value is NotImplemented and isinstance(other, (int, float)):
                value = getattr(float, f"__{name}__")(float(self), float(other))
            return value if value is NotImplemented else combine(op, self, other, value)

        def backward(self, other):
            value = swapped(self, other)
            if value is NotImplemented and isinstance(other, (int, float)):
                value = getattr(float, f"__r{name}__")(float(self), float(other))
            return value if value is NotImplemented else combine(op, other, self, value)
        return {f"__{name}__": forward, f"__r{name}__": backward}
    methods = {}
    for name, op in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//"), ("mod", "%"), ("truediv", "/")):
        methods |= add(name, op)
    return methods


class Symbol(int):
    def __new__(cls, value, text):
        self = int.__new__(cls, value)
        self.text = text
        return self

    def __deepcopy__(self, memo):
        return self

    def __copy__(self):
        return self

    def __reduce__(self):
        return (Symbol, (int(self), self.text))

    def __int__(self):
        return self

    def __round__(self, *a):
        return self

    def __pow__(self, other, *m):
        value = int.__pow__(int(self), other, *m)
        return make(value, f"{wrapped(self)} * {wrapped(self)}") if type(other) is int and other == 2 and not m else value


class Real(float):
    def __new__(cls, value, text):
        self = float.__new__(cls, value)
        self.text = text
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return (Real, (float(self), self.text))

    def __ceil__(self):
        return Symbol(math.ceil(float(self)), ceiling(self.text))

    def __floor__(self):
        return Symbol(math.floor(float(self)), f"int({self.text})")

    def __trunc__(self):
        return Symbol(math.trunc(float(self)), f"int({self.text})")

    def __round__(self, *a):
        return Symbol(round(float(self)), f"round({self.text})") if not a else round(float(self), *a)


def ceiling(text):
    return f"ceil({text})"


for cls, base in ((Symbol, int), (Real, float)):
    for key, method in operators(base).items():
        setattr(cls, key, method)


class _IntMeta(type):
    def __instancecheck__(cls, x):
        return isinstance(x, int)

    def __subclasscheck__(cls, x):
        return issubclass(x, int)


class SymbolicInt(metaclass=_IntMeta):
    """Stands for `int` in the modules of transformers: int(x) keeps the formula of x."""
    def __new__(cls, x=0, *rest):
        if isinstance(x, Symbol):
            return x
        if isinstance(x, Real):
            return Symbol(builtins.int(float(x)), f"int({x.text})")
        return builtins.int(x, *rest)


def plain(x):
    """The value without formulas."""
    if isinstance(x, Symbol):
        return int.__add__(x, 0)
    if isinstance(x, Real):
        return float.__add__(x, 0.0)
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return x


def sizes_of(args, kw):
    size = kw.get("size", args)
    if len(size) == 1 and isinstance(size[0], (tuple, list, torch.Size)):
        size = size[0]
    return list(size) if all(isinstance(s, int) for s in size) else None


def remember(function, first=0):
    def made(*args, **kw):
        formulas = sizes_of(args[:1] if first else args, kw)
        tensor = function(*plain_args(args), **{k: (plain_args(v) if isinstance(v, (tuple, list)) else plain(v) if isinstance(v, int) else v) for k, v in kw.items()})
        if formulas is not None and len(formulas) == tensor.dim():
            tensor.formulas = [text_of(f) for f in formulas]
        return tensor
    return made


def plain_args(args):
    return tuple(plain_args(a) if isinstance(a, tuple) else plain(a) if isinstance(a, (int, float, list)) and not isinstance(a, bool) else a for a in args)


def install():
    """Wraps torch; once per process."""
    from torch.utils._device import _device_constructors
    _device_constructors()  # a cached set of the functions that `with torch.device` redirects: it has to hold the real ones
    for name in ("empty", "zeros", "ones", "randn", "rand"):
        setattr(torch, name, remember(getattr(torch, name)))
    torch.full = remember(torch.full, first=1)
    new = torch.nn.Parameter.__new__

    def parameter(cls, data=None, requires_grad=True, **kw):
        result = new(cls, data, requires_grad, **kw)
        if hasattr(data, "formulas"):
            result.formulas = data.formulas
        return result
    torch.nn.Parameter.__new__ = parameter


def patch_module(module):
    if not hasattr(module, "int") and module.__name__.startswith("transformers."):
        module.int = SymbolicInt
