"""Errors: classes, fields, and that no argument does worse than raise one."""
import pickle

import numpy
import pytest

import peft_cpp
import support
from peft_cpp import errors


def test_every_code_has_a_class():
    codes = peft_cpp.error_codes()
    assert len(codes) > 60
    for code in codes:
        kind = errors.class_of(code.name)
        assert issubclass(kind, peft_cpp.Error) and kind is not peft_cpp.Error, code
        assert code.meaning and 1 <= code.exit_code <= 5


def test_fields(adapter, tmp_path):
    tensors, config = support.mixtral()
    name = [n for n in tensors if "lora_B" in n][5]
    del tensors[name]
    folder = support.save(tmp_path / "broken", tensors, config)
    with pytest.raises(peft_cpp.AdapterError) as caught:
        peft_cpp.convert(folder, to="peft-fused", family="mixtral", out=tmp_path / "out")
    error = caught.value
    assert isinstance(error, ValueError) and error.code == "LO_PAIR"
    assert error.file.endswith(support.WEIGHTS) and error.tensor in name.replace("lora_B", "lora_A") and error.problem
    assert str(error).startswith("error[LO_PAIR]")
    assert not (tmp_path / "out").exists()
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and again.to_dict() == error.to_dict() and str(again) == str(error)


@pytest.mark.parametrize("call, kind, base", [
    (lambda a, t: peft_cpp.inspect(t / "nowhere"), peft_cpp.MissingFileError, FileNotFoundError),
    (lambda a, t: peft_cpp.convert(a, to="peft-fused", family="mixtral", out=a), peft_cpp.Error, (OSError, ValueError)),
    (lambda a, t: peft_cpp.convert(a, to="no-such", out=t / "o"), peft_cpp.UsageError, ValueError),
    (lambda a, t: peft_cpp.convert(a, to="peft-fused", family="mixtral"), peft_cpp.UsageError, ValueError),
    (lambda a, t: peft_cpp.convert(a, to="peft-fused", family="no-such", out=t / "o"), peft_cpp.ModelError, ValueError),
    (lambda a, t: peft_cpp.resize(a, rank=0, out=t / "o"), peft_cpp.UsageError, ValueError),
    (lambda a, t: peft_cpp.combine([a], type="magic", out=t / "o"), peft_cpp.UsageError, ValueError),
    (lambda a, t: peft_cpp.merge([a], base=t, mode="magic", out=t / "o"), peft_cpp.UsageError, ValueError),
    (lambda a, t: peft_cpp.read_factors(a, family="mixtral")["nowhere"], peft_cpp.MissingNameError, KeyError),
])
def test_kinds(call, kind, base, adapter, tmp_path):
    with pytest.raises(kind) as caught:
        call(adapter, tmp_path)
    assert isinstance(caught.value, base) and caught.value.code and caught.value.problem


def test_output_exists(adapter, fused):
    with pytest.raises(FileExistsError) as caught:
        peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=fused)
    assert caught.value.code == "OUT_EXISTS"
    peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=fused, overwrite=True)


ODD = [None, True, 0, -1, 2**80, 1.5, float("nan"), "", "x", "\ud800", "\0", b"\xff", [], [None], {}, {"a": 1}, object(), print,
       numpy.zeros((2, 3)), numpy.zeros(0), (1, 2), type, ...]


@pytest.mark.parametrize("name", ["inspect", "targets", "convert", "doctor", "verify", "merge", "combine", "resize", "extract",
                                  "read_factors", "convert_state_dict", "detect"])
def test_any_argument_raises_and_nothing_worse(name, adapter, tmp_path):
    import inspect
    import itertools
    import warnings

    warnings.simplefilter("ignore")
    function = getattr(peft_cpp, name)
    tensors, config = support.mixtral()
    good = {"path": adapter, "adapter": adapter, "a": adapter, "b": adapter, "adapters": [adapter], "base": tmp_path,
            "finetuned": tmp_path, "rank": 2, "to": "peft-fused", "tensors": tensors, "config": config}
    parameters = [p for p in inspect.signature(function).parameters if p != "download"]
    needed = {p.name: good[p.name] for p in inspect.signature(function).parameters.values() if p.default is p.empty}
    expected = (peft_cpp.Error, TypeError, ValueError, OverflowError, UnicodeError, KeyError, OSError)
    if "family" in parameters:
        needed.setdefault("family", "mixtral")
    for parameter, value in itertools.product(parameters, ODD):
        try:
            function(**{**needed, "dry_run": True, parameter: value} if "dry_run" in parameters
                     else {**needed, parameter: value})
        except expected as error:
            assert not isinstance(error, peft_cpp.InternalError), (parameter, value, error)


def test_unknown_keyword():
    from peft_cpp import _core

    with pytest.raises(TypeError, match="nonsense"):
        _core.inspect({"path": "x", "nonsense": 1}, None)
    with pytest.raises(TypeError):
        peft_cpp.inspect()
    with pytest.raises(AttributeError):
        peft_cpp.no_such_name


def test_submodules_are_themselves():
    assert peft_cpp.nn.__name__ == "peft_cpp.nn" and peft_cpp.testing.__name__ == "peft_cpp.testing"


def test_without_numpy(adapter, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "numpy", None)
    with pytest.raises(peft_cpp.UsageError, match="numpy is not installed"):
        peft_cpp.read_factors(adapter, family="mixtral")
    assert peft_cpp.inspect(adapter, family="mixtral")


DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64", "complex128",
          "longdouble", "datetime64[s]", "S3", "U2", "O", "float32,int8", ">f8"]


def spoiled(random, array):
    """Another array: of another type, shape, order, size or place in memory."""
    change = random.integers(9)
    if change == 0:
        return numpy.zeros(array.shape, str(random.choice(DTYPES)))
    if change == 1:
        return array.reshape(random.permutation([*array.shape, 1, 1]))
    if change == 2:
        return array[: random.integers(array.shape[0] + 1), : random.integers(array.shape[1] + 1)]
    if change == 3:
        return array[:: random.choice([-1, 2]), :: random.choice([-1, 3])]
    if change == 4:
        return numpy.broadcast_to(array[0, 0], array.shape)
    if change == 5:
        return array.T
    if change == 6:
        return numpy.lib.stride_tricks.as_strided(array, (3, 2**40), (0, 0))
    if change == 7:
        return numpy.full(array.shape, random.choice([numpy.nan, numpy.inf, -numpy.inf, 0.0, 3e38]), array.dtype)
    return [None, 3, "text", array.tolist(), array.tobytes(), numpy.float32(1), numpy.array(1.0)][random.integers(7)]


def spoiled_config(random, config):
    values = [None, True, -1, 0, 2**70, 1e308, "", "q_proj", "((", [], [1], ["w1"], {}, {"w1": 4}, {"w1": "x"}, {1: 2}, numpy.float32(2)]
    keys = [*config, "rank_pattern", "alpha_pattern", "use_rslora", "target_parameters", "bias", "use_dora", "modules_to_save", "nonsense"]
    return {**config, str(random.choice(keys)): values[random.integers(len(values))]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(40))
def test_any_array_and_config_raises_and_nothing_worse(seed):
    """Random arrays in the place of some, random values in the config: a result or an error of this package."""
    random = numpy.random.default_rng(seed)
    good, config = support.mixtral()
    names = list(good)
    for _ in range(10):
        tensors = dict(good)
        for name in random.choice(names, random.integers(3), replace=False):
            tensors[str(name)] = spoiled(random, good[str(name)])
        changed = spoiled_config(random, config) if random.integers(2) else config
        for call in (lambda: peft_cpp.convert_state_dict(tensors, changed, to="peft-fused", family="mixtral"),
                     lambda: peft_cpp.detect(tensors, changed, family="mixtral")):
            try:
                call()
            except (peft_cpp.Error, MemoryError) as error:
                assert not isinstance(error, peft_cpp.InternalError), error
