#!/usr/bin/env python3
"""A server that answers /v1/completions for models "base" and "lora" in the way its argument says. Prints its port."""
import http.server
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from toy import log_probabilities

MODE = sys.argv[1]
HOW = {"ignores": dict(scale=0), "stronger": dict(scale=2.5), "weaker": dict(scale=0.4), "turned": dict(scale=-1),
       "different": dict(scale=1, other=1.5)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions" and request["echo"] and request["temperature"] == 0
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
