"""How faults are written, and whom they strike."""

import time

import pytest

from engine.sim import Fault, FaultError, parse
from engine.sim.faults import KINDS, read

CHAT = "/v1/chat/completions"


def test_a_fault_is_read_from_words_and_from_json_alike() -> None:
    words = parse("status:status=503,retry_after_s=2,html=true,times=3,path=/v1/*,stream=false,probability=0.5")
    document = {"kind": "status", "status": 503, "retry_after_s": 2, "html": True, "times": 3}
    assert words == read({**document, "path": "/v1/*", "stream": False, "probability": 0.5})
    assert (words.status, words.html, words.stream, words.probability) == (503, True, False, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_shown_as_it_can_be_given_again(kind: str) -> None:
    fault = Fault(kind, times=2, seed=7)
    assert read(fault.document()) == fault


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("ctu", "there is no fault 'ctu', did you mean 'cut'?"),
        ("xyz", "there is no fault 'xyz'; there are refuse, hang, "),
        ("cut:aftr=3", "cut takes after, times, for_s, path, stream, probability, seed; not 'aftr'"),
        ("cut:after", "write after=VALUE"),
        ("cut:after=x", "cut: after must be a whole number, not 'x'"),
        ("cut:after=-1", "cut: after must be from 0 to 1e+09, not -1"),
        ("stall:delay_s=nan", "stall: delay_s must be from 0"),
        ("cut:stream=maybe", "cut: stream must be true or false, not 'maybe'"),
        ("status:status=99", "status: status must be from 200 to 599, not 99"),
    ],
)
def test_what_cannot_be_understood_is_told_with_what_could(words: str, says: str) -> None:
    with pytest.raises(FaultError) as caught:
        parse(words)
    assert says in str(caught.value)


@pytest.mark.parametrize("document", [None, 3, [], {}, {"kind": 3}, {"kind": "cut", "after": {}}])
def test_json_that_is_no_fault_is_refused(document: object) -> None:
    with pytest.raises(FaultError):
        read(document)


def test_a_fault_strikes_so_many_times() -> None:
    fault = Fault("cut", times=2)
    assert [fault.strikes(CHAT, stream=True) for _ in range(4)] == [True, True, False, False]
    assert fault.struck == 2


def test_a_fault_is_over_after_its_time() -> None:
    fault = Fault("cut", for_s=0.05)
    assert fault.strikes(CHAT, stream=True)
    time.sleep(0.06)
    assert not fault.strikes(CHAT, stream=True)


def test_a_fault_strikes_only_the_paths_it_names_and_by_default_those_that_generate() -> None:
    everywhere, health, default = Fault("hang", path="*"), Fault("hang", path="/health"), Fault("hang")
    struck = {
        path: [f.strikes(path, stream=False) for f in (everywhere, health, default)] for path in (CHAT, "/health")
    }
    assert struck == {CHAT: [True, False, True], "/health": [True, True, False]}


def test_a_fault_may_be_for_streams_only_or_for_whole_answers_only() -> None:
    for stream in (True, False):
        assert Fault("status", stream=stream).strikes(CHAT, stream=stream)
        assert not Fault("status", stream=stream).strikes(CHAT, stream=not stream)


def test_a_share_of_requests_is_drawn_the_same_for_the_same_seed() -> None:
    first, second, other = (Fault("hang", probability=0.3, seed=seed) for seed in (1, 1, 2))
    drawn = [[fault.strikes(CHAT, stream=False) for _ in range(1000)] for fault in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 250 < sum(drawn[0]) < 350
