"""The gateways that are compared: what each is started with, and when it is ready."""

import asyncio
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import httpx2

from benchmarks.processes import started
from penstock.keyring import Keyring, Wanted
from penstock.store import opened

START_S = 120
POLL_S = 0.1
TAIL_CHARACTERS = 2000

NGINX = """worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log error;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    upstream engine {{
        server {upstream};
        keepalive 256;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 32m;
        client_body_buffer_size 1m;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Contestant:
    """A gateway to be started; without a command, nothing is, and `url` is the engine's own."""

    name: str
    command: Sequence[str]
    url: str
    env: Mapping[str, str] = field(default_factory=dict)
    model: str = "m"
    key: str = "sk-none-at-all-0123"


def given(text: str, places: Mapping[str, str]) -> Contestant:
    """`NAME=CMD@URL` with {port}, {upstream}, {upstreams} (all, as words) and {socket} filled in.

    "r=router --to {upstream} --port {port}@http://127.0.0.1:{port}". Raises ValueError that says how it is written.
    """
    name, _, rest = text.partition("=")
    command, at, url = rest.rpartition("@")
    if not (name.strip() and command.strip() and at and url.startswith("http://")):
        raise ValueError(
            f"{text!r}: write NAME=CMD@URL, such as 'r=router --to {{upstream}} --port {{port}}@http://127.0.0.1:{{port}}'"
        )
    return Contestant(name.strip(), shlex.split(filled(command, places)), filled(url, places))


def filled(template: str, places: Mapping[str, str]) -> str:
    """ "--port {port}", {"port": "9"} -> "--port 9". Braces around anything but a word, as in JSON, stay."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in places:
            raise ValueError(
                f"{match[0]} in {template!r} is not known: use {', '.join(f'{{{name}}}' for name in places)}"
            )
        return places[match[1]]

    return re.sub(r"\{([a-z_]+)\}", value, template)


def places(upstreams: Sequence[str], engine_socket: str, port: int) -> dict[str, str]:
    return {"upstream": upstreams[0], "upstreams": " ".join(upstreams), "socket": engine_socket, "port": str(port)}


def penstock(
    upstreams: Sequence[str],
    port: int,
    folder: Path,
    name: str = "Penstock",
    *,
    model: str = "m",
    env: Mapping[str, str] = MappingProxyType({}),
) -> Contestant:
    """As a user would start it: nothing is turned off."""
    command = [str(Path(sys.executable).parent / "penstock"), "serve", "--port", str(port)]
    command += ["--upstream", f"{model}={','.join(upstreams)}"]
    return Contestant(name, command, f"http://127.0.0.1:{port}", {"PENSTOCK_HOME": str(folder), **env}, model)


def penstock_for(keys: int, upstream: str, port: int, folder: Path) -> tuple[Contestant, Path]:
    """The same with so many keys in its database, each with limits that are never reached, and the file of the keys."""
    home = folder / f"keys-{keys}"
    home.mkdir()
    env = {"PENSTOCK_HOME": str(home), "PENSTOCK_STATE__PEPPER": secrets.token_hex(32)}
    file = home / "keys.txt"
    sent = asyncio.run(made(keys, home, env["PENSTOCK_STATE__PEPPER"]))
    file.write_text("\n".join(sent))
    name = f"Penstock, {keys:,} {'key' if keys == 1 else 'keys'}"
    return replace(penstock([upstream], port, home, name, env=env), key=sent[0]), file


async def made(count: int, home: Path, pepper: str) -> list[str]:
    """So many keys, as the command line would make them one by one."""
    async with opened(f"sqlite:///{home / 'penstock.db'}") as store:
        keyring = Keyring(store, pepper.encode())
        wanted = [Wanted(name=f"team-{number}", rpm=10**6, tpm=10**9, concurrent=10**4) for number in range(count)]
        return [(await keyring.create(one, "benchmark")).key for one in wanted]


def nginx(upstream: str, port: int, folder: Path) -> Contestant:
    """A plain reverse proxy, one worker, streams unbuffered. Raises LookupError where it is not installed."""
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if not path:
        raise LookupError("nginx is not installed (Debian's package is nginx-light)")
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, upstream=upstream.removeprefix("http://"), port=port))
    return Contestant("nginx", [path, "-p", str(folder), "-c", str(file)], f"http://127.0.0.1:{port}")


@contextmanager
def running(contestant: Contestant, core: int | None, folder: Path) -> Iterator[int]:
    """Its process id, once it has answered a chat. What it writes goes into a file in `folder`."""
    log = folder / f"{re.sub(r'[^a-zA-Z0-9]+', '-', contestant.name)}.log"
    with log.open("wb") as output, started(contestant.command, core, output, contestant.env) as process:
        until_it_answers(contestant, process, log)
        yield process.pid


def until_it_answers(contestant: Contestant, process: subprocess.Popen[bytes], log: Path) -> None:
    body = {"model": contestant.model, "max_tokens": 2, "messages": [{"role": "user", "content": "Are you there?"}]}
    deadline = time.monotonic() + START_S
    said = "nothing"
    headers = {"authorization": f"Bearer {contestant.key}"}
    with httpx2.Client(base_url=contestant.url, timeout=START_S, trust_env=False, headers=headers) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                answer = client.post("/v1/chat/completions", json=body)
                if answer.status_code == 200:
                    return
                said = f"{answer.status_code} {answer.text[:200]}"
            except httpx2.HTTPError as error:
                said = str(error)
            time.sleep(POLL_S)
    tail = log.read_text(errors="replace")[-TAIL_CHARACTERS:]
    raise SystemExit(f"{contestant.name} does not answer ({said}):\n{shlex.join(contestant.command)}\n{tail}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
