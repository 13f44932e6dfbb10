"""The verbs on files: results equal those of the command line, paths of any kind, progress, Ctrl-C."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types
import warnings

import numpy
import pytest

import peft_cpp
import support

MODEL = support.GOLDEN / "models" / "mixtral-small-v4"
MERGE_BASE = support.GOLDEN / "models" / "qwen3_moe-v5"
MERGE_ADAPTER = support.GOLDEN / "merge" / "qwen3_moe-bf16" / "adapter"
GOLDEN_ADAPTER = support.GOLDEN / "convert" / "mixtral-bf16" / "adapter"


def command_line(*arguments):
    run = subprocess.run([sys.executable, "-m", "peft_cpp", *map(str, arguments), "--json"], capture_output=True,
                         text=True)
    return json.loads(run.stdout)


def without_times(report):
    return {key: value for key, value in report.items() if key not in ("seconds", "out", "seconds_estimate")}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", peft_cpp.LoraWarning)
        yield


def test_inspect_is_the_command_lines():
    report = peft_cpp.inspect(GOLDEN_ADAPTER, base=MODEL)
    assert report.to_dict() == command_line("inspect", GOLDEN_ADAPTER, "--base", MODEL)
    assert report and report.layout == "peft-per-expert" and report.num_experts == 11 and report.dtype == "BF16"
    assert report.tensors[0].count > 0 and report.ranks[0].rank == 3
    assert "layout='peft-per-expert'" in repr(report)
    assert "<table>" in report._repr_html_() and "peft-per-expert" in report._repr_html_()
    assert report == peft_cpp.inspect(GOLDEN_ADAPTER, base=MODEL)


def test_html_is_escaped(tmp_path):
    tensors, config = support.mixtral()
    folder = support.save(tmp_path / "<b>", tensors, config)
    assert "<b>/" not in peft_cpp.inspect(folder)._repr_html_().replace("<b>InspectReport", "")


def test_targets_is_the_command_lines():
    report = peft_cpp.targets(GOLDEN_ADAPTER, base=MODEL, generation="v4")
    assert report.to_dict() == command_line("targets", GOLDEN_ADAPTER, "--base", MODEL, "--generation", "v4")
    assert report.targets[0].lora_a[0] == 3


def test_convert_is_the_command_lines(tmp_path):
    report = peft_cpp.convert(GOLDEN_ADAPTER, to="peft-fused", base=MODEL, out=tmp_path / "a")
    other = command_line("convert", GOLDEN_ADAPTER, "--to", "peft-fused", "--base", MODEL, "--out", tmp_path / "b")
    assert without_times(report.to_dict()) == without_times(other)
    assert report.from_ == "peft-per-expert" and report.exactness == "bit-exact" or report.exactness == "value-exact"
    for name in (support.WEIGHTS, support.CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    plan = peft_cpp.convert(GOLDEN_ADAPTER, to="peft-fused", base=MODEL, dry_run=True)
    assert plan.to_dict() == command_line("convert", GOLDEN_ADAPTER, "--to", "peft-fused", "--base", MODEL, "--dry-run")
    assert plan.out is None and plan.plan.files[0].tensors[0].name


def test_config_only():
    report = peft_cpp.convert(GOLDEN_ADAPTER, to="peft-fused", base=MODEL, config_only=True)
    assert report.config["target_parameters"]
    assert report.to_dict() == command_line("convert", GOLDEN_ADAPTER, "--to", "peft-fused", "--base", MODEL,
                                            "--config-only")


def test_doctor_is_the_command_lines():
    report = peft_cpp.doctor(GOLDEN_ADAPTER, for_="vllm", base=MODEL)
    assert report.to_dict() == command_line("doctor", GOLDEN_ADAPTER, "--for", "vllm", "--base", MODEL)
    assert report.engines[0].parts[0].verdict and bool(report) == report.all_right
    assert report.engines[0].title in repr(report)
    assert len(peft_cpp.doctor(GOLDEN_ADAPTER, base=MODEL).engines) > 1
    with pytest.raises(peft_cpp.UsageError):
        peft_cpp.doctor(GOLDEN_ADAPTER, for_="no-such-engine")


def test_convert_for_an_engine(tmp_path):
    report = peft_cpp.convert(GOLDEN_ADAPTER, for_="vllm", base=MODEL, out=tmp_path / "a")
    assert report.for_.startswith("vllm") and report.run and report.to
    with pytest.raises(peft_cpp.UsageError):
        peft_cpp.convert(GOLDEN_ADAPTER, base=MODEL, out=tmp_path / "b")


def test_verify_is_the_command_lines(adapter, fused, tmp_path):
    report = peft_cpp.verify(adapter, fused, family="mixtral")
    assert report and report.same and report.exactness
    assert report.to_dict() == command_line("verify", adapter, fused, "--family", "mixtral")
    tensors, config = support.mixtral()
    name = next(iter(tensors))
    tensors[name] = tensors[name] * 2
    other = support.save(tmp_path / "other", tensors, config)
    report = peft_cpp.verify(adapter, other, family="mixtral")
    assert not report and report.num_differences == 1 and "w1" in report.differences[0].site.replace("gate", "w1")
    assert report.to_dict() == command_line("verify", adapter, other, "--family", "mixtral")
    assert peft_cpp.verify(adapter, fused, family="mixtral", from_=("peft-per-expert", None))


def test_merge_and_verify_merged(tmp_path):
    report = peft_cpp.merge([(MERGE_ADAPTER, 0.5)], base=MERGE_BASE, out=tmp_path / "a")
    other = command_line("merge", "--base", MERGE_BASE, "--adapter", f"{MERGE_ADAPTER}@0.5", "--out", tmp_path / "b")
    assert without_times(report.to_dict()) == without_times(other)
    assert report.tensors[0].delta_norm > 0 and report.adapters[0].weight == 0.5
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert peft_cpp.verify_merged(tmp_path / "a", f"{MERGE_ADAPTER}@0.5", base=MERGE_BASE)
    wrong = peft_cpp.verify_merged(tmp_path / "a", MERGE_ADAPTER, base=MERGE_BASE)
    assert not wrong and wrong.differences[0].factor == pytest.approx(0.5, rel=0.01)
    plan = peft_cpp.merge(MERGE_ADAPTER, base=MERGE_BASE, dry_run=True)
    assert plan.plan.files and plan.seconds_estimate is not None


def test_combine_resize_extract(adapter, tmp_path):
    combined = peft_cpp.combine([(adapter, 0.7), (adapter, -0.2)], type="cat", family="mixtral", out=tmp_path / "cat")
    assert combined.worst < 1e-6 and combined.adapters[1].weight == -0.2
    resized = peft_cpp.resize(tmp_path / "cat", rank=3, family="mixtral", out=tmp_path / "small")
    assert resized.worst < 1e-6 and resized.sites[0].rank == 3
    assert without_times(resized.to_dict()) == without_times(command_line(
        "resize", tmp_path / "cat", "--rank", 3, "--family", "mixtral", "--out", tmp_path / "other"))
    peft_cpp.merge(MERGE_ADAPTER, base=MERGE_BASE, out=tmp_path / "merged")
    extracted = peft_cpp.extract(base=MERGE_BASE, finetuned=tmp_path / "merged", rank=3, out=tmp_path / "lora")
    assert extracted.sites and extracted.out == str(tmp_path / "lora")


def test_paths_of_any_kind(adapter):
    class Path:
        def __fspath__(self):
            return str(adapter)

    layouts = {peft_cpp.inspect(path, family="mixtral").layout
               for path in (adapter, str(adapter), os.fsencode(adapter), Path(), pathlib.PurePath(adapter))}
    assert layouts == {"peft-per-expert"}


def test_names_that_are_no_utf8(adapter, tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.rename(adapter, folder)
    report = peft_cpp.inspect(folder, family="mixtral")
    assert os.fsencode(report.path) == folder
    assert peft_cpp.inspect(os.fsdecode(folder), family="mixtral") == report


def test_warnings_are_pythons(tmp_path):
    tensors, config = support.mixtral()
    tensors["base_model.model.stray.weight"] = numpy.zeros((2, 3), "float32")
    folder = support.save(tmp_path / "stray", tensors, config)
    with pytest.warns(peft_cpp.LoraWarning, match="stray") as caught:
        peft_cpp.convert(folder, to="peft-fused", family="mixtral", ignore_unused=True, out=tmp_path / "out")
    assert caught[0].filename == __file__


def test_progress(adapter, tmp_path, capsys):
    calls = []
    peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "a",
                     progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 0
    peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "b", progress=True)
    assert "convert" in capsys.readouterr().err

    def stop(done, total):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "c", progress=stop)
    with pytest.raises(peft_cpp.UsageError):
        peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "d", progress=3)


def large_adapter(folder):
    """Some hundred MB, so that writing it takes a while."""
    random = numpy.random.default_rng(3)
    tensors, config = {}, {"peft_type": "LORA", "r": 64, "lora_alpha": 64, "target_modules": ["w1", "w2", "w3"]}
    for layer in range(6):
        for expert in range(8):
            for name, out, width in (("w1", 2048, 1024), ("w2", 1024, 2048), ("w3", 2048, 1024)):
                module = f"{support.PREFIX}layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{module}.lora_A.weight"] = random.random((64, width), "float32")
                tensors[f"{module}.lora_B.weight"] = random.random((out, 64), "float32")
    return support.save(folder, tensors, config)


def test_interrupt_leaves_nothing(tmp_path):
    adapter = large_adapter(tmp_path / "large")
    before = sorted(os.listdir(tmp_path))
    timer = threading.Timer(0.15, lambda: os.kill(os.getpid(), signal.SIGINT))
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without it
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            while True:
                peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "out", overwrite=True,
                                 dtype="F64")
                before = sorted({*before, "out"})
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, old)
    assert sorted(os.listdir(tmp_path)) in (before, sorted({*before, "out"}))
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_the_lock_is_released(tmp_path):
    adapter = large_adapter(tmp_path / "large")
    count = 0

    def work():
        peft_cpp.convert(adapter, to="peft-fused", family="mixtral", out=tmp_path / "out", sync=False, threads=1)

    thread = threading.Thread(target=work)
    start = time.perf_counter()
    thread.start()
    longest, last = 0.0, start
    while thread.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last, count = max(longest, now - last), now, count + 1
    assert count > 10
    assert longest < max(0.5, (time.perf_counter() - start) / 2)


def test_the_program(adapter, tmp_path):
    run = subprocess.run([sys.executable, "-m", "peft_cpp", "--version"], capture_output=True, text=True)
    assert run.stdout == f"peft {peft_cpp.__version__}\n"
    environment = {name: value for name, value in os.environ.items() if name != "PEFT_TORCH"}
    run = subprocess.run([sys.executable, "-m", "peft_cpp", "generate", "--base", "x", "--prompt", "y",
                          "--max-new-tokens", "3"],
                         capture_output=True, text=True, env={**environment, "PATH": "/nowhere", "PYTHONPATH": ":".join(sys.path)})
    assert run.returncode == 2 and "RT_PROGRAM" in run.stderr and "hint" in run.stderr


def test_hub_names_are_looked_up_in_the_cache(adapter, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--me--lora" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    os.rename(adapter, snapshot)
    (tmp_path / "hub" / "models--me--lora" / "refs").mkdir()
    (tmp_path / "hub" / "models--me--lora" / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert peft_cpp.inspect("me/lora", family="mixtral").num_experts == 11
    with pytest.raises(peft_cpp.MissingFileError):
        peft_cpp.inspect("me/other")


def test_hub_names_are_fetched_only_when_asked_for(adapter, monkeypatch):
    fetched = []
    monkeypatch.setenv("HF_HUB_CACHE", str(adapter.parent / "no-cache"))
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name: fetched.append(name) or str(adapter)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(peft_cpp.MissingFileError):
        peft_cpp.inspect("me/lora", family="mixtral")
    assert not fetched
    assert peft_cpp.inspect("me/lora", family="mixtral", download=True).num_experts == 11
    assert peft_cpp.verify(adapter, "me/lora", family="mixtral", download=True)
    assert fetched == ["me/lora", "me/lora"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(peft_cpp.UsageError, match="huggingface_hub"):
        peft_cpp.inspect("me/lora", family="mixtral", download=True)
