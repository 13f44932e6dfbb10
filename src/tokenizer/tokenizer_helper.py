# One JSON request a line on standard input, one JSON answer a line on standard output. Argument: a tokenizer.json.
# Embedded in peft-torch (tokenizer.cpp), which starts it.
import sys
sys.path = [folder for folder in sys.path if folder]  # nothing from the current folder
import json
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
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    try:
        if "text" in request:
            answer = {"ids": tokenizer.encode(request["text"], add_special_tokens=request["special"]).ids}
        else:
            answer = {"text": tokenizer.decode(request["ids"], skip_special_tokens=request["skip"])}
    except BaseException as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
