"""Every recipe of docs/python.md runs as it stands there."""
import os
import pathlib
import re
import shutil

import pytest

import peft_cpp
import support

PAGE = pathlib.Path(os.environ.get("PEFT_DOCS", support.HERE.parents[1] / "docs")) / "python.md"
BLOCKS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_ten():
    assert len(BLOCKS) >= 10


@pytest.mark.filterwarnings("ignore::peft_cpp.LoraWarning")
@pytest.mark.parametrize("code", [block[1] for block in BLOCKS], ids=[block[0] for block in BLOCKS])
def test_recipe(code, tmp_path, monkeypatch):
    shutil.copytree(support.GOLDEN / "models" / "qwen3_moe-v5", tmp_path / "base")
    shutil.copytree(support.GOLDEN / "merge" / "qwen3_moe-bf16" / "adapter", tmp_path / "my-lora")
    monkeypatch.chdir(tmp_path)
    pushed = []
    names = {"my_trainer_step": lambda: (support.load("my-lora"), support.load_config("my-lora")),
             "push_to_engine": lambda tensors, config: pushed.append(len(tensors))}
    exec(compile(code, "recipe", "exec"), names)
    assert "push_to_engine" not in code or len(pushed) == 3
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]
    assert peft_cpp.inspect("my-lora", base="base")
