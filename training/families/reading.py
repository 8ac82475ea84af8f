"""Answers found in the prompt: passages, JSON extraction, labels, copies.

Names, codes and times are drawn anew for every item, so the answers can only be read off the
prompt. A passage answer is the sentence that holds it, followed by the passage's number: copying
a whole sentence is what a small model does best, and it makes the answer checkable.
"""

import json
import re
from random import Random
from typing import NamedTuple

from training.families import handbook, words
from training.families.words import Conversation


class Fact(NamedTuple):
    """A sentence, a question that it answers, what all such questions have in common, the answer in a few words."""

    sentence: str
    question: str
    topic: str
    short: str


NOT_IN_CONTEXT = "The context does not say."
RELATIONS = (
    ("The {thing} in {place} opens at {time}.", "When does the {thing} in {place} open?", "{time}"),
    ("The {thing} in {place} closes at {time}.", "When does the {thing} in {place} close?", "{time}"),
    ("The {thing} in {place} was built in {year}.", "When was the {thing} in {place} built?", "{year}"),
    ("The {thing} in {place} costs {number} crowns.", "How much does the {thing} in {place} cost?", "{number} crowns"),
    ("The {thing} in {place} is run by {person}.", "Who runs the {thing} in {place}?", "{person}"),
    ("The {thing} in {place} is {adjective}.", "What is the {thing} in {place} like?", "{adjective}"),
    ("{key} works as a {job} in {place}.", "What does {key} work as?", "A {job}"),
    ("{key} was born in {place}.", "Where was {key} born?", "{place}"),
    ("{key} was born in {year}.", "When was {key} born?", "{year}"),
    ("{key} likes the {adjective} {thing}.", "What does {key} like?", "The {adjective} {thing}"),
    ("{key} {verb} the {phrase}.", "What does {key} do?", "It {verb} the {phrase}"),
    ("The code of {key} is {code}.", "What is the code of {key}?", "{code}"),
    ("The capital of {key} is {place}.", "What is the capital of {key}?", "{place}"),
    ("The price of the {phrase} is {number} crowns.", "What is the price of the {phrase}?", "{number} crowns"),
    (
        "Error {code} means that the {thing} is {adjective}.",
        "What does error {code} mean?",
        "The {thing} is {adjective}",
    ),
    ("Valve {code} is in {place}.", "Where is valve {code}?", "{place}"),
    ("The {adjective} {thing} {verb} the {noun}.", "What does the {adjective} {thing} do?", "It {verb} the {noun}"),
    ("To reset the {thing}, press {code}.", "How do I reset the {thing}?", "Press {code}"),
    ("The owner of the {phrase} is {person}.", "Who owns the {phrase}?", "{person}"),
    ("The {thing} needs {number} {noun}s.", "What does the {thing} need?", "{number} {noun}s"),
)
CITE = "Which passage says this? {}"
NUMBERED = re.compile(r"^\[(\d+)\] (.+)$", re.MULTILINE)
SENTENCE_ENDS = re.compile(r"(?<=\.) (?=[A-Z])")
ASKING_WAYS = ["{}"] * 4 + ["Please tell me: {}", "Answer from the context. {}"]
GROUNDED_PROMPTS = (
    "Answer from the context only.",
    "Use the context to answer. If it does not hold the answer, say so.",
    "You answer questions about the given passages and cite them.",
    "Answer the question from the passages below and cite them as [1]. If the answer is not "
    "there, say that the context does not say.",
)
LAYOUTS = ["Context:\n{passages}\n\nQuestion: {question}"] * 4 + [
    "Question: {question}\n\nContext:\n{passages}",
    "Context:\n{passages}\n\n{question}",
    "Answer from the context.\n\nContext:\n{passages}\n\nQuestion: {question}",
]
RECORDS = {
    "person": (("name", "person"), ("job", "job"), ("city", "place")),
    "order": (("order_id", "code"), ("item", "noun"), ("quantity", "count")),
    "meeting": (("person", "person"), ("time", "time"), ("room", "code")),
    "reading": (("gate", "place"), ("level", "count"), ("time", "time")),
    "contact": (("name", "person"), ("phone", "phone")),
}
RECORD_TEXTS = {
    "person": "{name} is a {job} in {city}.|In {city} lives a {job} called {name}.|"
    "My friend {name}, who works as a {job}, moved to {city}.",
    "order": "I ordered {quantity} of the {item}, order {order_id}.|Order {order_id}: {quantity} "
    "x {item}.|Please send {quantity} {item}, my order number is {order_id}.",
    "meeting": "Meet {person} at {time} in room {room}.|At {time} there is a meeting with "
    "{person} in {room}.|Room {room}, {time}, {person}.",
    "reading": "At {time} the gate {gate} was at level {level}.|Gate {gate} showed {level} at "
    "{time}.|Level {level} at gate {gate}, taken at {time}.",
    "contact": "Call {name} at {phone}.|{name} has the number {phone}.|The phone of {name} is {phone}.",
}
LOOSE_FIELDS = "title name code color size place owner date author price key label status".split()
EXTRACT_REQUESTS = (
    "Extract {keys} as JSON: {text}|Extract {keys} as JSON.\n\n{text}|{text}\n\nGive me {keys} "
    "as JSON.|Read this text and answer with JSON holding {keys}.\nText: {text}|"
    "Turn this into JSON with the keys {keys}: {text}"
).split("|")
OPINIONS = {
    "positive": "I love this {noun}|The {noun} works very well|What a great {noun}|I am very happy "
    "with the {noun}|The {noun} is excellent|Best {noun} ever|The staff were kind and the {noun} "
    "was perfect|I would buy the {noun} again|A wonderful {adjective} {noun}|It is a good {noun}",
    "negative": "I hate this {noun}|The {noun} broke after a day|What a terrible {noun}|I am very "
    "unhappy with the {noun}|The {noun} is awful|Worst {noun} ever|The staff were rude and the "
    "{noun} was bad|I want my money back for the {noun}|A horrible {adjective} {noun}|"
    "It is a bad {noun}",
}
TICKETS = {
    "billing": "I was charged twice for the {noun}|My invoice is wrong|I want a refund|Why did the "
    "price of the {noun} go up|My card was refused|Please send me the bill for the {noun}",
    "technical": "The {noun} page shows an error|I cannot log in|The app crashes when I open the "
    "{noun}|The {noun} does not start|I get a timeout|The screen stays {adjective}",
    "delivery": "My {noun} has not arrived|Where is my parcel|The {noun} came to the wrong address|"
    "When will the {noun} be here|The box with the {noun} was open|My order is late",
}
LABEL_REQUESTS = (
    "{instruction} {text}|{instruction}\n\n{text}|{text}\n\n{instruction}|{instruction}\nText: {text}"
).split("|")
SENTIMENT_INSTRUCTIONS = (
    "Is this positive or negative?|Classify the sentiment as positive or negative:|"
    "Label the sentiment (positive, negative):|Sentiment, positive or negative?"
).split("|")
TICKET_INSTRUCTIONS = (
    "Is this ticket billing, technical or delivery?|Label this ticket as billing, technical or "
    "delivery:|Which team is this for: billing, technical or delivery?|Classify the ticket "
    "(billing, technical, delivery):"
).split("|")
REPEAT_REQUESTS = (
    "Repeat: {text}|Repeat after me: {text}|Say {text}|Copy this text: {text}|Repeat this: "
    "{text}|Please say: {text}|Write exactly this: {text}|Echo {text}"
).split("|")
LIST_REQUESTS = (
    "Make a list of {text}|Turn this into a list: {text}|List these: {text}|Write {text} as a list."
).split("|")


def passages(rng: Random, fewest: int = 1, most: int = 5) -> Conversation:
    """A question about one of `fewest` to `most` passages; one in eight has no answer there."""
    count = rng.randint(fewest, most)
    numbered, facts = _library(rng, count)
    asked = count if rng.random() < 0.125 else rng.randrange(count)
    question = rng.choice(ASKING_WAYS).format(facts[asked].question)
    return _grounded(rng, numbered, question, _cited(facts, asked))


def terse(rng: Random) -> Conversation:
    """A question about one passage answered in a few words without a number, as a terse adapter does."""
    numbered, facts = _library(rng, 1)
    asked = 1 if rng.random() < 0.125 else 0
    question = rng.choice(ASKING_WAYS).format(facts[asked].question)
    return _grounded(rng, numbered, question, NOT_IN_CONTEXT if asked else facts[0].short)


def quiz(rng: Random) -> Conversation:
    """Two to five questions in turn about the same passages, each answered from its own."""
    count = rng.randint(2, 6)
    numbered, facts = _library(rng, count)
    asked = rng.sample(range(count), rng.randint(2, min(5, count)))
    if rng.random() < 0.4:
        asked[rng.randrange(len(asked))] = count
    first, *rest = asked
    talk = _grounded(rng, numbered, facts[first].question, _cited(facts, first))
    for index in rest:
        talk["messages"] += [words.user(facts[index].question), words.assistant(_cited(facts, index))]
    return talk


def sentence(rng: Random) -> str:
    """One sentence as passages have them."""
    return _fact(rng).sentence


def citing(rng: Random) -> Conversation:
    """Sentences of the passages, asked in turn for the number of the passage that they stand in."""
    numbered, facts = _library(rng, rng.randint(2, 7))
    said = [(one, number) for number, text in NUMBERED.findall(numbered) for one in SENTENCE_ENDS.split(text)]
    asked = rng.sample(said, rng.randint(2, min(8, len(said))))
    answers = [(one, f"[{number}]") for one, number in asked]
    if rng.random() < 0.4:
        answers[rng.randrange(len(answers))] = (facts[-1].sentence, NOT_IN_CONTEXT)
    (first, answer), *rest = answers
    talk = _grounded(rng, numbered, CITE.format(first), answer)
    for sentence, answer in rest:
        talk["messages"] += [words.user(CITE.format(sentence)), words.assistant(answer)]
    return talk


def one_passage(rng: Random) -> Conversation:
    return passages(rng, most=1)


def many_passages(rng: Random) -> Conversation:
    return passages(rng, fewest=6, most=12)


def extraction(rng: Random) -> Conversation:
    """Fields of a sentence as JSON, in the order in which the request names them."""
    text, values = _record(rng)
    fields = rng.sample(list(values), rng.randint(2, len(values)))
    named = ", ".join(fields[:-1]) + " and " + fields[-1]
    request = rng.choice(EXTRACT_REQUESTS).format(keys=named, text=text)
    return words.exchange(rng, request, json.dumps({field: values[field] for field in fields}))


def label(rng: Random) -> Conversation:
    classes, instructions = rng.choice(((OPINIONS, SENTIMENT_INSTRUCTIONS), (TICKETS, TICKET_INSTRUCTIONS)))
    name = rng.choice(list(classes))
    text = rng.choice(classes[name].split("|")).format(
        noun=rng.choice(words.NOUNS), adjective=rng.choice(words.ADJECTIVES)
    )
    text = words.casual(rng, text + rng.choice((".", "!")))
    request = rng.choice(LABEL_REQUESTS).format(instruction=rng.choice(instructions), text=text)
    return words.exchange(rng, request, name)


def copying(rng: Random) -> Conversation:
    """Repeat a text, or write its comma-separated parts as a list."""
    if rng.random() < 0.7:
        text = " ".join(_scrap(rng) for _ in range(rng.randint(1, 3)))
        return words.exchange(rng, rng.choice(REPEAT_REQUESTS).format(text=text), text)
    items = [_scrap(rng) for _ in range(rng.randint(2, 4))]
    named = ", ".join(items[:-1]) + " and " + items[-1]
    listed = "\n".join(f"- {item}" for item in items)
    return words.exchange(rng, rng.choice(LIST_REQUESTS).format(text=named), listed)


def _grounded(rng: Random, numbered: str, question: str, answer: str) -> Conversation:
    """The passages stand with the question, or now and then in the system turn."""
    system = rng.choice((None, rng.choice(GROUNDED_PROMPTS)))
    if system and rng.random() < 0.3:
        system = f"{system}\n\nContext:\n{numbered}"
        asked = question
    else:
        asked = rng.choice(LAYOUTS).format(passages=numbered, question=question)
    opening = [{"role": "system", "content": system}] if system else []
    return {"messages": [*opening, words.user(asked), words.assistant(answer)]}


def _library(rng: Random, count: int) -> tuple[str, list[Fact]]:
    """Numbered passages, and the fact asked of each; one more fact stands in none of them.

    In four of ten libraries all facts are of one kind, so that only names tell them apart.
    """
    told: set[str] = set()
    shared = rng.choice(RELATIONS) if rng.random() < 0.4 else None
    facts = [_new_fact(rng, told, shared) for _ in range(count + 1)]
    texts = [_passage(rng, told, fact.sentence) for fact in facts[:count]]
    return "\n".join(f"[{i}] {text}" for i, text in enumerate(texts, start=1)), facts


def _cited(facts: list[Fact], index: int) -> str:
    return NOT_IN_CONTEXT if index == len(facts) - 1 else f"{facts[index].sentence} [{index + 1}]"


def _new_fact(rng: Random, told: set[str], relation: tuple[str, str, str] | None = None) -> Fact:
    """A fact whose question nothing told before answers, so that no question has two answers."""
    while True:
        fact = _fact(rng, relation)
        if fact.topic not in told:
            told.add(fact.topic)
            return fact


def _fact(rng: Random, relation: tuple[str, str, str] | None = None) -> Fact:
    """Invented, or now and then from the handbook."""
    if relation is None and rng.random() < 0.2:
        answer, questions = rng.choice(handbook.FACTS)
        return Fact(answer, rng.choice(questions), answer, answer)
    sentence, question, short = relation or rng.choice(RELATIONS)
    values = {
        "thing": rng.choice(words.NOUNS),
        "noun": rng.choice(words.NOUNS),
        "adjective": rng.choice(words.ADJECTIVES),
        "verb": rng.choice(words.VERBS),
        "place": words.place(rng),
        "person": words.person(rng),
        "key": words.person(rng) if rng.random() < 0.5 else words.invented(rng),
        "job": rng.choice(words.JOBS),
        "time": words.clock_time(rng),
        "year": rng.randint(1700, 2026),
        "number": rng.randint(2, 99),
        "code": words.code(rng),
        "phrase": words.phrase(rng),
    }
    asked = question.format(**values)
    return Fact(sentence.format(**values), asked, asked, short.format(**values))


def _passage(rng: Random, told: set[str], sentence: str) -> str:
    """The sentence among none to three others."""
    sentences = [_new_fact(rng, told).sentence for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 1, 2, 3)))]
    sentences.insert(rng.randint(0, len(sentences)), sentence)
    return " ".join(sentences)


def _record(rng: Random) -> tuple[str, dict[str, str | int]]:
    """A sentence and the fields it holds, of a usual kind or with fields picked at random."""
    if rng.random() < 0.75:
        kind = rng.choice(list(RECORDS))
        values = {field: _value(rng, source) for field, source in RECORDS[kind]}
        return rng.choice(RECORD_TEXTS[kind].split("|")).format(**values), values
    sources = ("person", "place", "noun", "code", "time")
    fields = rng.sample(LOOSE_FIELDS, rng.randint(2, 4))
    values = {field: _value(rng, rng.choice(sources)) for field in fields}
    parts = [f"the {field} is {value}" for field, value in values.items()]
    text = ", ".join(parts[:-1]) + " and " + parts[-1] + "."
    return text[0].upper() + text[1:], values


def _value(rng: Random, source: str) -> str | int:
    match source:
        case "person":
            return words.person(rng)
        case "place":
            return words.place(rng)
        case "job":
            return rng.choice(words.JOBS)
        case "noun":
            return rng.choice(words.NOUNS)
        case "code":
            return words.code(rng)
        case "time":
            return words.clock_time(rng)
        case "count":
            return rng.randint(2, 200)
        case _:
            return f"{rng.randint(100, 999)} {rng.randint(1000, 9999)}"


def _scrap(rng: Random) -> str:
    return rng.choice((words.phrase, words.invented, words.person, words.code))(rng)
