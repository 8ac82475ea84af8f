r"""All beginnings of what a regular expression matches, as a regular expression.

    beginnings(parse(r"sk-\d{4}"))  ->  (?:s(?:k(?:-\d{0,4})?)?)?

Beginnings of `xyz` are those of `x`, `x` with those of `y`, and `xy` with those of `z`; nested from the right this is
at most twice as long as the expression for each level of groups in it. What is not yet known counts as still possible:
an assertion (`\b`, `$`) at the end is left out, since the next character decides it. So the leftmost match of
`(?:beginnings)\z` tells from where on a text could still become, lengthen or unmake a match: before it, nothing that
follows matters. It costs little, too: RE2 reads what ends in `\z` backwards from the end.

The syntax is RE2's (https://github.com/google/re2/wiki/Syntax). Pieces of the source are kept as they are written, only
the structure is read; inline flags are moved to what they apply to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ASSERTIONS = {"^", "$", r"\A", r"\z", r"\b", r"\B"}
TOGETHER = 1000
NESTED = 16
QUANTIFIERS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass(frozen=True, slots=True)
class Atom:
    """One character of some set, or with `width` 0 an assertion."""

    source: str
    width: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Alternatives, each a row of nodes. `opening` is `(` where the group captures, `(?P<name>` where by name."""

    rows: Sequence[Sequence["Node"]]
    opening: str = "(?:"


@dataclass(frozen=True, slots=True)
class Repeat:
    node: "Node"
    least: int
    most: int | None
    lazy: bool = False


Node = Atom | Group | Repeat


def beginnings(node: Node) -> str:
    match node:
        case Atom(source, width):
            return f"{source}?" if width else ""
        case Repeat(Atom(width=0)) | Repeat(most=0):
            return ""
        case Repeat(Atom(source), _, most):
            return source + _times(0, most)
        case Repeat(inner, _, 1):
            return beginnings(inner)
        case Repeat(inner, _, most):
            return written(inner, captures=False) + _times(0, most and most - 1) + beginnings(inner)
        case Group(rows):
            return f"(?:{'|'.join(map(_of_row, rows))})"


def _of_row(row: Sequence[Node]) -> str:
    rest = ""
    for node in reversed(row):
        own = beginnings(node)
        if not rest:
            rest = own
        elif isinstance(node, Atom):
            rest = f"(?:{node.source}{rest})?"
        elif isinstance(node, Repeat) and isinstance(node.node, Atom) and not node.least:
            rest = own + rest
        else:
            rest = f"(?:{own}|{written(node, captures=False)}{rest})"
    return rest


def written(node: Node, captures: bool = True) -> str:
    """The expression itself."""
    match node:
        case Atom(source):
            return source
        case Repeat(inner, least, most, lazy):
            return written(inner, captures) + _times(least, most) + "?" * lazy
        case Group(rows, opening):
            options = "|".join("".join(written(part, captures) for part in row) for row in rows)
            return f"{opening if captures else '(?:'}{options})"


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def longest(node: Node) -> int | None:
    """The characters of its longest match, None where there is no bound."""
    match node:
        case Atom(_, width):
            return width
        case Repeat(inner, _, most):
            each = longest(inner)
            return 0 if each == 0 else None if each is None or most is None else each * most
        case Group(rows):
            lengths = [longest(part) for row in rows for part in row]
            if None in lengths:
                return None
            return max(sum(longest(part) or 0 for part in row) for row in rows)


def shortest(node: Node) -> int:
    match node:
        case Atom(_, width):
            return width
        case Repeat(inner, least):
            return least * shortest(inner)
        case Group(rows):
            return min(sum(map(shortest, row)) for row in rows)


def bounded(node: Node, most: int) -> Node:
    """The same with no repeat beyond `most` times, where it need not be. Repeats in repeats are fewer: RE2 takes no
    more than 1000 of them together."""
    match node:
        case Repeat(inner, least, now, lazy):
            limit = NESTED if now is None and _repeats(inner) else most
            limit = max(least, limit if now is None else min(now, limit))
            return Repeat(bounded(inner, max(1, min(most, TOGETHER // max(limit, 1)))), least, limit, lazy)
        case Group(rows, opening):
            return Group([[bounded(part, most) for part in row] for row in rows], opening)
        case _:
            return node


def _repeats(node: Node) -> bool:
    match node:
        case Repeat(inner, _, most):
            return most is None or most > 1 or _repeats(inner)
        case Group(rows):
            return any(_repeats(part) for row in rows for part in row)
        case _:
            return False


def parse(pattern: str) -> Group:
    """Raises ValueError for what is not understood; what is wrong with an expression, RE2 says better."""
    parser = _Parser(pattern)
    group = Group(parser.rows(""))
    if parser.at < len(pattern):
        raise ValueError(f"unmatched ) at {parser.at} in {pattern!r}")
    return group


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def rows(self, flags: str) -> list[list[Node]]:
        """Alternatives up to the end of the group. Flags that are set inside hold up to there."""
        rows: list[list[Node]] = [[]]
        while self.at < len(self.pattern) and self.pattern[self.at] != ")":
            if self._skip("|"):
                rows.append([])
            elif self._skip("(?"):
                opening, flags_inside, scoped = self._opening(flags)
                if scoped:
                    rows[-1].append(self._repeated(self._group(opening, flags_inside)))
                else:
                    flags = flags_inside
            elif self._skip("("):
                rows[-1].append(self._repeated(self._group("(", flags)))
            elif self._skip(r"\Q"):
                end = self.pattern.find(r"\E", self.at)
                quoted = self.pattern[self.at : end if end >= 0 else None]
                self.at += len(quoted) + (2 if end >= 0 else 0)
                rows[-1] += (Atom(_flagged(_escaped(character), flags)) for character in quoted)
                if quoted:
                    rows[-1][-1] = self._repeated(rows[-1][-1])
            else:
                rows[-1].append(self._repeated(self._atom(flags)))
        return rows

    def _skip(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _group(self, opening: str, flags: str) -> Group:
        group = Group(self.rows(flags), opening)
        if not self._skip(")"):
            raise ValueError(f"missing ) in {self.pattern!r}")
        return group

    def _opening(self, flags: str) -> tuple[str, str, bool]:
        """What stands behind `(?`: how the group opens, its flags, whether there is a group at all."""
        if self._skip("P<") or self._skip("<"):
            end = self.pattern.index(">", self.at) + 1
            name, self.at = self.pattern[self.at : end], end
            return f"(?P<{name}", flags, True
        on = True
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            self.at += 1
            if character in ":)":
                return "(?:", flags, character == ":"
            if character == "-":
                on = False
            elif character in "ims":
                flags = flags.replace(character, "") + character * on
            else:
                break
        raise ValueError(f"(?{character} in {self.pattern!r} is not understood")

    def _repeated(self, node: Node) -> Node:
        times = self._quantifier()
        if not times:
            return node
        lazy = self._skip("?")
        if self._quantifier():
            raise ValueError(f"two repeats at {self.at} in {self.pattern!r}")
        return Repeat(node, *times, lazy)

    def _quantifier(self) -> tuple[int, int | None] | None:
        character = self.pattern[self.at : self.at + 1]
        if character in QUANTIFIERS:
            self.at += 1
            return QUANTIFIERS[character]
        if character == "{":
            inside, closed, _ = self.pattern[self.at + 1 :].partition("}")
            least, comma, most = inside.partition(",")
            if closed and least.isdecimal() and (not most or most.isdecimal()):
                self.at += len(inside) + 2
                return int(least), int(most) if most else None if comma else int(least)
        return None

    def _atom(self, flags: str) -> Atom:
        if self._quantifier():
            raise ValueError(f"nothing to repeat at {self.at} in {self.pattern!r}")
        source = "".join(self._source())
        if source in ASSERTIONS:
            return Atom(_flagged(source, flags), 0)
        if source == r"\C":
            raise ValueError(rf"\C in {self.pattern!r} is not understood")
        return Atom(_flagged(source, flags))

    def _source(self) -> Iterator[str]:
        """One character, escape or class."""
        character = self._next()
        if character == "{":
            character = r"\{"
        yield character
        if character == "\\":
            yield from self._escape()
        elif character == "[":
            yield "^" if self._skip("^") else ""
            yield r"\]" if self._skip("]") else ""
            while (character := self._next()) != "]":
                if character == "[" and self.pattern[self.at : self.at + 1] == ":":
                    end = self.pattern.index(":]", self.at) + 2
                    character, self.at = "[" + self.pattern[self.at : end], end
                yield character
                if character == "\\":
                    yield self._next()
            yield "]"

    def _escape(self) -> Iterator[str]:
        character = self._next()
        yield character
        if character in "pPx" and self.pattern[self.at : self.at + 1] == "{":
            end = self.pattern.index("}", self.at) + 1
            yield self.pattern[self.at : end]
            self.at = end
        elif character in "pP":
            yield self._next()
        elif character == "x":
            yield self._next()
            yield self._next()
        elif character in "01234567":
            while self.pattern[self.at : self.at + 1] in set("01234567"):
                yield self._next()

    def _next(self) -> str:
        if self.at >= len(self.pattern):
            raise ValueError(f"{self.pattern!r} ends too early")
        self.at += 1
        return self.pattern[self.at - 1]


def _flagged(source: str, flags: str) -> str:
    used = "".join(sorted(flags))
    if source.startswith("\\") and source[1:] in {"b", "B", "A", "z"}:
        used = ""
    if len(source) == 1 and not source.isalpha():
        used = "".join(flag for flag in used if (flag, source) in {("m", "^"), ("m", "$"), ("s", ".")})
    return f"(?{used}:{source})" if used else source


def _escaped(character: str) -> str:
    return character if character.isalnum() or character == "_" or ord(character) > 127 else "\\" + character
