"""Factors as views of the file."""
import numpy
import pytest

import peft_cpp
import support


def test_views_of_every_layout(adapter, fused, tmp_path):
    tensors, config = support.mixtral()
    expected = {}
    for name, a in tensors.items():
        if "lora_A" in name:
            module = name[len("base_model.model."):].replace(".lora_A.weight", "")
            expected[module] = support.delta(a, tensors[name.replace("lora_A", "lora_B")], 5 / 3)
    parts = {"w1": "gate", "w2": "down", "w3": "up"}
    for folder in (adapter, fused):
        factors = peft_cpp.read_factors(folder, family="mixtral")
        assert len(factors) == len(expected)
        seen = set()
        for site, a, b, scale in factors:
            assert not a.flags.writeable and a.shape[0] == b.shape[1] == 3
            head, _, tail = site.rpartition(".")
            module = f"{head}.{dict((v, k) for k, v in parts.items()).get(tail, tail)}"
            module = module.replace(".mlp.experts.", ".block_sparse_moe.experts.")
            seen.add(module)
            assert numpy.array_equal(support.delta(a, b, scale), expected[module])
            assert numpy.allclose(factors.to_delta(site), expected[module], rtol=1e-14, atol=1e-14)
        assert seen == set(expected)
    assert factors.layout == "peft-fused"


def test_a_sequence(adapter):
    factors = peft_cpp.read_factors(adapter, family="mixtral")
    first = factors[0]
    assert factors[first.site].site == first.site == factors.sites()[0]
    assert factors[-1].site == factors[len(factors) - 1].site
    assert [f.site for f in factors[2:5]] == factors.sites()[2:5]
    with pytest.raises(IndexError):
        factors[len(factors)]
    with pytest.raises(KeyError):
        factors["nowhere"]
    with pytest.raises(KeyError):
        factors.to_delta("nowhere")
    expert = next(f for f in factors if f.expert == 7 and f.projection == "up")
    assert expert.module.endswith("experts") and expert.kind == "linear" and expert.rank == 3
    assert "scale" in repr(expert) and "peft-per-expert" in repr(factors)


def test_views_outlive_the_list(adapter):
    factors = peft_cpp.read_factors(adapter, family="mixtral")
    a = factors[0].A
    expected = a.copy()
    del factors
    assert numpy.array_equal(a, expected)


def test_bf16_with_and_without_ml_dtypes(tmp_path, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    tensors, config = support.mixtral()
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    folder = support.save(tmp_path / "bf16", tensors, config)
    factor = peft_cpp.read_factors(folder, family="mixtral")[0]
    assert factor.A.dtype == ml_dtypes.bfloat16 and factor.dtype == "BF16"
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    bits = peft_cpp.read_factors(folder, family="mixtral")[0]
    assert bits.A.dtype == numpy.uint16 and bits.dtype == "BF16"
    assert numpy.array_equal(bits.A, factor.A.view(numpy.uint16))
    assert numpy.array_equal(bits.to_delta(), factor.to_delta())
