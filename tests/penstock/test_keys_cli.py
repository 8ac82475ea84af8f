"""`penstock keys` and `penstock audit` as a person types them, before a gateway that runs."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner, Result

from penstock.cli import app
from tests.conftest import Served, free_port, running
from tests.penstock.test_cli import PENSTOCK, penstock

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def two_workers(tmp_path: Path) -> Iterator[Served]:
    """Two processes, and the parent's admin API."""
    port, admin_port = free_port(), free_port()
    command = [PENSTOCK, "serve", "--engine", "scripted", "--workers", "2", "--port", str(port)]
    env = {"PENSTOCK_ADMIN__PORT": str(admin_port), "PENSTOCK_ADMIN__KEY": "admin-key-0123456789"}
    with running(command, port, tmp_path, **env) as served:
        served.admin_url = f"http://{HOST}:{admin_port}"  # type: ignore[attr-defined]
        yield served


def created(name: str, *words: str) -> str:
    shown = penstock("keys", "create", "--name", name, *words)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.strip()


def answers(served: Served, key: str, times: int = 8) -> set[int]:
    """What so many new connections get: of both workers, most likely."""
    headers = {"authorization": f"Bearer {key}"}
    return {httpx2.get(f"{served.url}/v1/models", headers=headers, trust_env=False).status_code for _ in range(times)}


def test_the_key_alone_is_on_standard_output_and_is_never_shown_again(home: Path) -> None:
    shown = penstock("keys", "create", "--name", "team", "--rpm", "60", "--models", "a, b", "--expires", "30d")
    assert shown.stdout.startswith("sk-ps-")
    assert shown.stdout.count("\n") == 1
    assert "name: team" in shown.stderr
    assert "rpm 60" in shown.stderr
    assert "only time" in shown.stderr
    listed = penstock("keys", "list")
    assert "team" in listed.stdout
    assert "a, b" in listed.stdout
    secret = shown.stdout.strip().rpartition("-")[2]
    for later in (listed.stdout, penstock("keys", "list", "--json").stdout, penstock("audit", "list", "--json").stdout):
        assert secret not in later
        assert "team" in later
    assert not [file for file in home.iterdir() if secret.encode() in file.read_bytes()]


def test_scripts_get_json() -> None:
    made = json.loads(penstock("keys", "create", "--name", "a", "--scopes", "generate,metrics", "--json").stdout)
    assert made["key"].startswith(f"sk-ps-{made['id']}-")
    assert made["scopes"] == ["generate", "metrics"]
    rotated = json.loads(penstock("keys", "rotate", "a", "--overlap", "1h", "--json").stdout)
    assert (rotated["holder"], rotated["name"]) == (made["id"], "a")
    listed = json.loads(penstock("keys", "list", "--json").stdout)
    assert [key["state"] for key in listed] == ["live", "live"]
    assert penstock("keys", "revoke", "a").stdout.startswith("revoked: a (")
    assert json.loads(penstock("keys", "list", "--json").stdout) == []
    assert len(json.loads(penstock("keys", "list", "--all", "--json").stdout)) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["keys", "create", "--name", "a/b"], "name: "),
        (["keys", "create", "--name", "a", "--rpm", "0"], "rpm: "),
        (["keys", "create", "--name", "a", "--scopes", "root"], "scopes"),
        (["keys", "create", "--name", "a", "--expires", "soon"], "expires: write a duration"),
        (["keys", "create", "--name", "config"], "give this key another tenant"),
        (["keys", "create", "--name", "a", "--tenant", "local"], "give this key another tenant"),
        (["keys", "rotate", "absent"], "no key is named 'absent'"),
        (["keys", "rotate", "a", "--overlap", "later"], "--overlap later: write a duration"),
        (["keys", "revoke", "absent"], "no key is named 'absent'"),
        (["audit", "verify", "--noted", "5"], "write NUMBER:DIGEST"),
    ],
)
def test_a_mistake_ends_in_its_message(words: list[str], message: str) -> None:
    shown = penstock(*words)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("penstock: ")
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def typed(*words: str) -> Result:
    """In this process, which costs less."""
    return CliRunner().invoke(app, ["keys", *words])


def test_a_key_is_changed_by_what_is_named_and_by_what_is_unset() -> None:
    made = json.loads(typed("create", "--name", "team", "--rpm", "60", "--models", "a", "--json").stdout)
    shown = typed(
        "update", "team", "--tpm", "9", "--guards", "strict", "--scopes", "generate,steps", "--unset", "models"
    )
    assert shown.exit_code == 0, shown.output
    assert "the configuration has no guards 'strict': until it has, no request of this key is served" in shown.stderr
    assert shown.stdout.startswith(f"name: team, id: {made['id']}, ")
    assert "scopes: generate, steps, models: all, limits: rpm 60, tpm 9" in shown.stdout
    (key,) = json.loads(typed("update", "team", "--unset", "rpm, tpm, daily-tokens,guards", "--json").stdout)
    changed = {"rpm": None, "models": None, "scopes": ["generate", "steps"]}
    assert key == {name: value for name, value in made.items() if name != "key"} | changed


def test_an_update_that_cannot_be_ends_in_its_message_and_changes_nothing() -> None:
    before = typed("create", "--name", "k", "--json")
    for words, message in (
        (["absent", "--rpm", "1"], "no key is named 'absent'"),
        (["k"], "say what is to be another, at least one of scopes"),
        (["k", "--rpm", "0"], "rpm: "),
        (["k", "--rpm", "5", "--unset", "rpm"], "--unset rpm: it is given, too"),
        (["k", "--unset", "scopes"], "scopes: "),
        (["k", "--unset", "tenant"], "tenant: a key has it for good"),
        (["k", "--unset", "colour"], "colour: "),
        (["k", "--guards", ""], "guards: "),
        (["k", "--models", ""], "models: "),
        (["k", "--scopes", ""], "scopes: "),
    ):
        shown = typed("update", *words)
        assert (shown.exit_code, shown.stdout) == (1, ""), words
        assert shown.stderr.startswith("penstock: "), words
        assert message in shown.stderr, words
    (key,) = json.loads(typed("list", "--json").stdout)
    assert key.items() <= json.loads(before.stdout).items()


def test_a_database_that_is_not_there_ends_in_its_message() -> None:
    shown = penstock("keys", "list", PENSTOCK_STATE__DATABASE="postgresql://a:secret-word@127.0.0.1:1/b")
    assert shown.returncode == 1
    assert "cannot be used" in shown.stderr
    assert "secret-word" not in shown.stderr


def test_the_audit_log_is_listed_and_verified_and_a_change_of_it_found(home: Path) -> None:
    created("a")
    created("b")
    listed = penstock("audit", "list").stdout
    assert listed.count("key.created") == 2
    whole = penstock("audit", "verify")
    assert "2 entries, each as it was written" in whole.stdout
    noted = whole.stdout.splitlines()[-1]
    assert penstock("audit", "verify", "--noted", noted).returncode == 0
    with sqlite3.connect(home / "penstock.db") as connection:
        connection.execute("DROP TRIGGER audit_update")
        connection.execute("UPDATE audit SET actor = 'nobody' WHERE number = 1")
    connection.close()
    broken = penstock("audit", "verify")
    assert broken.returncode == 1
    assert "broken at entry 1: it has been changed" in broken.stderr
    assert json.loads(penstock("audit", "verify", "--json").stdout)["broken"] == 1


def test_a_key_made_and_revoked_beside_a_running_gateway_counts_in_every_worker(two_workers: Served) -> None:
    first = created("first", "--scopes", "admin")
    key = created("k")
    until(two_workers, key, {200})
    assert penstock("keys", "revoke", "k").returncode == 0
    time.sleep(1)
    assert answers(two_workers, key) == {401}
    assert answers(two_workers, first) == {200}


def test_the_parent_of_workers_serves_the_admin_api(two_workers: Served) -> None:
    url: str = two_workers.admin_url  # type: ignore[attr-defined]
    headers = {"authorization": "Bearer admin-key-0123456789"}
    made = httpx2.post(f"{url}/admin/keys", json={"name": "k"}, headers=headers, trust_env=False)
    assert made.status_code == 201
    until(two_workers, made.json()["key"], {200})
    secret = made.json()["key"].rpartition("-")[2]
    log = two_workers.text
    assert secret not in log
    assert "the admin API listens on" in log


def test_the_first_and_the_last_of_a_gateway_stand_in_the_audit_log(tmp_path: Path) -> None:
    port = free_port()
    with running([PENSTOCK, "serve", "--engine", "scripted", "--port", str(port)], port, tmp_path):
        pass
    said = json.loads(penstock("audit", "list", "--json").stdout)
    assert [entry["action"] for entry in said] == ["gateway.started", "gateway.stopped"]


def test_a_gateway_with_stored_keys_may_be_reached_by_others(tmp_path: Path) -> None:
    key = created("k")
    port = free_port()
    command = [PENSTOCK, "serve", "--engine", "scripted", "--host", "0.0.0.0", "--port", str(port)]
    with running(command, port, tmp_path) as served:
        assert "YOUR_KEY" in served.text
        assert answers(served, key, 1) == {200}
        assert answers(served, "sk-none", 1) == {401}


def until(served: Served, key: str, wanted: set[int]) -> None:
    deadline = time.monotonic() + 3
    while answers(served, key) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_help_of_keys_is_quick() -> None:
    code = "import sys; import penstock.cli; print({'sqlalchemy', 'asyncpg', 'fastapi', 'rich'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout.strip() == "set()"
