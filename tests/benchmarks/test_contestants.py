"""How other gateways are named on the command line."""

import pytest

from benchmarks.contestants import given, places

PLACES = places(["http://127.0.0.1:1", "http://127.0.0.1:2"], "/tmp/e.sock", 9)


def test_a_gateway_is_a_name_a_command_and_an_address() -> None:
    one = given("my router=r --to {upstreams} --port {port} --log 'a b'@http://127.0.0.1:{port}", PLACES)
    assert one.name == "my router"
    assert one.command == ["r", "--to", "http://127.0.0.1:1", "http://127.0.0.1:2", "--port", "9", "--log", "a b"]
    assert one.url == "http://127.0.0.1:9"


def test_signs_that_part_the_three_may_stand_in_the_command() -> None:
    one = given('r=FOO=1 --as me@home --set \'{"a": {"b": 1}}\' --uds {socket}@http://127.0.0.1:{port}', PLACES)
    assert one.command == ["FOO=1", "--as", "me@home", "--set", '{"a": {"b": 1}}', "--uds", "/tmp/e.sock"]


@pytest.mark.parametrize("text", ["r", "r=cmd", "=cmd@http://a", "r=@http://a", "r=cmd@127.0.0.1:9"])
def test_what_is_not_written_so_is_told_how_it_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=CMD@URL"):
        given(text, PLACES)


def test_an_unknown_place_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\{prot\}.*\{port\}"):
        given("r=r --port {prot}@http://127.0.0.1:{port}", PLACES)
