"""Many calls from many threads, with good and bad input: right answers, and memory that does not grow."""
import gc
import os
import threading
import tracemalloc

import numpy
import pytest

import peft_cpp
import support

THREADS, CALLS = 8, int(os.environ.get("PEFT_STRESS_CALLS", "1000"))


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_all(adapter, expected, calls):
    tensors, config = support.mixtral()
    broken = {name: array for name, array in tensors.items() if "7.w1.lora_B" not in name}
    failures = []

    def work(number):
        try:
            for call in range(calls):
                kind = (number + call) % 5
                if kind == 0:
                    assert peft_cpp.inspect(adapter, family="mixtral").num_experts == support.EXPERTS
                elif kind == 1:
                    new, _ = peft_cpp.convert_state_dict(tensors, config, to="peft-fused", family="mixtral", threads=1)
                    name = sorted(new)[call % len(new)]
                    assert numpy.array_equal(new[name], expected[name])
                elif kind == 2:
                    with pytest.raises(peft_cpp.AdapterError):
                        peft_cpp.convert_state_dict(broken, config, to="peft-fused", family="mixtral", threads=1)
                elif kind == 3:
                    factors = peft_cpp.read_factors(adapter, family="mixtral", threads=1)
                    assert factors[call % len(factors)].to_delta().dtype == numpy.float64
                else:
                    with pytest.raises(peft_cpp.MissingFileError):
                        peft_cpp.inspect("/nowhere/at/all")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


@pytest.mark.filterwarnings("ignore::peft_cpp.LoraWarning")
def test_stress(adapter, fused):
    expected = support.load(fused)
    run_all(adapter, expected, max(20, CALLS // 5))  # warms caches and the allocator's arenas
    gc.collect()
    tracemalloc.start()
    run_all(adapter, expected, 10)
    gc.collect()
    python_before, resident_before = tracemalloc.get_traced_memory()[0], resident()
    tracemalloc.stop()
    run_all(adapter, expected, CALLS)
    tracemalloc.start()
    run_all(adapter, expected, 10)
    gc.collect()
    python_after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert python_after - python_before < 200_000
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # a sanitizer keeps freed memory; it looks for leaks itself
        assert resident() - resident_before < 24 << 20
