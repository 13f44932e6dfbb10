# One JSON request a line on standard input, one JSON answer a line on standard output. Argument: a tokenizer.json.
# Embedded in peft-torch (tokenizer.cpp), which starts it.
import sys
sys.path = [folder for folder in sys.path if folder]  # nothing from the current folder
import json
import re
try:
    from tokenizers import Tokenizer
except Exception as error:
    print(json.dumps({"missing": str(error)}), flush=True)
    sys.exit(0)
try:
    tokenizer = Tokenizer.from_file(sys.argv[1])
    tokenizer.no_truncation()
    tokenizer.no_padding()
except BaseException as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(0)


class Chat:
    """The chat template of the folder, and its special tokens."""

    def __init__(self):
        import os
        folder = os.path.dirname(sys.argv[1])
        config = {}
        if os.path.exists(os.path.join(folder, "tokenizer_config.json")):
            with open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8") as file:
                config = json.load(file)
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        plain = lambda token: token["content"] if isinstance(token, dict) else token
        self.special = {name: plain(config[name]) for name in names if config.get(name) is not None}
        template = config.get("chat_template")
        self.templates = {"default": template} if isinstance(template, str) else {t["name"]: t["template"] for t in template or []}
        path = os.path.join(folder, "chat_template.jinja")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.templates = {"default": file.read()}
        self.compiled = {}

    # Marks what {% generation %} surrounds. Both are no characters, so no text has them.
    BEGIN, END = "\ufdd0", "\ufdd1"

    def compile(self, source):
        if source not in self.compiled:
            import datetime
            from jinja2 import nodes
            from jinja2.exceptions import TemplateError
            from jinja2.ext import Extension, loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment

            class Generation(Extension):
                tags = {"generation"}

                def parse(self, parser):
                    line = next(parser.stream).lineno
                    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                    return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

                def mark(self, caller):
                    return Chat.BEGIN + caller() + Chat.END

            def refuse(message):
                raise TemplateError(message)

            def dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
                return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

            environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
            environment.filters["tojson"] = dumps
            environment.globals["raise_exception"] = refuse
            environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
            self.compiled[source] = environment.from_string(source)
        return self.compiled[source]

    def ids(self, row, messages, prompt=False):
        """Token ids of messages, and for each whether {% generation %} marks it (None: the template marks nothing)."""
        if not self.templates:
            raise ValueError("messages need a chat template, and the base has none: chat_template.jinja, or chat_template in tokenizer_config.json")
        tools = row.get("tools")
        source = self.templates.get("tool_use" if tools and "tool_use" in self.templates else "default")
        if source is None:
            raise ValueError("the chat template has no part that is called default")
        given = dict(self.special, messages=messages, tools=tools, documents=None, add_generation_prompt=prompt)
        marked = self.compile(source).render(**dict(given, **row.get("chat_template_kwargs", {})))
        pieces, spans, length = [], [], 0
        for i, piece in enumerate(marked.split(self.BEGIN)):
            inside, _, after = piece.partition(self.END) if i > 0 else ("", "", piece)
            if i > 0:
                spans.append((length, length + len(inside)))
            pieces += [inside, after]
            length += len(inside) + len(after)
        encoding = tokenizer.encode("".join(pieces), add_special_tokens=False)
        learnt = [False] * len(encoding.ids)
        for begin, end in spans:
            if begin == end:
                continue
            first, last = encoding.char_to_token(begin), encoding.char_to_token(end - 1)
            if first is None or last is None:
                raise ValueError("what the chat template marks as generation does not begin and end with tokens")
            learnt[first:last + 1] = [True] * (last + 1 - first)
        marks = spans or re.search(r"\{%-?\s*generation", source)
        return encoding.ids, learnt if marks else None


chat = None


def with_end(text):
    end = chat.special.get("eos_token", "")
    return text if text.endswith(end) else text + end


def training_row(row, completion_only, assistant_only):
    """Token ids, which of them are learnt, and whether the prompt's own ids begin them."""
    global chat
    chat = chat or Chat()
    marks, before = None, []
    if "messages" in row:
        ids, marks = chat.ids(row, row["messages"])
    elif "prompt" in row and isinstance(row["prompt"], str):
        before = tokenizer.encode(row["prompt"]).ids
        ids = tokenizer.encode(with_end(row["prompt"] + row["completion"])).ids
    elif "prompt" in row:
        before = chat.ids(row, row["prompt"], prompt=True)[0]
        ids, marks = chat.ids(row, row["prompt"] + row["completion"])
    else:
        ids = tokenizer.encode(with_end(row["text"])).ids
    learnt = [True] * len(ids)
    # The completion begins where the ids of the prompt alone and of both are no longer the same, as TRL has it.
    same = next((i for i, (x, y) in enumerate(zip(before, ids)) if x != y), min(len(before), len(ids)))
    if completion_only and before:
        learnt = [i >= same for i in range(len(ids))]
    if assistant_only:
        if marks is None:
            raise ValueError("--assistant-only-loss needs messages, and a chat template that marks the assistant's turns with {% generation %}")
        learnt = [a and b for a, b in zip(learnt, marks)]
    return {"ids": ids, "learnt": [int(x) for x in learnt], "prompt_begins": same == len(before)}


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    try:
        if "row" in request:
            answer = training_row(request["row"], request["completion_only"], request["assistant_only"])
        elif "text" in request:
            answer = {"ids": tokenizer.encode(request["text"], add_special_tokens=request["special"]).ids}
        else:
            answer = {"text": tokenizer.decode(request["ids"], skip_special_tokens=request["skip"])}
    except BaseException as error:
        missing = isinstance(error, ImportError)
        answer = {"error" if missing or "row" not in request else "row_error": str(error) or repr(error)}
    print(json.dumps(answer), flush=True)
