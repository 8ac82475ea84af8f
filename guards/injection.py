"""Signs that a text wants to be an instruction to the model: each named, with a weight, and a score of all.

They are signals and no proof. Whoever knows the rules writes around them, and a text about such attacks shows the same
signs: let them flag, and let a classifier decide. Phrases are looked for in the text as a reader sees it: letters of
full width and styled ones as plain ones, nothing that is invisible, entities and percent escapes undone, one space
where there are many; and in what base64 in it hides.
"""

import base64
import binascii
import html
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import re2

from guards.patterns import Pattern, detectors
from guards.spans import Detector

INVISIBLE = re.compile("[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
TAGS = re.compile("[\U000e0000-\U000e007f]+")  # invisible ASCII, Unicode's language tags
# The flags of England, Scotland and Wales are made of tags, too.
FLAGS = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f")
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
# Cyrillic, and Greek that looks Latin.
ALIKE = "\u0400-\u04ff\u0391\u0392\u0395-\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf"
MIXED = re.compile(f"[A-Za-z][{ALIKE}]|[{ALIKE}][A-Za-z]")

OVER = r"(?:ignore|disregard|forget|override|bypass|skip|drop|do not follow|don't follow|stop following)"
EARLIER = r"(?:previous|prior|above|earlier|preceding|foregoing|initial|original|existing|system|your|all|any|every)"
ORDERS = (
    r"(?:instructions?|directions?|prompts?|rules?|guidelines?|commands?|messages?|programming|restrictions?|training)"
)

# name, weight (0 to 1: how much it says by itself), expression on lower-case text
PHRASES = (
    ("override", 0.7, rf"\b{OVER}\b[^.!?\n]{{0,24}}\b{EARLIER}\b[^.!?\n]{{0,24}}\b{ORDERS}\b"),
    ("override", 0.6, r"\b(?:ignore|disregard|forget) (?:everything|all|anything)[^.!?\n]{0,20}\b(?:above|before|said|told|so far)\b"),
    ("new_instructions", 0.5, r"\b(?:your |these are (?:the |your )?)?new (?:instructions|rules|task|system prompt)(?: are| is|:)"),
    ("prompt_leak", 0.6, r"\b(?:reveal|show|print|repeat|output|display|tell me|give me|what (?:is|are|was|were)|leak|dump)\b[^.!?\n]{0,30}\b(?:your|the) (?:(?:system|initial|hidden|secret|original|developer) )+(?:prompt|instructions?|message|rules)\b"),
    ("prompt_leak", 0.5, r"\brepeat (?:all |everything |the (?:words|text) )?(?:of the )?above\b"),
    ("persona", 0.6, r"\byou are (?:now|no longer) [^.!?\n]{0,60}\b(?:unrestricted|unfiltered|uncensored|jailbroken|without (?:any )?(?:restrictions?|limits?|filters?|rules)|an? ai (?:model )?(?:without|with no)|dan|bound by)\b"),
    ("persona", 0.5, r"\b(?:dan mode|do anything now|developer mode (?:enabled|on)|jailbreak mode|god mode enabled|sudo mode|evil (?:confidant|bot))\b"),
    ("persona", 0.4, r"\b(?:pretend|act|roleplay|role-play|imagine)\b[^.!?\n]{0,40}\b(?:no|without|free of|free from) (?:any )?(?:restrictions?|limitations?|filters?|rules|guidelines|ethics|morals|censorship)\b"),
    ("authority", 0.4, r"\bi am (?:your|the) (?:developer|creator|administrator|admin|owner|system)\b|\b(?:openai|anthropic|admin(?:istrator)?|system) override\b"),
    ("system_role", 0.5, r"(?:^|\n) ?(?:#{1,4} ?|\[|<|\*\*)?(?:system|developer)(?: (?:message|prompt|instructions?))?(?:\]|>|\*\*)? ?:"),
    ("refusal_ban", 0.4, r"\b(?:never|do not|don't|must not|cannot|can't) (?:say|refuse|apologi[sz]e|decline|mention|warn)[^.!?\n]{0,40}\b(?:can't|cannot|sorry|unable|as an ai|policy|policies|ethical|refuse|request)\b"),
    ("exfiltration", 0.5, r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]{1,200}[?&][^)\s=]{1,40}=(?:\{|\[|<|%7b)"),
    ("do_not_tell", 0.4, r"\b(?:do not|don't|never) (?:tell|inform|mention (?:this|it) to|alert|let) (?:the )?(?:user|human|anyone|them)\b"),
)  # fmt: skip
COMPILED = tuple((name, weight, re2.compile(expression)) for name, weight, expression in PHRASES)

CONTROL_TOKENS = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|end_of_text|begin_of_text|start_header_id|end_header_id|eot_id|eom_id"
    r"|python_tag|system|user|assistant|end|start|channel|message|return|call|constrain|tool_call|fim_prefix|fim_middle"
    r"|fim_suffix|endofprompt|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|SYSTEM_TOKEN|USER_TOKEN|CHATBOT_TOKEN)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|\[/?(?:AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|SYSTEM_PROMPT)\]"
)
TOKENS = re2.compile(CONTROL_TOKENS)


@dataclass(frozen=True)
class Signal:
    """`weight` is how much it says by itself, of 1. Where several of a name are found, the weightiest is kept."""

    name: str
    weight: float


def control_tokens() -> Sequence[Detector]:
    """Finds what chat templates put between turns, kind `control_token`, in a text that should have none."""
    return detectors([Pattern("control_token", CONTROL_TOKENS)])


def signals(text: str) -> list[Signal]:
    """Of a whole text, one of each name at most, the weightiest first."""
    found: dict[str, float] = {}
    for name, weight in _signals(text):
        found[name] = max(weight, found.get(name, 0))
    return [Signal(name, weight) for name, weight in sorted(found.items(), key=lambda item: -item[1])]


def score(found: Sequence[Signal]) -> float:
    """From 0 to 1: what is left of doubt if each takes its share of it (0.5 and 0.4 -> 0.7)."""
    return 1 - math.prod(1 - signal.weight for signal in found)


def _signals(text: str) -> Iterator[tuple[str, float]]:
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
        yield from _hidden(text)
    plain = as_read(text)
    if TOKENS.search(text) or TOKENS.search(plain):
        yield "control_token", 0.8
    yield from _phrases(plain.lower())
    for blob in BASE64.findall(text):
        if inside := decoded(blob):
            hides = [weight for _, weight in _phrases(as_read(inside).lower())]
            yield from (("base64", max(0.7, weight)) for weight in hides)


def _phrases(text: str) -> Iterator[tuple[str, float]]:
    return ((name, weight) for name, weight, expression in COMPILED if expression.search(text))


def _hidden(text: str) -> Iterator[tuple[str, float]]:
    if TAGS.search(FLAGS.sub("", text)):
        yield "invisible_tags", 0.9
    if sum(1 for _ in re.finditer(rf"(?<=[0-9A-Za-z]){INVISIBLE.pattern}(?=[0-9A-Za-z])", text)) >= 3:
        yield "zero_width", 0.5
    if BIDI.search(text):
        yield "bidi", 0.3
    if MIXED.search(text):
        yield "mixed_scripts", 0.3


def as_read(text: str) -> str:
    if "%" in text or "&" in text:
        text = html.unescape(unquote(text, errors="ignore"))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", TAGS.sub(_visible, text))).replace("\u2019", "'")
    return re.sub(r"[ \t\r\f\v]+", " ", text)


def _visible(tags: re.Match[str]) -> str:
    return "".join(chr(ord(tag) - 0xE0000) for tag in tags[0] if ord(tag) >= 0xE0020)


def decoded(blob: str) -> str:
    """The text that base64 stands for; nothing where it stands for none."""
    body = blob.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        text = base64.b64decode(body[: len(body) // 4 * 4], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return text if text.isprintable() or "\n" in text else ""
