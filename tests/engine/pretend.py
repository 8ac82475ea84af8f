"""A process that behaves as an engine's does towards its supervisor: `python -m tests.engine.pretend SOCKET [MODE]`.

It binds a Unix socket, answers /metrics and the one-token probe, has a child in its process group, and can be told
by its mode, or by a request to /wedge, to go wrong in one of an engine's ways.
"""

import http.server
import os
import socketserver
import subprocess
import sys
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    wedged = threading.Event()
    busy = threading.Event()
    tokens = 0

    def do_GET(self) -> None:
        self.answer(f"vllm:generation_tokens_total {Handler.tokens}\n".encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/wedge":
            Handler.wedged.set()
        elif self.path == "/busy":
            Handler.busy.set()
        elif Handler.busy.is_set():
            until = time.monotonic() + 3
            while time.monotonic() < until:  # as in a long prefill: it computes, and counts no token
                pass
            Handler.busy.clear()
        elif self.path == "/refuse":
            self.answer(b'{"error": {"message": "no generation here"}}', 404)
            return
        elif Handler.wedged.is_set():
            time.sleep(600)  # as vLLM does: the head never comes, /health and /metrics go on answering
        else:
            Handler.tokens += 1
        self.answer(b"{}")

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def main(socket: str, mode: str = "") -> None:
    print("INFO pretend engine starts", flush=True)
    if mode == "bad-model":
        print("OSError: /m is not a local folder and is not a valid model identifier", flush=True)
        raise SystemExit(1)
    if mode == "killed":
        os.kill(os.getpid(), 9)
    if mode == "never":
        time.sleep(600)
    child = subprocess.Popen(["sleep", "600"])
    print(f"INFO child {child.pid}", flush=True)
    Server(socket, Handler).serve_forever()  # fails on a socket file that is left, as vLLM does


if __name__ == "__main__":
    main(*sys.argv[1:])
