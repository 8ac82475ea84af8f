"""Secrets: keys, tokens and passwords, by rules in the format of gitleaks.

A rule's expression, its entropy (Shannon, bits per character, of the secret), `secretGroup` and allowlists mean what
they mean to gitleaks. What looks at files does not apply: rules with a `path` and allowlists that need one are left
out, and a line is no more than the match. A keyword counts if it stands in the match: in a stream what comes later
cannot be waited for. What to look for first is told from the expressions themselves (`heads.py`).
"""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import re2

from guards.beginnings import shortest
from guards.patterns import FIRST_GROUP, Pattern, detectors
from guards.spans import Detector
from penstock.errors import ConfigError

RULES = Path(__file__).with_name("secrets.toml")
ENDLESS = ("private_key", "jwt")  # longer than repeats are counted: of these our rules stand beside any others


def secrets(rules: Path = RULES) -> Sequence[Detector]:
    """By the rules of this file, or of gitleaks' own. Raises ConfigError."""
    try:
        return detectors(patterns(rules))
    except ValueError as error:
        raise ConfigError(f"the rules of {rules} are too many for one search: {error}") from error


def patterns(rules: Path = RULES) -> list[Pattern]:
    try:
        content = tomllib.loads(rules.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"rules for secrets cannot be read from {rules}: {error}") from error
    everywhere = [Allowed.of(content["allowlist"])] if "allowlist" in content else []
    everywhere += (Allowed.of(allowed) for allowed in content.get("allowlists", ()))
    found = [
        _pattern(rule, everywhere, rules) for rule in content.get("rules", ()) if "regex" in rule and "path" not in rule
    ]
    if not found:
        raise ConfigError(f"{rules} has no [[rules]] with a regex")
    return found if rules == RULES else [*found, *(pattern for pattern in patterns() if pattern.kind in ENDLESS)]


def _pattern(rule: Mapping[str, Any], everywhere: Sequence["Allowed"], file: Path) -> Pattern:
    try:
        tail = "".join(c for c in map(chr, range(128)) if "tail" in rule and re.match(f"[{rule['tail']}]", c))
        pattern = Pattern(
            str(rule["id"]).replace("-", "_"),
            rule["regex"],
            _check(rule, everywhere),
            part=rule.get("secretGroup", FIRST_GROUP),
            tail=tail,
            until=rule.get("until", ""),
            greedy=True,
        )
        if not shortest(pattern.node):
            raise ValueError("its regex matches the empty text, too")
        groups = pattern.compiled.groups
        assert pattern.beginning  # what cannot be made of it is told here, with its id
    except (KeyError, TypeError, ValueError, re.error, re2.error) as error:
        raise ConfigError(f"rule {rule.get('id', '?')!r} of {file} cannot be used: {error}") from error
    if pattern.part > groups:
        raise ConfigError(f"rule {rule['id']!r} of {file}: secretGroup is {pattern.part}, there are {groups} groups")
    return pattern


def _check(rule: Mapping[str, Any], everywhere: Sequence["Allowed"]) -> Callable[[str, str], int]:
    allowed = [*everywhere, *(Allowed.of(each) for each in rule.get("allowlists", ()))]
    if "allowlist" in rule:
        allowed.append(Allowed.of(rule["allowlist"]))
    least = float(rule.get("entropy", 0))
    keywords = [keyword.lower() for keyword in rule.get("keywords", ())]

    def check(secret: str, match: str) -> int:
        if least and entropy(secret) <= least:
            return 0
        lower = match.lower()
        if keywords and not any(keyword in lower for keyword in keywords):
            return 0
        return 0 if any(each.allows(secret, match) for each in allowed) else len(secret)

    return check


@dataclass(frozen=True)
class Allowed:
    """What is no secret though it looks like one."""

    expressions: Sequence[Any]
    words: Sequence[str]
    both: bool
    of_secret: bool

    @staticmethod
    def of(table: Mapping[str, Any]) -> "Allowed":
        both = table.get("condition", "OR").upper() in ("AND", "&&")
        if both and (table.get("paths") or table.get("commits")):
            return Allowed((), (), False, True)
        return Allowed(
            [re2.compile(expression) for expression in table.get("regexes", ())],
            [word.lower() for word in table.get("stopwords", ())],
            both,
            table.get("regexTarget", "secret") == "secret",
        )

    def allows(self, secret: str, match: str) -> bool:
        looked_at, lower = secret if self.of_secret else match, secret.lower()
        by_expression = (bool(expression.search(looked_at)) for expression in self.expressions)
        by_word = (word in lower for word in self.words)
        if not self.both:
            return any(by_expression) or any(by_word)
        return bool(self.expressions or self.words) and (
            (not self.expressions or any(by_expression)) and (not self.words or any(by_word))
        )


def entropy(text: str) -> float:
    """Bits per character (Shannon 1948): `abab` -> 1."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values()) + 0.0
