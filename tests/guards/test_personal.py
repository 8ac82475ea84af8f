"""Numbers and addresses: those that standards give as examples, and those that only look like them."""

import pytest

from guards.hold_back import found
from guards.personal import IBAN_LENGTHS, KINDS, international, is_iban, luhn, personal
from guards.spans import Span

ALL = personal()


def kinds(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in found(ALL, text)]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("credit_card", "4111111111111111"),
        ("credit_card", "4111 1111 1111 1111"),
        ("credit_card", "5555-5555-5555-4444"),
        ("credit_card", "3782 822463 10005"),
        ("credit_card", "6011000990139424"),
        ("credit_card", "30569309025904"),
        ("credit_card", "\uff14111111111111111"),  # a digit of full width
        ("iban", "GB82 WEST 1234 5698 7654 32"),
        ("iban", "DE89370400440532013000"),
        ("iban", "no93 8601 1117 947"),
        ("us_ssn", "536-90-4399"),
        ("us_ssn", "536 90 4399"),
        ("email", "jane.doe+news@mail.example.co.uk"),
        ("email", "j\u00fcrgen@b\u00fccher.example"),
        ("ip_address", "192.168.0.1"),
        ("ip_address", "2001:db8::8a2e:370:7334"),
        ("ip_address", "::1"),
        ("ip_address", "::ffff:10.0.0.1"),
        ("phone", "+44 20 7946 0958"),
        ("phone", "+1-202-555-0143"),
        ("phone", "0049 30 901820"),
        ("phone", "(202) 555-0143"),
        ("phone", "202.555.0143 x204"),
        ("phone", "030 9018 2000"),
    ],
)
def test_what_is_personal_is_found_whole(kind: str, value: str) -> None:
    assert kinds(f"It is {value}, I think.") == [(kind, value)]
    assert kinds(value) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",  # no checksum
        "9111111111111119",  # nobody's range, though the sum is right
        "1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0",
        "GB82 WEST 1234 5698 7654 33",
        "DE8937040044053201300",  # too short for its country
        "000-12-3456 666-12-3456 912-12-3456 123-00-4567 123-45-0000",
        "an @mention, a@b, x..y@, @example.com",
        "999.1.1.1 and v1.2.3.4 and 1.2.3",
        "std::vector at 12:30:45, dead::beef",
        "from 01.02.2003 14 to 2000-04-16 11:34:35",
        "+0 123 456 789, +12",
        "order 4155550132 of 10000000 in 2024 2025 2026",
    ],
)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert kinds(text) == []


def test_a_phone_number_of_any_form_is_found_where_it_is_said_what_it_is() -> None:
    assert kinds("467 3395") == []
    assert found(ALL, "Call me at 467 3395.") == [Span(11, 19, "phone", 0)]


def test_a_number_with_another_behind_it_is_found() -> None:
    assert kinds("4111 1111 1111 1111 1234") == [("credit_card", "4111 1111 1111 1111")]
    assert kinds("DE89 3704 0044 0532 0130 00 AND MORE") == [("iban", "DE89 3704 0044 0532 0130 00")]


def test_kinds_are_chosen() -> None:
    assert {kind for detector in ALL for kind in detector.kinds} == set(KINDS)
    chosen = personal(["email"])
    text = "4111111111111111 or a@b.de"
    assert [span.kind for span in found(chosen, text)] == ["email"]


def test_the_sums_are_those_of_the_standards() -> None:
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("XX82WEST12345698765432")
    assert len(IBAN_LENGTHS) > 80


@pytest.mark.parametrize("text", ["+999 123 45678", "+210 123 45678", "+44 123 45", "+44 1234 5678 9012 345"])
def test_no_country_no_number(text: str) -> None:
    assert not international(text, text)


def test_what_the_docs_say_is_not_seen_is_not() -> None:
    hidden = ["4111\u200b1111\u200b1111\u200b1111", "a%40b.de", "a&#64;b.de", "a (at) b.de", '"john doe"@x.de']
    assert [kinds(text) for text in hidden] == [[]] * len(hidden)
