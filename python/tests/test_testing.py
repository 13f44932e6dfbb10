import pytest

import peft_cpp
import peft_cpp.testing
import support

pytestmark = pytest.mark.filterwarnings("ignore::peft_cpp.LoraWarning")


def test_assert_same_function(adapter, fused):
    assert peft_cpp.testing.assert_same_function(adapter, fused, family="mixtral").same
    pair = support.mixtral()
    peft_cpp.testing.assert_same_function(pair, adapter, family="mixtral", tolerance="exact")
    peft_cpp.testing.assert_same_function(peft_cpp.convert_state_dict(*pair, to="peft-fused", family="mixtral"), pair,
                                          family="mixtral")
    other = support.mixtral(seed=9)
    with pytest.raises(AssertionError, match="different: .* differences"):
        peft_cpp.testing.assert_same_function(pair, other, family="mixtral")
