"""docs/reliability.md tells of tests that exist, and of every scenario."""

import re

from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_scenario_stands_on_the_page_once() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert sorted(numbers) == list(range(1, 32))


def test_every_test_that_is_named_there_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 50
    for file, function in named:
        path = REPOSITORY / file if file.startswith("tests/") else REPOSITORY / "tests" / file
        assert f"def {function}(" in path.read_text(encoding="utf-8") if function else path.is_file(), file
