import sys
import warnings

import pytest

sys.path.insert(0, __file__.rsplit("/", 1)[0])

import support  # noqa: E402


@pytest.fixture
def adapter(tmp_path):
    """A small per-expert adapter on disk."""
    return support.save(tmp_path / "adapter", *support.mixtral())


@pytest.fixture
def fused(adapter, tmp_path):
    """The same in the fused layout."""
    import peft_cpp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "fused")
    return tmp_path / "fused"
