"""Tasks put to a `Chat`, the runs they leave, and two runs beside each other."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from engine.openai import OpenAIChat
from engine.pool import Pool
from engine.replica import Replica
from engine.sim import simulator
from evals.compare import compare
from evals.harness import ask_all, head
from evals.metrics import wilson
from evals.runs import Record, Run, result
from evals.served import what_is_served
from evals.tasks import Item, Task
from penstock.chat import ChatRequest, Emit, Message, Reply, Usage
from penstock.errors import (
    BadRequest,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    InvalidKey,
    RateLimited,
    StateUnavailable,
)
from tests.conftest import REPOSITORY, Served
from tests.upstream import whole
from training.evaluate_demo import ask
from training.held_out import held_out, task

FOLDER = REPOSITORY / "recipes/demo/model"


def numbers(count: int) -> Task:
    """`0` is to be answered by `0`, and so on."""
    items = [Item(str(n), [{"role": "user", "content": str(n)}], [str(n)]) for n in range(count)]
    return Task("numbers", "verbatim", items)


@dataclass
class Parrot:
    """Says what it was told, but for what `says` makes of it; counts how many ask at once."""

    says: Callable[[str], str] = lambda text: text
    asked: list[str] = field(default_factory=list)
    most: int = 0
    now: int = 0

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.001)
            self.asked.append(request.messages[-1].text)
            text = self.says(request.messages[-1].text)
        finally:
            self.now -= 1
        return Reply(Message(role="assistant", content=text), usage=Usage(3, 2))


def put(task: Task, chat: Parrot, path: Path | None = None, concurrency: int = 4) -> Run:
    run = Run.begin(head(task, "m"), path)
    try:
        asyncio.run(ask_all(task, chat, run, concurrency))
    finally:
        run.close()
    return run


def wrong_from(first: int) -> Callable[[str], str]:
    return lambda text: text if int(text) < first else "no"


def failing(*numbers: int) -> Callable[[str], str]:
    def says(text: str) -> str:
        if int(text) in numbers:
            raise EngineError("it broke")
        return text

    return says


def test_a_result_by_hand() -> None:
    """10 items of 3 + 2 tokens, 8 of them right."""
    found = put(numbers(10), Parrot(wrong_from(8))).result
    assert (found.n, found.errors, found.cut, found.score) == (10, 0, 0, 0.8)
    assert found.interval == wilson(8, 10)
    assert found.tokens_per_correct == 50 / 8
    assert found.latency_s
    assert found.latency_s >= 0.001


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_are_asked_at_once_than_may_be(concurrency: int) -> None:
    chat = Parrot()
    put(numbers(12), chat, concurrency=concurrency)
    assert chat.most == concurrency
    assert sorted(map(int, chat.asked)) == list(range(12))


def test_items_that_fail_are_counted_and_told() -> None:
    run = put(numbers(5), Parrot(failing(1, 3)))
    found = run.result
    assert (found.n, found.errors, found.score) == (5, 2, 3 / 5)
    assert {one.id: one.error for one in run.records if one.error} == dict.fromkeys("13", "EngineError: it broke")


def test_nothing_right_has_no_price() -> None:
    assert put(numbers(2), Parrot(wrong_from(0))).result.tokens_per_correct is None
    assert result(head(numbers(1), "m"), [Record("0", error="x")]).latency_s is None


def test_a_wrong_key_ends_it_at_once() -> None:
    def says(text: str) -> str:
        raise InvalidKey("no such key")

    chat = Parrot(says)
    with pytest.raises(InvalidKey, match="no such key"):
        put(numbers(50), chat)
    assert len(chat.asked) <= 4


def test_a_key_that_is_refused_in_the_midst_ends_it(tmp_path: Path) -> None:
    def says(text: str) -> str:
        if int(text) > 2:
            raise EngineRefused("Unauthorized")
        return text

    with pytest.raises(EngineRefused, match="Unauthorized"):
        put(numbers(50), Parrot(says), tmp_path / "run.jsonl", concurrency=1)
    assert put(numbers(50), Parrot(), tmp_path / "run.jsonl").result.score == 1


def test_a_server_that_says_to_come_back_in_hours_is_not_waited_for(tmp_path: Path) -> None:
    def says(text: str) -> str:
        if int(text) > 2:
            raise RateLimited("the tokens of this day are used up", retry_after_s=3 * 3600)
        return text

    with pytest.raises(StateUnavailable, match=r"used up .* ask again in 3 hours: with --out"):
        put(numbers(50), Parrot(says), tmp_path / "run.jsonl", concurrency=1)
    assert len(Run.read(tmp_path / "run.jsonl").answered) == 3


def test_what_nobody_foresaw_is_the_items_own() -> None:
    def says(text: str) -> str:
        if text == "1":
            raise ZeroDivisionError("division by zero")
        return text

    odd = Item("odd", [{"role": "user", "content": 7}], ["7"])
    task = numbers(3)
    run = put(replace(task, items=[*task.items, odd]), Parrot(says))
    errors = {record.id: record.error for record in run.records if record.error}
    assert errors.keys() == {"1", "odd"}
    assert errors["1"] == "ZeroDivisionError: division by zero"
    assert "ValidationError" in str(errors["odd"])


def test_who_is_told_to_wait_asks_again() -> None:
    first = iter([True] * 2)

    def says(text: str) -> str:
        if next(first, False):
            raise RateLimited("slowly", retry_after_s=0)
        return text

    chat = Parrot(says)
    assert put(numbers(3), chat).result.score == 1
    assert len(chat.asked) == 5


def test_who_is_always_told_to_wait_gives_up() -> None:
    def says(text: str) -> str:
        raise RateLimited("slowly", retry_after_s=0)

    chat = Parrot(says)
    assert put(numbers(1), chat).records[0].error == "RateLimited: slowly"
    assert len(chat.asked) == 5


@pytest.mark.parametrize("answered", [0, 1])
def test_a_server_that_goes_is_told_of_each_item_unless_it_was_never_there(answered: int) -> None:
    def says(text: str) -> str:
        if int(text) >= answered:
            raise EngineUnavailable("nobody answers", retry_after_s=0)
        return text

    if not answered:
        with pytest.raises(EngineUnavailable, match="nobody answers"):
            put(numbers(20), Parrot(says), concurrency=1)
    else:
        found = put(numbers(20), Parrot(says), concurrency=1).result
        assert (found.n, found.errors, found.score) == (20, 19, 1 / 20)


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    """Four answers, one failure, half a line: the failure and what is missing are asked, and nothing else."""
    path = tmp_path / "run.jsonl"
    whole = put(numbers(8), Parrot(failing(2)), path, concurrency=1)
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:6]) + kept[6][:20])
    chat = Parrot()
    run = put(numbers(8), chat, path)
    assert sorted(chat.asked) == ["2", "5", "6", "7"]
    assert run.result.score == 1
    again = Run.read(path)
    assert again.head == whole.head
    assert {record.id: record.score for record in again.records} == {str(n): 1.0 for n in range(8)}
    assert len(path.read_bytes().splitlines()) == 1 + 5 + 4
    assert put(numbers(8), chat, path).result.n == 8
    assert len(chat.asked) == 4


@pytest.mark.parametrize(
    ("other", "says"),
    [(numbers(3), "digest"), (replace(numbers(2), metric="f1"), "metric"), (replace(numbers(2), name="x"), "task")],
)
def test_another_run_is_not_gone_on_with(tmp_path: Path, other: Task, says: str) -> None:
    path = tmp_path / "run.jsonl"
    put(numbers(2), Parrot(), path)
    before = path.read_bytes()
    with pytest.raises(BadRequest, match=f"its {says} is .* --out"):
        put(other, Parrot(), path)
    assert path.read_bytes() == before


def test_a_run_of_two_processes_at_once_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = Run.begin(head(numbers(2), "m"), path)
    with pytest.raises(BadRequest, match="another run writes"):
        Run.begin(head(numbers(2), "m"), path)
    first.close()
    Run.begin(head(numbers(2), "m"), path).close()
    assert len(path.read_bytes().splitlines()) == 1


def test_a_run_that_was_killed_at_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    put(numbers(2), Parrot(), path)
    path.write_bytes(path.read_bytes()[:20])
    assert put(numbers(2), Parrot(), path).result.score == 1
    assert len(Run.read(path).records) == 2
    (tmp_path / "mine").write_text("no line ends here, and it is mine")
    with pytest.raises(BadRequest, match="is no run"):
        put(numbers(2), Parrot(), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "no line ends here, and it is mine"


def test_a_line_that_is_no_answer_is_told_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    put(numbers(3), Parrot(), path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 20 + b"\n", *lines[2:]]))
    with pytest.raises(BadRequest, match=r"run.jsonl, line 3 is no answer of a run: delete that line"):
        Run.read(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("http://a:8000", "/models/1"), ("http://b:8000", "/models/1")),
        (("http://a:8000", "/models/1"), ("http://a:8000", "/models/2")),
        (("http://a:8000", "/models/1", "1f"), ("http://a:8000", "/models/1", "2e")),
    ],
)
def test_a_run_is_not_gone_on_with_elsewhere_or_with_something_else_behind_the_name(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    path = tmp_path / "run.jsonl"
    Run.begin(head(numbers(2), "m", *before), path).close()
    with pytest.raises(BadRequest, match=r"another run: its (base_url|served|composition .*) is .* --out"):
        Run.begin(head(numbers(2), "m", *after), path)
    Run.begin(head(numbers(2), "m", before[0]), path).close()  # where it is not told, it is not compared
    assert Run.read(path).head.served == before[1]


@pytest.mark.anyio
async def test_what_a_server_serves_is_asked() -> None:
    async with simulator() as sim:
        assert await what_is_served(sim.url, "sim") == ("sim", None)
        assert await what_is_served(f"{sim.url}/v1", "other") == (None, None)
    assert await what_is_served("http://127.0.0.1:1", "sim") == (None, None)


@asynccontextmanager
async def listing(status: int, body: bytes) -> AsyncIterator[str]:
    """A server that answers every GET so."""

    async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(status, body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(said, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("listed", "behind"),
    [
        (b'{"data": [{"id": "m", "version": "demo@7", "root": "/x"}, {"id": "n", "root": "/y"}]}', ("demo@7", None)),
        (b'{"data": [{"id": "m", "version": "demo@7", "composition": "ab"}]}', ("demo@7", "ab")),
        (b'{"data": [{"id": "n", "root": "/y"}, {"id": "m"}]}', (None, None)),
        (b'{"data": []}', (None, None)),
        (b'{"data": [7]}', (None, None)),
        (b"<html>", (None, None)),
    ],
)
async def test_what_is_behind_a_name_is_known_as_far_as_the_server_says(
    listed: bytes, behind: tuple[str | None, str | None]
) -> None:
    async with listing(200, listed) as url:
        assert await what_is_served(url, "m") == behind


@pytest.mark.anyio
async def test_a_wrong_key_is_known_before_anything_is_asked() -> None:
    async with listing(401, b'{"error": "Unauthorized"}') as url:
        with pytest.raises(EngineRefused, match="Unauthorized"):
            await what_is_served(url, "m")


@pytest.mark.parametrize("text", ["", "hello\n", "{}\n", '{"task": 1}\n', "[1]\n"])
def test_what_is_no_run_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(BadRequest, match="is no run"):
        Run.read(path)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot write the run"):
        put(numbers(1), Parrot(), tmp_path / "none" / "run.jsonl")
    os.mkfifo(tmp_path / "pipe")
    for no_file in (tmp_path / "pipe", Path("/dev/full")):
        with pytest.raises(BadRequest, match="no file that can be read again"):
            put(numbers(1), Parrot(), no_file)
    with pytest.raises(BadRequest, match="cannot read the run"):
        Run.read(tmp_path / "none")


def test_a_run_that_is_worse_on_its_own_items_is_a_regression() -> None:
    before, after = put(numbers(60), Parrot(wrong_from(50))), put(numbers(60), Parrot(wrong_from(40)))
    found = compare(before, after)
    assert (found.before.score, found.after.score) == (50 / 60, 40 / 60)
    assert found.difference.mean == pytest.approx(-10 / 60)
    assert found.verdict == "regression"
    assert compare(after, before).verdict == "improvement"
    assert compare(before, before).verdict == "no difference shown"


def test_one_item_of_many_shows_no_difference() -> None:
    found = compare(put(numbers(60), Parrot()), put(numbers(60), Parrot(wrong_from(59))))
    assert found.difference.mean < 0
    assert found.verdict == "no difference shown"


def test_four_flips_of_a_hundred_are_no_regression() -> None:
    """The bootstrap's interval leaves zero outside; McNemar's exact test gives 0.125."""
    found = compare(put(numbers(100), Parrot()), put(numbers(100), Parrot(wrong_from(96))))
    assert found.difference.interval.high < 0
    assert found.verdict == "no difference shown"


def test_items_are_paired_whatever_order_they_came_in(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run = put(numbers(20), Parrot(wrong_from(10)), path)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"".join(reversed(rest)))
    assert compare(run, Run.read(path)).difference.interval == (0, 0)


def test_runs_that_cannot_be_compared_are_refused() -> None:
    whole = put(numbers(8), Parrot())
    with pytest.raises(BadRequest, match="not of the same task"):
        compare(whole, put(numbers(9), Parrot()))
    partial = Run(whole.head, {record.id: record for record in whole.records[:7]})
    for pair in ((whole, partial), (partial, whole)):
        with pytest.raises(BadRequest, match="1 items were not asked yet"):
            compare(*pair)
    failed = put(numbers(8), Parrot(failing(0)))
    with pytest.raises(BadRequest, match="flatter the second"):
        compare(failed, whole)
    assert compare(whole, failed).difference.mean == -1 / 8


def test_fewer_items_than_can_show_a_difference_are_not_compared() -> None:
    """Six that are all worse are a regression; of five nothing could be."""
    assert compare(put(numbers(6), Parrot()), put(numbers(6), Parrot(wrong_from(0)))).verdict == "regression"
    with pytest.raises(BadRequest, match="at least 6 items are needed"):
        compare(put(numbers(5), Parrot()), put(numbers(5), Parrot(wrong_from(0))))


async def killed_once(folder: Path) -> tuple[int, int, int]:
    """Lines when it was killed, lines at the end, and requests that the engine has seen."""
    questions, out = folder / "task.jsonl", folder / "run.jsonl"
    rows = [json.dumps({"prompt": f"Question {n}?", "answer": "yes"}) for n in range(24)]
    questions.write_text("\n".join(rows))
    penstock = str(Path(sys.executable).parent / "penstock")
    async with simulator(itl_s=0.01) as sim:
        command = [penstock, "eval", str(questions), "--model", "sim", "--base-url", sim.url, "--out", str(out)]
        first = await asyncio.create_subprocess_exec(*command, "--concurrency", "2", stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            while not out.exists() or out.read_bytes().count(b"\n") < 6:
                await asyncio.sleep(0.01)
        first.kill()
        await first.communicate()
        before = out.read_bytes().count(b"\n") - 1
        second = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        await second.communicate()
        assert second.returncode == 0
        asked = [request for request in sim.requests if request.path == "/v1/chat/completions"]
        return before, len(Run.read(out).records), len(asked)


def test_a_killed_run_asks_only_the_rest(tmp_path: Path) -> None:
    before, after, requests = asyncio.run(killed_once(tmp_path))
    assert 5 <= before < after == 24
    assert 24 <= requests <= 24 + 2  # what was under way when it was killed is asked twice


@pytest.mark.parametrize("family", ["one_passage", "tool_call", "extraction", "react"])
def test_the_engine_answers_as_transformers_does(exact: Served, family: str) -> None:
    """The one count through the served model, the other over the exported weights: the same items are right."""
    items = 12

    async def served() -> Run:
        asked = task(family, items)
        run = Run.begin(head(asked, "demo"), None)
        replica = Replica.at("exact", exact.url)
        replica.set_ready(True)
        try:
            await ask_all(asked, OpenAIChat(Pool("exact", [replica], 0)), run)
        finally:
            replica.close()
        return run

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    here = ask(model, PreTrainedTokenizerFast.from_pretrained(FOLDER), held_out(family, items))
    there = {record.id: record for record in asyncio.run(served()).records}
    assert [one.exact for one in here] == [bool(there[f"{family}/{index}"].score) for index in range(items)]
    assert sum(one.exact for one in here) >= items // 2
    assert not any(record.error for record in there.values())
