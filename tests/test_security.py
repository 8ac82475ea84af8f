"""docs/security.md tells of tests that exist, and of every class; and what can be told by looking at the source."""

import ast
import re
import secrets
import statistics
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from penstock.errors import InvalidKey
from serving.keys import Keys
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/security.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| |")]
CLASSES = """Addresses that the engine fetches
Media that unpack to more than they seem
Bytes that are unpacked as code
Templates and their arguments
Patterns and grammars
Numbers too large
Time that tells
SQL in credentials
Paths around the key
Paths to files
Administration left open
Privilege by way of the API
Steps of the caller's choice
Keys that leak
Tools and agents led astray
Guards gone around
One tenant and another
Answers as code
The supply chain""".splitlines()
PACKAGES = ("penstock", "serving", "engine", "guards", "registry", "training", "benchmarks")
SOURCES = [file for package in PACKAGES for file in sorted((REPOSITORY / package).rglob("*.py"))]
# Each turns bytes into code, or a text into a command.
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
NEVER_TRUE = {"shell", "trust_remote_code", "allow_dangerous_deserialization"}


def test_every_class_stands_on_the_page_once_with_its_tests() -> None:
    assert [row[0].removeprefix("| ") for row in ROWS] == CLASSES
    for row in ROWS:
        assert "::test_" in row[-1] or "not yet: no such surface" in row[-1], row[0]


def test_every_test_that_is_named_there_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 30
    for file, function in named:
        assert f"def {function}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), f"{file}::{function}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_nothing_here_turns_bytes_into_code(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not NEVER_IMPORTED & {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in NEVER_IMPORTED
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            true = {word.arg for word in node.keywords if isinstance(word.value, ast.Constant) and word.value.value}
            assert called not in NEVER_CALLED
            assert not NEVER_TRUE & true
            assert called != "torch.load" or "weights_only" in true


def test_every_package_is_pinned_with_its_hash() -> None:
    for file in (REPOSITORY / "requirements").glob("*.txt"):
        wanted = [line for line in file.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line)]
        assert wanted
        for line in wanted:
            assert re.match(r"[\w.\-\[\],]+ ?(==|@ )", line), (file.name, line)
            assert line.endswith("\\"), (file.name, line)  # its hashes follow
    assert "--require-hashes" in (REPOSITORY / "requirements/install").read_text()


def test_a_nearly_right_key_takes_as_long_to_refuse_as_a_wrong_one() -> None:
    right = secrets.token_hex(24)
    keys = Keys([SecretStr(secrets.token_hex(24)), SecretStr(right)])
    nearly = {b"authorization": f"Bearer {right[:-1]}x".encode()}
    wrong = {b"authorization": f"Bearer {secrets.token_hex(24)}".encode()}
    took: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(2000):  # in turn, so that whatever slows this machine down slows both
        for which, headers in enumerate((nearly, wrong)):
            began = time.perf_counter()
            with pytest.raises(InvalidKey):
                keys.check(headers)
            took[which].append(time.perf_counter() - began)
    first, second = (statistics.median(times) for times in took.values())
    assert 0.8 < first / second < 1.25
