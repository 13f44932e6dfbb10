"""In memory: the bytes of the conversion of files, for every kind of array."""
import json

import numpy
import pytest

import peft_cpp
import support

pytestmark = pytest.mark.filterwarnings("ignore::peft_cpp.LoraWarning")


def test_numpy_equals_the_file(adapter, fused):
    tensors, config = support.mixtral()
    result = peft_cpp.convert_state_dict(tensors, config, to="peft-fused", family="mixtral")
    new, new_config = result
    assert support.same_bits(new, support.load(fused))
    assert new_config == support.load_config(fused)
    assert result.report.from_ == "peft-per-expert" and result.report.tensors_out == len(new)
    back, back_config = peft_cpp.convert_state_dict(new, new_config, to="peft-per-expert", family="mixtral")
    assert support.same_bits(back, tensors)
    assert all(array.flags.writeable and array.flags.c_contiguous for array in back.values())


def test_results_live_on_their_own():
    tensors, config = support.mixtral()
    new, _ = peft_cpp.convert_state_dict(tensors, config, to="peft-fused", family="mixtral")
    name, array = new.popitem()
    expected = array.copy()
    del new, tensors
    for _ in range(3):
        peft_cpp.convert_state_dict(*support.mixtral(seed=2), to="peft-fused", family="mixtral")
    assert numpy.array_equal(array, expected)
    array += 1


@pytest.mark.parametrize("change", [
    lambda a: numpy.asfortranarray(a), lambda a: numpy.repeat(a, 2, axis=1)[:, ::2], lambda a: a[::-1][::-1],
    lambda a: _read_only(a), lambda a: numpy.concatenate([a, a])[:a.shape[0]]])
def test_strided_and_read_only(change, fused):
    tensors, config = support.mixtral()
    new, _ = peft_cpp.convert_state_dict({name: change(a) for name, a in tensors.items()}, config, to="peft-fused",
                                         family="mixtral")
    assert support.same_bits(new, support.load(fused))


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(dtype, tmp_path):
    pytest.importorskip("ml_dtypes")
    tensors, config = support.mixtral()
    kind = support.numpy_dtype({"float64": "F64", "float16": "F16", "bfloat16": "BF16"}[dtype])
    tensors = {name: array.astype(kind) for name, array in tensors.items()}
    adapter = support.save(tmp_path / "in", tensors, config)
    peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "out")
    new, _ = peft_cpp.convert_state_dict(tensors, config, to="peft-fused", family="mixtral")
    assert {array.dtype for array in new.values()} == {kind}
    assert support.same_bits(new, support.load(tmp_path / "out"))
    wide, _ = peft_cpp.convert_state_dict(tensors, config, to="peft-fused", family="mixtral", dtype="F64")
    assert {array.dtype.name for array in wide.values()} == {"float64"}


def test_torch(fused):
    torch = pytest.importorskip("torch")
    tensors, config = support.mixtral()
    given = {name: torch.from_numpy(array) for name, array in tensors.items()}
    new, _ = peft_cpp.convert_state_dict(given, config, to="peft-fused", family="mixtral")
    assert all(isinstance(t, torch.Tensor) and t.is_contiguous() for t in new.values())
    assert support.same_bits({name: t.numpy() for name, t in new.items()}, support.load(fused))
    half = {name: torch.nn.Parameter(t.bfloat16().t().contiguous().t()) for name, t in given.items()}
    new, _ = peft_cpp.convert_state_dict(half, config, to="unsloth-grouped", family="mixtral")
    assert {t.dtype for t in new.values()} == {torch.bfloat16}
    back, _ = peft_cpp.convert_state_dict(new, _, to="peft-per-expert", family="mixtral")
    assert all(torch.equal(back[name], half[name]) for name in half)
    next(iter(new.values())).add_(1)
    with pytest.raises(peft_cpp.UsageError, match="CPU"):
        peft_cpp.convert_state_dict({n: t.to("meta") for n, t in given.items()}, config, to="peft-fused",
                                    family="mixtral")
    with pytest.raises(peft_cpp.UsageError):
        peft_cpp.convert_state_dict({n: t.to_sparse() for n, t in given.items()}, config, to="peft-fused",
                                    family="mixtral")
    with pytest.raises(peft_cpp.UsageError, match="two kinds"):
        peft_cpp.convert_state_dict({**given, "x": numpy.zeros(3)}, config, to="peft-fused", family="mixtral")


class Exchanged:
    """An array of some other library: nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack(fused):
    tensors, config = support.mixtral()
    given = {name: Exchanged(array) for name, array in tensors.items()}
    new, _ = peft_cpp.convert_state_dict(given, config, to="peft-fused", family="mixtral")
    assert support.same_bits({name: numpy.from_dlpack(array) for name, array in new.items()}, support.load(fused))
    strided = {name: Exchanged(numpy.asfortranarray(array)) for name, array in tensors.items()}
    new, _ = peft_cpp.convert_state_dict(strided, config, to="peft-fused", family="mixtral")
    assert support.same_bits({name: numpy.from_dlpack(array) for name, array in new.items()}, support.load(fused))


def test_detect_is_inspect(adapter, fused):
    for folder in (adapter, fused):
        of_file = peft_cpp.inspect(folder, family="mixtral").to_dict()
        in_memory = peft_cpp.detect(support.load(folder), support.load_config(folder), family="mixtral").to_dict()
        assert {**of_file, "path": ""} == {**in_memory, "path": ""}
    report = peft_cpp.detect(support.load(adapter), {**support.load_config(adapter), "r": 4}, family="mixtral")
    assert not report and "LO_RANK" in report.error


def test_configs(adapter, tmp_path, fused):
    tensors, config = support.mixtral()
    by_path, new_config = peft_cpp.convert_state_dict(tensors, adapter, to="peft-fused", family="mixtral")
    assert new_config == support.load_config(fused)
    by_path, new_config = peft_cpp.convert_state_dict(tensors, adapter / support.CONFIG, to="peft-fused", family="mixtral")
    assert new_config == support.load_config(fused)
    config["target_modules"] = set(config["target_modules"])
    _, new_config = peft_cpp.convert_state_dict(tensors, config, to="peft-fused", family="mixtral")
    assert new_config["target_modules"] == support.load_config(fused)["target_modules"]

    class LoraConfig:
        def __init__(self, r=8, lora_alpha=8, target_modules=None, target_parameters=None, rank_pattern=None,
                     alpha_pattern=None, task_type=None, peft_type="LORA"):
            self.__dict__.update(locals())
            del self.self

        def to_dict(self):
            return dict(self.__dict__)

    _, new_config = peft_cpp.convert_state_dict(
        tensors, LoraConfig(r=3, lora_alpha=5, target_modules={"q_proj", "w1", "w2", "w3"}), to="peft-fused",
        family="mixtral")
    assert isinstance(new_config, LoraConfig) and new_config.target_parameters and new_config.r == 3

    for bad in (None, 3, [], {"r": object()}, tmp_path / "nowhere"):
        with pytest.raises(peft_cpp.Error):
            peft_cpp.convert_state_dict(tensors, bad, to="peft-fused", family="mixtral")


@pytest.mark.parametrize("bad, match", [
    (lambda t: [], "mapping"),
    (lambda t: {1: numpy.zeros(3)}, "no text"),
    (lambda t: {**t, "x": 5}, "not an array"),
    (lambda t: {**t, "x": numpy.array(["a"])}, "dtype"),
    (lambda t: {**t, "x": numpy.array([object()])}, "dtype"),
    (lambda t: {**t, "x": numpy.zeros(3, ">f4")}, "byte order"),
    (lambda t: {**t, "": numpy.zeros(3)}, "ST_NAME"),
    (lambda t: {**t, "x" * 5000: numpy.zeros(3)}, "ST_NAME"),
    (lambda t: {**t, "x": numpy.zeros((1,) * 20)}, "dimensions"),
    (lambda t: {**t, "x": numpy.zeros((0, 3), "float32")}, "LO_UNUSED"),
    (lambda t: {n: a[:0] for n, a in t.items()}, "error"),
    (lambda t: {}, "LO_NONE"),
    (lambda t: {n: a.astype("int32") for n, a in t.items()}, "error"),
    (lambda t: {n: a * float("nan") for n, a in t.items()}, "NUM_NONFINITE"),
])
def test_bad_tensors(bad, match):
    tensors, config = support.mixtral()
    with pytest.raises(peft_cpp.Error, match=match) as caught:
        peft_cpp.convert_state_dict(bad(tensors), config, to="peft-fused", family="mixtral")
    assert not isinstance(caught.value, peft_cpp.InternalError)


@pytest.mark.parametrize("layout", peft_cpp.layouts())
def test_every_layout(layout, adapter):
    """Bytes of the file, or a plain refusal."""
    tensors, config = support.mixtral()
    base = support.mixtral_base(adapter.parent / "base")
    try:
        new, _ = peft_cpp.convert_state_dict(tensors, config, to=layout, base=base)
    except peft_cpp.UsageError as error:
        # a file of its own kind, two files, a marker beside the config
        assert layout in ("gguf", "ktransformers", "nemo") and "state dict" in error.problem
        return
    peft_cpp.convert(adapter, to=layout, base=base, out=adapter.parent / "out")
    (weights,) = (adapter.parent / "out").glob("*.safetensors")
    if weights.name != support.WEIGHTS:
        weights.rename(adapter.parent / "out" / support.WEIGHTS)
    assert support.same_bits(new, support.load(adapter.parent / "out"))


def test_progress():
    calls = []
    peft_cpp.convert_state_dict(*support.mixtral(), to="peft-fused", family="mixtral",
                                progress=lambda done, total: calls.append((done, total)))
    assert calls and calls[-1][0] == calls[-1][1]


def test_the_order_of_names_does_not_matter(fused):
    tensors, config = support.mixtral()
    names = list(tensors)
    numpy.random.default_rng(1).shuffle(names)
    new, _ = peft_cpp.convert_state_dict({n: tensors[n].copy() for n in names}, config, to="peft-fused",
                                         family="mixtral")
    assert list(new) == list(support.load(fused)) and support.same_bits(new, support.load(fused))
    assert json.dumps(sorted(new))
