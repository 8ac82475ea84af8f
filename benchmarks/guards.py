"""What the detectors find and what they cost, on data of your own or of others, each given by its path:

    python -m benchmarks.guards --personal synth_dataset_v2.json --safe xstest_prompts.csv [--rules gitleaks.toml]

`--personal` is a file of presidio-research's shape (texts with labelled spans), `--safe` one of XSTest's (prompt,
label). Secrets are drawn (`made_secrets.py`). A span counts as found if one of its kind overlaps it, as a false alarm
if it overlaps none. Costs are CPU times of this process: of the input 4 characters count as a token, of the stream a
piece does, which is of 1 to 4 characters.
"""

import csv
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from benchmarks.figures import markdown
from benchmarks.made_secrets import MADE, NEGATIVES
from guards.hold_back import HoldBack, found
from guards.injection import score, signals
from guards.patterns import Pattern, detectors
from guards.personal import PATTERNS
from guards.secrets import RULES, patterns
from guards.spans import Detector, Span

KINDS = {
    "CREDIT_CARD": "credit_card",
    "EMAIL_ADDRESS": "email",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip_address",
    "PHONE_NUMBER": "phone",
    "US_SSN": "us_ssn",
}
OF_MODELS = ("PERSON", "STREET_ADDRESS", "GPE", "ORGANIZATION")
EACH = 40  # secrets of each format
FIXED = 128  # characters that a filter holds that knows no beginnings
CHARACTERS = 200_000  # of text that costs are measured on


@dataclass(frozen=True)
class Text:
    text: str
    spans: Sequence[tuple[int, int, str]]


def read_personal(file: Path) -> list[Text]:
    return [
        Text(
            row["full_text"],
            [(span["start_position"], span["end_position"], span["entity_type"]) for span in row["spans"]],
        )
        for row in json.loads(file.read_text())
    ]


def personal_table(texts: Sequence[Text], filters: Sequence[Detector]) -> str:
    labelled, hit, false = Counter[str](), Counter[str](), Counter[str]()
    for text in texts:
        spans = found(filters, text.text)
        for start, end, label in text.spans:
            labelled[label] += 1
            hit[label] += any(overlaps(span, start, end) and span.kind == KINDS.get(label) for span in spans)
        for span in spans:
            right = (overlaps(span, start, end) and KINDS.get(label) == span.kind for start, end, label in text.spans)
            false[span.kind] += not any(right)
    rows = [
        (label, kind, n, hit[label], share(hit[label], n), false[kind], share(hit[label], hit[label] + false[kind]))
        for label, n in sorted(labelled.items())
        if (kind := KINDS.get(label, "-"))
    ]
    unseen = sum(labelled[label] for label in OF_MODELS)
    return (
        table(["label", "kind", "spans", "found", "recall", "false", "precision"], rows)
        + f"\n\nOf {labelled.total()} spans {unseen} ({share(unseen, labelled.total())}) are {', '.join(OF_MODELS)}: no"
        + " expression finds them."
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return markdown(headings, [[str(cell) for cell in row] for row in rows])


def overlaps(span: Span, start: int, end: int) -> bool:
    return span.start < end and span.end > start


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def secrets_table(filters: Sequence[Detector]) -> str:
    random = Random(5)
    gone = {name: sum(is_gone(filters, make(random)) for _ in range(EACH)) for name, make in MADE.items()}
    seen = {
        name: sum(bool(found(filters, in_prose(make(random)))) for _ in range(EACH)) for name, make in NEGATIVES.items()
    }
    missed = ", ".join(f"{name} {EACH - n}" for name, n in gone.items() if n < EACH) or "-"
    false = ", ".join(f"{name} {n}" for name, n in seen.items() if n) or "-"
    return table(
        ["", "formats", "texts", "masked", "share", "which not, of the look-alikes which"],
        [
            ("secrets", len(MADE), total := len(MADE) * EACH, n := sum(gone.values()), share(n, total), missed),
            (
                "look-alikes",
                len(NEGATIVES),
                total := len(NEGATIVES) * EACH,
                n := sum(seen.values()),
                share(n, total),
                false,
            ),
        ],
    )


def is_gone(filters: Sequence[Detector], secret: str) -> bool:
    """Whether nothing of it is left but the words around it: what is longer and has a digit is no word."""
    filtered = HoldBack(filters, lambda span, _: "*")
    text = filtered.feed(in_prose(secret)) + filtered.flush()
    return not any(re.search("[0-9]", word) and word in secret for word in re.findall(r"[A-Za-z0-9+/_-]{12,}", text))


def in_prose(text: str) -> str:
    return f"Here is what you asked for:\n{text}\nLet me know if it works."


def safe_table(file: Path) -> str:
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    by_label: dict[str, list[float]] = {}
    for row in rows:
        by_label.setdefault(row.get("label") or row["type"], []).append(score(signals(row["prompt"])))
    shares = [
        (
            label,
            len(scores),
            *(share(sum(value >= least for value in scores), len(scores)) for least in (0.3, 0.5, 0.7)),
        )
        for label, scores in sorted(by_label.items())
    ]
    return table(["prompts", "number", "score >= 0.3", ">= 0.5", ">= 0.7"], shares)


class FixedHold:
    """What a filter does that knows no beginnings: the last characters stay, whatever they are."""

    def __init__(self, search: Callable[[str], Iterable[tuple[int, int]]]) -> None:
        self._search = search
        self._text = ""

    @property
    def held(self) -> int:
        return len(self._text)

    def feed(self, piece: str) -> str:
        text = self._text + piece
        cut = max(0, len(text) - FIXED)
        for start, end in self._search(text):
            if start < cut < end:
                cut = start
        self._text = text[cut:]
        return text[:cut]


def pieces(text: str) -> list[str]:
    random, cut, at = Random(2), [], 0
    while at < len(text):
        cut.append(text[at : at + random.randint(1, 4)])
        at += len(cut[-1])
    return cut


def cost_rows(name: str, text: str, chosen: Sequence[Pattern]) -> list[tuple[object, ...]]:
    filters = detectors(chosen)
    expressions = [re.compile(pattern.expression, re.ASCII) for pattern in chosen] if name == "personal" else []

    def by_re(text: str) -> Iterable[tuple[int, int]]:
        return [match.span() for expression in expressions for match in expression.finditer(text)]

    def by_re2(text: str) -> Iterable[tuple[int, int]]:
        return [(span.start, span.end) for detector in filters if (span := detector.search(text))]

    whole = timed(lambda: found(filters, text), len(text) / 4)
    rows: list[tuple[object, ...]] = [
        (f"{name}, held by beginnings", whole, *streamed(HoldBack(filters, lambda span, _: None), text)),
        (f"{name}, the last {FIXED} held", "-", *streamed(FixedHold(by_re2), text)),
    ]
    if expressions:
        whole = timed(lambda: by_re(text), len(text) / 4)
        rows.append((f"{name}, the last {FIXED} held, stdlib re", whole, *streamed(FixedHold(by_re), text)))
    return rows


def timed(call: Callable[[], object], tokens: float) -> str:
    call()
    before = time.process_time()
    call()
    return f"{(time.process_time() - before) * 1e6 / tokens:.2f}"


def streamed(filtered: HoldBack | FixedHold, text: str) -> tuple[str, str, int]:
    cut, held = pieces(text), []
    before = time.process_time()
    for piece in cut:
        filtered.feed(piece)
    cpu_s = time.process_time() - before
    for piece in cut:
        filtered.feed(piece)
        held.append(filtered.held)
    return f"{cpu_s * 1e6 / len(cut):.2f}", f"{sum(held) / len(held):.1f}", max(held)


def main(
    personal: Annotated[Path, typer.Option(help="texts with labelled spans, of presidio-research's shape")],
    safe: Annotated[Path | None, typer.Option(help="prompts and labels, of XSTest's shape")] = None,
    rules: Annotated[Path, typer.Option(help="rules for secrets, of gitleaks' format")] = RULES,
) -> None:
    texts = read_personal(personal)
    chosen = patterns(rules)
    prose = "\n".join(text.text for text in texts)[:CHARACTERS]
    print(f"## Personal data\n\n{personal_table(texts, detectors(PATTERNS))}")
    print(f"\n## Secrets, {len(chosen)} rules\n\n{secrets_table(detectors(chosen))}")
    clean = sum(bool(found(detectors(chosen), text.text)) for text in texts)
    print(f"\nIn {len(texts)} texts without secrets: {clean} findings.")
    if safe:
        print(f"\n## Signals of injection in prompts that are none\n\n{safe_table(safe)}")
    rows = cost_rows("personal", prose, PATTERNS) + cost_rows("secrets", prose, chosen)
    rows += cost_rows("both", prose, [*PATTERNS, *chosen])
    print("\n## CPU, ms for 1,000 tokens\n")
    print(table(["", "input", "stream", "characters held", "at most"], rows))


if __name__ == "__main__":
    typer.run(main)
