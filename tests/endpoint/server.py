#!/usr/bin/env python3
"""A server that answers /v1/completions for models "base" and "lora" in the way its argument says. Prints its port.

`llama MODE` instead: /lora-adapters and /completion, as llama-server (llama.cpp 0.5.0) answers them.
"""
import http.server
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from toy import log_probabilities

LLAMA = sys.argv[1].startswith("llama ")
MODE = sys.argv[1].removeprefix("llama ")
HOW = {"ignores": dict(scale=0), "stronger": dict(scale=2.5), "weaker": dict(scale=0.4), "turned": dict(scale=-1),
       "different": dict(scale=1, other=1.5)}

LOADED = [{"id": 0, "path": "other/one.gguf", "scale": 1.0},
          {"id": 1, "path": "/models/lora.gguf", "scale": {"twice as strong": 2.0, "switched off": 0.0}.get(MODE, 1.0)}]
if MODE == "not loaded":
    LOADED.pop()
if MODE == "two of a name":
    LOADED[0]["path"] = "other/lora.gguf"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if LLAMA and self.path == "/lora-adapters":
            self.send(200, json.dumps(LOADED).encode())
        else:
            self.send(404, b'{"error": {"message": "no such page"}}')

    def next_token(self, request):
        """/completion of llama-server, with n_predict 1 and n_probs 1: the generated token's log-probability."""
        assert request["n_predict"] == request["n_probs"] == 1 and not request["post_sampling_probs"] and not request["cache_prompt"]
        if MODE == "garbage":
            return self.send(200, b"<html>It works!</html>")
        if MODE == "small context":
            return self.send(400, b'{"error": {"message": "the request exceeds the available context size"}}')
        scales = {entry["id"]: entry["scale"] for entry in request["lora"]}
        assert scales[0] == 0  # the adapter that was not asked for
        how = HOW.get(MODE, dict(scale=1))
        how = dict(how, scale=how["scale"] * scales[1], other=how.get("other", 0) * scales[1])
        prompt, (token, bias) = request["prompt"], request["logit_bias"][0]
        assert bias > 1e6
        generated = 7 if MODE == "unforced" else token
        value = log_probabilities([*prompt, generated], **how, base=0.5 if MODE == "other base" else 0)[-1]
        answer = {"tokens_evaluated": len(prompt) + (MODE == "more tokens"),
                  "completion_probabilities": [{"id": generated, "token": "x", "bytes": [120], "logprob": value, "top_logprobs": []}]}
        if MODE == "parts of characters" and token % 5 == 0:
            del answer["completion_probabilities"]
        if MODE == "old":  # before llama.cpp of December 2024
            answer["completion_probabilities"] = [{"content": "x", "probs": [{"tok_str": "x", "prob": 0.5}]}]
        self.send(200, json.dumps(answer).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if LLAMA and MODE not in ("hangs", "closes"):
            assert self.path == "/completion"
            return self.next_token(request)
        assert LLAMA or self.path == "/v1/completions" and request["echo"]
        assert request["temperature"] == 0
        if MODE == "hangs":
            time.sleep(60)
        if MODE == "closes":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{")
            self.close_connection = True
            return
        how = HOW.get(MODE, dict(scale=1)) if request["model"] == "lora" else dict(scale=0)
        values = log_probabilities(request["prompt"], **how, base=0.5 if MODE == "other base" else 0)
        if MODE == "coarse":
            values = [None] + [round(x, 2) for x in values[1:]]
        status, choice = 200, {"text": "", "logprobs": {"token_logprobs": values + [-1.0]}}
        if MODE == "vllm":
            choice = {"text": "", "prompt_logprobs": [None] + [{str(t): {"logprob": x}, "0": {"logprob": -9}} if t else {"0": {"logprob": x}}
                                                               for t, x in zip(request["prompt"][1:], values[1:])]}
        if MODE == "no echo":
            choice = {"text": "x", "logprobs": None}
        body = json.dumps({"choices": [choice]}).encode()
        if MODE == "garbage":
            body = b"<html>It works!</html>"
        if MODE == "unknown model":
            status, body = 404, b'{"error": {"message": "no model lora"}}'
        self.send_response(status)
        if MODE == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(0, len(body), 100):
                part = body[i:i + 100]
                self.wfile.write(b"%x;x=y\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        if MODE == "no length":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
