"""What every ended request leaves: a line of the access log, and its figures."""

import json

import pytest

from penstock import metrics
from penstock.log import Lines
from serving.access import Access

pytestmark = pytest.mark.anyio


def written_to(lines: list[str], worker: int | None = None) -> Lines:
    to = Lines()
    to.write, to.worker = lines.append, worker
    return to


async def test_a_served_request_is_a_line_of_json() -> None:
    lines: list[str] = []
    access = Access(written_to(lines, worker=1))
    access.ended("req_1", "POST", "/v1/chat/completions", 'odd "name"', 200, 0.5, gone=True)
    access.flush()
    said = json.loads("".join(lines))
    assert said | {"time": ""} == {
        "time": "", "level": "info", "logger": "serving.app", "message": "served", "request_id": "req_1",
        "method": "POST", "route": "/v1/chat/completions", "status": 200, "seconds": 0.5, "model": 'odd "name"',
        "gone": True, "worker": 1,
    }  # fmt: skip


async def test_it_is_counted_before_the_figures_are_read_and_machines_probes_are_not_logged() -> None:
    lines: list[str] = []
    access = Access(written_to(lines))
    metrics.before_snapshots(access.flush)
    before = healthy()
    access.ended("req_2", "GET", "/health", "", 200, 0.5, 0.25)
    assert healthy() == before + 1
    assert "".join(lines) == ""


def healthy() -> float:
    rows = {tuple(labels): values[0] for labels, values in metrics.snapshot()["penstock_requests_total"]}
    return rows.get(("/health", "", "200"), 0.0)
