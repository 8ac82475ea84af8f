r"""The literals that every match of an expression begins with, if it must begin with any.

`\b(?:AKIA|ASIA)[A-Z2-7]{16}` has the heads `akia` and `asia`. Where a head does not stand, there is nothing to look at:
one automaton over the heads of all expressions takes the place of all of them.
"""

from collections.abc import Sequence

from guards.beginnings import Atom, Group, Node, Repeat

MOST = 64
LEAST_CHARACTERS = 2
METACHARACTERS = set("\\[(.^$|?*+{")


def heads(node: Group) -> frozenset[str] | None:
    """In lower case, whether the expression cares or not. None if it may begin with something else."""
    found, _ = _of_rows(node.rows)
    return found if found and min(map(len, found)) >= LEAST_CHARACTERS and len(found) <= MOST else None


def _of_rows(rows: Sequence[Sequence[Node]]) -> tuple[frozenset[str], bool]:
    """What every alternative begins with, and whether that is all of each."""
    each = [_of_row(row) for row in rows]
    return frozenset().union(*(found for found, _ in each)), all(whole for _, whole in each)


def _of_row(row: Sequence[Node]) -> tuple[frozenset[str], bool]:
    so_far = frozenset([""])
    for node in row:
        found, whole = _of_node(node)
        if len(so_far) * len(found) > MOST:
            return so_far, False
        so_far = frozenset(head + more for head in so_far for more in found)
        if not whole:
            return so_far, False
    return so_far, True


def _of_node(node: Node) -> tuple[frozenset[str], bool]:
    match node:
        case Atom(_, 0):
            return frozenset([""]), True
        case Atom(source):
            return _literal(source)
        case Group(rows):
            return _of_rows(rows)
        case Repeat(Atom(source), least, most) if least:
            found, whole = _literal(source)
            return frozenset(character * least for character in found), whole and least == most
        case _:
            return frozenset([""]), False


def _literal(source: str) -> tuple[frozenset[str], bool]:
    if source.startswith("(?"):
        source = source[source.index(":") + 1 : -1]
    if len(source) == 2 and source[0] == "\\" and not source[1].isalnum():
        return frozenset([source[1]]), True
    if len(source) == 4 and source[0] == "[" and source[1].isalpha() and source[1].lower() == source[2].lower():
        return frozenset([source[1].lower()]), True  # [Aa]
    if len(source) == 1 and source not in METACHARACTERS and source.isascii():
        return frozenset([source.lower()]), True
    return frozenset([""]), False


def without_lead(node: Group) -> Group:
    """The same without what may stand before it and need not: `[\\w.-]{0,50}?(?:stripe)` as `(?:stripe)`. Where a group
    of the expression is what is looked for, that changes nothing about the group."""
    return Group([_stripped(row) for row in node.rows], node.opening)


def _stripped(row: Sequence[Node]) -> Sequence[Node]:
    if row and isinstance(row[0], Repeat) and row[0].least == 0 and isinstance(row[0].node, Atom):
        return _stripped(row[1:])
    if row and isinstance(row[0], Group) and len(row[0].rows) == 1 and row[0].opening == "(?:":
        return [without_lead(row[0]), *row[1:]]
    return row
