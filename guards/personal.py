"""Personal data that has a form of its own: numbers, addresses of mail and of machines.

Each kind is as narrow as its standard lets it be: checksums are computed, lengths and ranges looked up. What has no
form (names, streets, places, organizations) no expression finds; docs/guards.md says what to attach for it.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Sequence

from guards.patterns import Pattern, detectors
from guards.spans import Detector

# How many digits a card's number has, by how it begins (ISO/IEC 7812; the ranges as the networks publish them).
CARDS: Sequence[tuple[int, int, range]] = (
    (4, 4, range(13, 20)),  # Visa
    (51, 55, range(16, 17)),  # Mastercard
    (2221, 2720, range(16, 17)),
    (34, 34, range(15, 16)),  # American Express
    (37, 37, range(15, 16)),
    (300, 305, range(14, 20)),  # Diners Club
    (309, 309, range(14, 20)),
    (36, 36, range(14, 20)),
    (38, 39, range(14, 20)),
    (6011, 6011, range(16, 20)),  # Discover
    (644, 659, range(16, 20)),
    (3528, 3589, range(16, 20)),  # JCB, and its old numbers
    (1800, 1800, range(15, 16)),
    (2131, 2131, range(15, 16)),
    (62, 62, range(16, 20)),  # UnionPay
    (81, 81, range(16, 20)),
    (50, 50, range(12, 20)),  # Maestro
    (56, 58, range(12, 20)),
    (60, 69, range(12, 20)),
    (2200, 2205, range(16, 20)),  # Mir
    (82, 82, range(16, 17)),  # RuPay
)

# Characters of an IBAN by its country (the IBAN registry of ISO 13616, SWIFT).
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}

# Country calling codes (ITU-T E.164, assigned ones): one digit, two, else three.
CALLING_CODES = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|21[1-3689]|22\d|23\d|24\d|25[0-8]|26\d|29[01789]|35\d|37\d|38[0-35-79]|42[013]"
    r"|50\d|59\d|67[02-9]|68[0-35-9]|69[0-2]|80[08]|85[02356]|87[0-38]|88[0-36]|88[68]|96[0-8]|97[0-79]|99[2-68]"
)


def digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = [int(digit) * (1 + i % 2) for i, digit in enumerate(reversed(number))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def card(text: str, _: str) -> int:
    return shortened(text, lambda part: is_card(digits(part)))


def is_card(number: str) -> bool:
    return any(
        low <= int(number[: len(str(low))]) <= high and len(number) in lengths for low, high, lengths in CARDS
    ) and luhn(number)


def shortened(text: str, valid: Callable[[str], bool]) -> int:
    """How long the longest beginning is that is valid, of those that end where a group of characters ends."""
    ends = [len(text), *(match.start() for match in reversed([*re.finditer("[ -]", text)]))]
    return next((end for end in ends if valid(text[:end])), 0)


def iban(text: str, _: str) -> int:
    return shortened(text, lambda part: is_iban(re.sub("[ -]", "", part).upper()))


def is_iban(account: str) -> bool:
    """ISO 13616: the country's length, and 1 modulo 97."""
    if len(account) != IBAN_LENGTHS.get(account[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1


def ssn(text: str, _: str) -> int:
    """Of the United States: areas 000, 666 and above 899, group 00 and serial 0000 are never given out."""
    area, group, serial = (number := digits(text))[:3], number[3:5], number[5:]
    given = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return len(text) if given else 0


def email(text: str, _: str) -> int:
    """RFC 5321: 64 characters before the @ (which the expression counts), 255 behind it; no two dots in a row."""
    local, _, domain = text.rpartition("@")
    return len(text) if len(domain) <= 255 and ".." not in local and not local.endswith(".") else 0


def international(text: str, _: str) -> int:
    """E.164: at most 15 digits, the country's first."""
    number = digits(text).removeprefix("00") if text.startswith("00") else digits(text)
    return len(text) if 8 <= len(number) <= 15 and CALLING_CODES.match(number) else 0


def national(text: str, _: str) -> int:
    date = re.match(r"\d\d([./-])\d\d\1\d{4}", text)
    return len(text) if 9 <= len(digits(text)) <= 11 and not date else 0


def announced(text: str, _: str) -> int:
    return len(text) if 7 <= len(digits(text)) <= 15 else 0


def ip(text: str, _: str) -> int:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    return len(text) if any(map(str.isdigit, text)) else 0


LABEL = r"[0-9A-Za-z\x80-\xff](?:[0-9A-Za-z\x80-\xff-]{0,61}[0-9A-Za-z\x80-\xff])?"
OCTETS = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}"

PATTERNS = (
    Pattern("credit_card", r"\b(?:[0-9]{12,19}|[0-9]{3,6}(?:[ -][0-9]{3,7}){2,4})\b", card),  # `1 2 3 4 ...` is a list
    Pattern("iban", r"(?i)\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}\b", iban),
    Pattern("us_ssn", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", ssn),
    Pattern("us_ssn", r"\b[0-9]{3} [0-9]{2} [0-9]{4}\b", ssn),
    Pattern(
        "us_ssn",
        r"(?i)\b(?:ssn|social security(?: number| no\.?| #)?)(?: is)?[ :#=]{0,3}([0-9]{9})\b",
        ssn,
        part=1,
    ),
    Pattern(
        "email",
        rf"[0-9A-Za-z_\x80-\xff+][0-9A-Za-z\x80-\xff.!#$%&*+^_~'-]{{0,63}}@(?:{LABEL}\.){{1,5}}[A-Za-z]{{2,24}}\b",
        email,
    ),
    Pattern("ip_address", rf"\b{OCTETS}\b", ip),
    Pattern(
        "ip_address",
        rf"(?:\b[0-9A-Fa-f]{{1,4}}:|\B:)(?:[0-9A-Fa-f]{{0,4}}:){{1,6}}(?:[0-9A-Fa-f]{{1,4}}|{OCTETS})\b",
        ip,
    ),
    Pattern("phone", r"(?:\+|\b00)[1-9](?:[ .()/-]{0,3}[0-9]){6,15}(?: ?(?:x|ext\.?) ?[0-9]{1,6})?\b", international),
    Pattern(
        "phone",
        r"(?:\b1[ .-])?(?:\b[2-9][0-9]{2}[ .-]|\([2-9][0-9]{2}\) ?)[2-9][0-9]{2}[ .-][0-9]{4}"
        r"(?: ?(?:x|ext\.?) ?[0-9]{1,6})?\b",
    ),
    Pattern("phone", r"\b0[1-9][0-9]{0,3}(?:[ ./-][0-9]{2,4}){2,4}\b", national),
    Pattern(
        "phone",  # any form, where it is said what it is
        r"(?i)\b(?:phone|telephone|tel|mobile|cell|fax|(?:call|text|reach|ring|phone) (?:me|us|him|her|them) (?:at|on))"
        r"(?: (?:number|no\.?|is))?[ .:#]{1,3}([0-9+(][0-9 ()./-]{5,18}[0-9])\b",
        announced,
        part=1,
    ),
)
KINDS = tuple(dict.fromkeys(pattern.kind for pattern in PATTERNS))


def personal(kinds: Collection[str] = KINDS) -> Sequence[Detector]:
    return detectors([pattern for pattern in PATTERNS if pattern.kind in kinds])
