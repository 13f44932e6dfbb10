#!/usr/bin/env python3
"""Training rows beside TRL's: which token ids a row becomes, and which of them are learnt.

    tools/real_peft/trl_check.py        with build/venvs/trl/bin/python, which tools/real_peft/setup.sh trl makes

A byte-level tokenizer is trained on the spot, with a chat template whose assistant turns are marked by {% generation %}. Rows of every kind (text, prompt
and completion as strings and as messages, messages with and without tools) go through TRL's SFTTrainer and its collator, and through the helper process that
`peft train` starts (src/tokenizer/tokenizer_helper.py), for each of the losses that both know. Exit 1 when ids or labels of a row differ.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

HELPER = pathlib.Path(__file__).resolve().parent.parent.parent / "src/tokenizer/tokenizer_helper.py"
SPECIAL = ["<|pad|>", "<|end|>", "<|turn|>"]
TEMPLATE = """{%- if tools %}{{ '<|turn|>tools\\n' + (tools | tojson) + '<|end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|turn|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] + '<|end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"""
CORPUS = ["The experts of a layer share one router.", "Was kostet das? Zwölf Euro.", "rank, alpha and scale", "2 + 2 = 4, 17 - 9 = 8", "naïve café, 東京"] * 8


def say(role, content):
    return {"role": role, "content": content}


TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]
KINDS = {
    "text": [{"text": text} for text in ("The experts share.", "Zwölf", "already ended<|end|>", "東京 and more")],
    "strings": [{"prompt": "2 + 2 =", "completion": " 4"}, {"prompt": "Was kostet ", "completion": "das? Zwölf Euro."}, {"prompt": "x", "completion": " y<|end|>"}],
    "prompt of messages": [{"prompt": [say("user", "2 + 2?")], "completion": [say("assistant", "4")]},
                           {"prompt": [say("system", "Be brief."), say("user", "Was kostet das?")], "completion": [say("assistant", "Zwölf Euro.")]},
                           {"prompt": [say("user", "a"), say("assistant", "b"), say("user", "c")], "completion": [say("assistant", "d")]}],
    "messages": [{"messages": [say("user", "2 + 2?"), say("assistant", "4"), say("user", "17 - 9?"), say("assistant", "8, naïve")]},
                 {"messages": [say("system", "東京"), say("user", "café?"), say("assistant", "rank, alpha and scale")]}],
    "messages and tools": [{"messages": [say("user", "2 + 2?"), say("assistant", "4")], "tools": TOOLS}],
}
# Of each kind: the losses, as TRL's flags. None: its default.
LOSSES = {
    "text": [dict()],
    "strings": [dict(), dict(completion_only_loss=True), dict(completion_only_loss=False)],
    "prompt of messages": [dict(), dict(completion_only_loss=False), dict(assistant_only_loss=True), dict(completion_only_loss=False, assistant_only_loss=True)],
    "messages": [dict(), dict(assistant_only_loss=True)],
    "messages and tools": [dict(), dict(assistant_only_loss=True)],
}


def make_tokenizer(folder):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|pad|>"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE)


def by_trl(model, tokenizer, rows, loss, folder):
    arguments = SFTConfig(output_dir=str(folder / "out"), max_length=None, report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, **loss)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    result = []
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        result.append((batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
    return result


class Helper:
    def __init__(self, folder):
        self.process = subprocess.Popen([sys.executable, str(HELPER), str(folder / "tokenizer.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if json.loads(self.process.stdout.readline()) != {"ready": True}:
            sys.exit("the helper does not start")

    def ids_and_labels(self, row, loss):
        request = {"row": row, "completion_only": loss.get("completion_only_loss", True), "assistant_only": loss.get("assistant_only_loss", False)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "ids" not in answer:
            sys.exit(f"{row}: {answer}")
        return answer["ids"], [token if learnt else -100 for token, learnt in zip(answer["ids"], answer["learnt"])]


def main():
    checks = failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokenizer = make_tokenizer(folder)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
        helper = Helper(folder)
        for kind, rows in KINDS.items():
            for loss in LOSSES[kind]:
                for row, theirs in zip(rows, by_trl(model, tokenizer, rows, loss, folder), strict=True):
                    ours = helper.ids_and_labels(row, loss)
                    checks += 1
                    if ours != tuple(theirs):
                        failed += 1
                        print(f"{kind}, {loss}: {row}\n  TRL  {theirs}\n  ours {ours}")
        helper.process.stdin.close()
    print(f"rows beside TRL's: {checks} checks, {checks - failed} passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
