"""Addresses of Redis and of the database, as a configuration has them."""

from pathlib import Path

import pytest

from penstock.errors import ConfigError, StartError
from penstock.source import load
from penstock.state_urls import check_redis
from tests.penstock.test_cli import penstock


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6379/0",
        "redis://h/",
        "redis://user:p%2Fw@h:6379/15",
        "rediss://:pw@[::1]:6379/0?ssl_cert_reqs=none&socket_timeout=5",
        "rediss://h?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/c&ssl_keyfile=/k&socket_connect_timeout=2&socket_keepalive=yes",
        "unix:///run/redis.sock?db=2",
        "unix:///run/redis.sock?db=2&username=u&password=p%26w&client_name=penstock",
    ],
)
def test_what_redis_py_understands_is_accepted(url: str) -> None:
    check_redis(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis:h", "must be redis://HOST:PORT/0"),
        ("http://:secret-word@h", "must be redis://HOST:PORT/0"),
        ("redis://:secret-word@/0", "must be redis://HOST:PORT/0"),
        ("redis://:secret/word@h:6379/0", "write / as %2F"),
        ("redis://:secret#word@h:6379/0", "# as %23"),
        ("redis://:secret-word@h:port/0", "must be"),
        ("redis://:secret-word@h:0/0", "must be"),
        ("redis://:secret-word@h:99999/0", "must be"),
        ("redis://:secret-word@h:6379/zero", "must be"),
        ("redis://[::1/0", "must be"),
        ("unix://", "unix:///PATH"),
        ("secret-word", "must be"),
        ("redis://:secret-word@h/0?colour=red", "unknown parameter 'colour': accepted are db, username, password, "),
        (
            "redis://:secret-word@h/0?socket_timout=5",
            "unknown parameter 'socket_timout', did you mean 'socket_timeout'?",
        ),
        ("redis://:secret-word@h/0?decode_responses=True", "unknown parameter 'decode_responses'"),
        ("redis://:secret-word@h/0?db=1&protocol=3", "unknown parameter 'protocol'"),
        ("redis://:secret-word@h/0?encoding=utf-16", "unknown parameter 'encoding'"),
        ("redis://:secret-word@h/0?encoding_errors=ignore", "unknown parameter 'encoding_errors'"),
        ("redis://:secret-word@h/0?legacy_responses=no", "unknown parameter 'legacy_responses'"),
        ("redis://:secret-word@h/0?max_connections=1", "unknown parameter 'max_connections'"),
        ("redis://:secret-word@h/0?parser_class=x", "unknown parameter 'parser_class'"),
        ("redis://:secret-word@h/0?path=/run/redis.sock", "unknown parameter 'path'"),
        ("redis://:secret-word@h/0?ssl_ca_certs=/ca", "unknown parameter 'ssl_ca_certs'"),
        ("unix:///run/redis.sock?socket_keepalive=yes", "unknown parameter 'socket_keepalive'"),
        ("redis://:secret-word@h/0?db=1&db=2", "the parameter db stands there more than once"),
        ("redis://:secret-word@h/0?socket_timeout=", "the parameter socket_timeout has no value"),
        ("redis://:secret-word@h/0?socket_timeout=secret-word", "the value of a parameter"),
        ("rediss://:secret-word@h/0?ssl_cert_reqs=secret-word", "the value of a parameter"),
    ],
)
def test_an_address_of_no_redis_is_told_with_its_line_and_without_repeating_it(
    url: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match=r"state\.redis"):
        check_redis(url)
    file = tmp_path / "p.yaml"
    file.write_text(f"state:\n  redis: '{url}'\n")
    with pytest.raises(ConfigError) as raised:
        load(file)
    assert raised.value.message.startswith(f"{file}:2: state.redis: ")
    assert message in raised.value.message
    assert "secret" not in raised.value.message


@pytest.mark.parametrize("command", [["config"], ["serve", "--engine", "scripted"], ["keys", "list"]])
@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("redis", "redis://:secret-word@h:port/0", "state.redis: must be redis://HOST:PORT/0"),
        ("database", "postgresql://u:secret-word@h/x?sslmod=require", "state.database: unknown parameter 'sslmod'"),
        ("database", "mysql://u:secret-word@h/x", "state.database: must be sqlite:///PATH or postgresql://"),
    ],
)
def test_every_command_refuses_such_an_address(
    command: list[str], name: str, url: str, message: str, tmp_path: Path
) -> None:
    shown = penstock(*command, **{f"PENSTOCK_STATE__{name.upper()}": url, "PENSTOCK_HOME": str(tmp_path)})
    assert (shown.returncode, shown.stdout) == (1, "")
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
    assert "secret-word" not in shown.stderr
