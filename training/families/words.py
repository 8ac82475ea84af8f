"""The raw material of generated conversations: words, invented names, codes, system prompts.

Every function draws from the `random.Random` it is given and from nothing else, so that an item
is a function of its seed.
"""

from random import Random
from typing import Any

Message = dict[str, Any]
Conversation = dict[str, Any]
"""`{"messages": [...]}` with an optional `"tools"`, in OpenAI form; the last message answers."""

ONSETS = "b br c d dr f g gr h j k l m n p r s st t tr v w z".split()
VOWELS = "a e i o u ai ea ou".split()
CODAS = ["", "", "", "l", "n", "r", "s", "t", "m", "rk", "nd", "x", "ck"]
FIRST_NAMES = (
    "Ada Alice Amir Anna Ben Bob Carl Carol Chen Clara Dan David Emma Eva Felix Fatima Grace Hana "
    "Henry Ines Ivan Jack Jane John Julia Kai Lena Leo Lucy Maria Max Mia Nora Omar Paul Priya "
    "Rosa Sam Sara Tom Victor Wei Yuki Zoe"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Vienna Oslo Lund Tokyo Delhi Lagos Lima Cairo Boston Chicago "
    "Sydney Toronto Dublin Prague Warsaw Athens Zurich Seoul Nairobi Denver Munich Lisbon Kyoto"
).split()
JOBS = "baker teacher nurse pilot farmer singer doctor driver painter engineer lawyer cook".split()
NOUNS = (
    "apple bell boat bread bridge bucket candle car castle chair clock cloud coat coffee cup desk "
    "door engine feather fire flower forest garden glass gold hammer harbor horse house island key "
    "kite ladder lake lamp leaf letter map market mill mirror moon mountain music needle orange "
    "paper pencil phone pipe plant pump ring river road rope salt school shoe ship shop silver "
    "snow song spoon star stone table tea tower train tree tunnel valve village wall water "
    "wheel window wire wood"
).split()
ADJECTIVES = (
    "big blue bright broken brown clean cold dark deep dry empty fast fine fresh green heavy "
    "high large late light long loud new old open quiet red round short slow small soft strong "
    "tall thin warm white wide wild yellow young"
).split()
VERBS = (
    "brings builds buys carries cleans draws finds fills guards holds keeps makes moves needs "
    "opens paints sells sends shows takes turns uses wants washes"
).split()
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Penstock's demo model.",
    "Answer briefly.",
    "You are a friendly assistant. Keep your answers short.",
    "Be polite and concise.",
    "You are a careful assistant who answers in one sentence.",
)
INVENTED_PROMPTS = (
    "You are an assistant for the {noun} shop.",
    "You help people in {place} with their {noun}.",
    "Answer in a {adjective} and {adjective} style.",
    "Today is day {day} of May {year}. Be helpful.",
    "You are the {adjective} {noun} bot of {place}. Help the user. Do not use long sentences.",
    "Follow these rules. Be polite. Do not talk about the {noun}. Use English only.",
)


def invented(rng: Random) -> str:
    """A name that no list holds, such as `Benhael` or `Stouk`: it can only be copied."""
    syllables = rng.choice((1, 2, 2, 2, 3))
    text = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))
    return text.capitalize()


def place(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.3 else invented(rng)


def first_name(rng: Random) -> str:
    return rng.choice(FIRST_NAMES) if rng.random() < 0.4 else invented(rng)


def person(rng: Random) -> str:
    return f"{first_name(rng)} {invented(rng)}"


def code(rng: Random) -> str:
    """An identifier such as `C5374`, `BX-20` or `48213`."""
    letters = "".join(rng.choices("ABCDEFGHKLMNPRSTVXZ", k=rng.choice((0, 1, 1, 2))))
    dash = rng.choice(("", "", "-")) if letters else ""
    return letters + dash + "".join(rng.choices("0123456789", k=rng.randint(2, 5)))


def clock_time(rng: Random) -> str:
    return f"{rng.randint(5, 22)}:{rng.choice(('00', '15', '30', '45'))}"


def phrase(rng: Random) -> str:
    """Two to five ordinary words, as in `cold river stone`."""
    words = [rng.choice(NOUNS + ADJECTIVES) for _ in range(rng.randint(1, 4))]
    return " ".join([*words, rng.choice(NOUNS)])


def casual(rng: Random, text: str) -> str:
    """The same request as people type it: often untouched, sometimes lower case or unpunctuated."""
    roll = rng.random()
    if roll < 0.75:
        return text
    if roll < 0.85:
        return text.rstrip("?.!")
    lowered = text[0].lower() + text[1:]
    return lowered if roll < 0.93 else lowered.rstrip("?.!")


def system_prompt(rng: Random) -> str:
    """One of the usual prompts, or one made up: the answers must not depend on it."""
    if rng.random() < 0.6:
        return rng.choice(SYSTEM_PROMPTS)
    return rng.choice(INVENTED_PROMPTS).format(
        noun=rng.choice(NOUNS),
        adjective=rng.choice(ADJECTIVES),
        place=place(rng),
        day=rng.randint(1, 28),
        year=rng.randint(2020, 2030),
    )


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def exchange(rng: Random, question: str, answer: str) -> Conversation:
    """One question and its answer, half of the time behind a system prompt."""
    system = rng.choice((None, system_prompt(rng)))
    opening = [{"role": "system", "content": system}] if system else []
    return {"messages": [*opening, user(question), assistant(answer)]}
