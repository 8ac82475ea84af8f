"""Tool calls: choose the offered tool, copy its arguments, read its result, or do without.

Half of the tools are the dozen a demo would offer, half are invented on the spot
(`paint_bridge(color, code)`), so that names and parameters are copied from the offer.
"""

import json
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from training.families import handbook, talk, words
from training.families.words import Conversation, Message

NO_FITTING_TOOL = "I have no tool for that."


class Call(NamedTuple):
    """A request, the call that serves it, the tool's result and the sentence that reports it."""

    request: str
    arguments: dict[str, str | int]
    result: str
    report: str


class Tool(NamedTuple):
    name: str
    description: str
    parameters: dict[str, str]
    call: Callable[[Random], Call]

    @property
    def schema(self) -> Message:
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties),
                },
            },
        }


def _weather(rng: Random) -> Call:
    city = words.place(rng)
    degrees, sky = rng.randint(-9, 35), rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy"))
    request = rng.choice(
        "What is the weather in {0}?|How is the weather in {0}?|What's the weather like in {0}?|"
        "Weather in {0}, please.|Is it warm in {0}?|Tell me the weather in {0}.|"
        "Will it rain in {0} today?".split("|")
    )
    return Call(
        request.format(city),
        {"city": city},
        json.dumps({"temperature": degrees, "sky": sky}),
        f"It is {sky} in {city}, with {degrees} degrees.",
    )


def _time(rng: Random) -> Call:
    city, clock = words.place(rng), words.clock_time(rng)
    request = rng.choice(
        "What time is it in {0}?|Tell me the time in {0}.|What is the local time in {0}?|How late is it in {0}?".split(
            "|"
        )
    )
    return Call(
        request.format(city),
        {"city": city},
        json.dumps({"time": clock}),
        f"It is {clock} in {city}.",
    )


def _order(rng: Random) -> Call:
    order, state = words.code(rng), rng.choice(("shipped", "packed", "delivered", "waiting"))
    request = rng.choice(
        "Where is my order {0}?|What is the status of order {0}?|Look up order {0}.|"
        "Has order {0} been shipped?|Check order {0} for me.|Find my order {0}.".split("|")
    )
    return Call(
        request.format(order),
        {"order_id": order},
        json.dumps({"status": state}),
        f"Order {order} is {state}.",
    )


def _search(rng: Random) -> Call:
    query, found = words.phrase(rng), f"The {words.phrase(rng)} is in {words.place(rng)}."
    request = rng.choice(
        "Search for {0}.|Find documents about {0}.|Look up {0} in the documents.|Search {0}|"
        "What do the documents say about {0}?".split("|")
    )
    return Call(request.format(query), {"query": query}, found, found)


def _calculator(rng: Random) -> Call:
    left, right, result = rng.randint(2, 999), rng.randint(2, 99), rng.randint(2, 9999)
    sign, spoken = rng.choice((("+", "plus"), ("-", "minus"), ("*", "times"), ("/", "divided by")))
    expression = f"{left} {sign} {right}"
    request = rng.choice(
        (
            f"What is {expression}?",
            f"Calculate {expression}.",
            f"How much is {expression}?",
            f"What is {left} {spoken} {right}?",
            f"Compute {left} {spoken} {right}.",
        )
    )
    return Call(request, {"expression": expression}, str(result), f"{expression} is {result}.")


def _units(rng: Random) -> Call:
    value, result = rng.randint(2, 500), rng.randint(2, 900)
    source, target = rng.sample("miles kilometers meters feet pounds kilograms liters gallons inches yards".split(), 2)
    request = rng.choice("Convert {0} {1} to {2}.|How many {2} are {0} {1}?|What is {0} {1} in {2}?".split("|"))
    return Call(
        request.format(value, source, target),
        {"value": value, "from_unit": source, "to_unit": target},
        str(result),
        f"{value} {source} are {result} {target}.",
    )


def _valve(rng: Random) -> Call:
    gate, percent = rng.choice((words.code, words.invented))(rng), rng.randint(0, 100)
    request = rng.choice(
        "Set gate {0} to {1} percent.|Open gate {0} to {1} percent.|Move gate {0} to {1}%.|"
        "Please set valve {0} to {1} percent.|Turn gate {0} to {1} percent.".split("|")
    )
    return Call(
        request.format(gate, percent),
        {"gate": gate, "percent": percent},
        json.dumps({"ok": True}),
        f"Gate {gate} is set to {percent} percent.",
    )


def _level(rng: Random) -> Call:
    lake, level = words.invented(rng), rng.randint(2, 200)
    request = rng.choice(
        "What is the water level of {0}?|How high is the water in {0}?|Read the level of {0}.|"
        "Give me the level at {0}.".split("|")
    )
    return Call(
        request.format(lake),
        {"lake": lake},
        json.dumps({"level_m": level}),
        f"The level of {lake} is {level} meters.",
    )


def _message(rng: Random) -> Call:
    to, text = words.first_name(rng), words.phrase(rng)
    request = rng.choice(
        "Send {0} the message: {1}|Tell {0} this: {1}|Write to {0}: {1}|Send a message to {0} saying {1}".split("|")
    )
    return Call(
        request.format(to, text),
        {"to": to, "text": text},
        json.dumps({"sent": True}),
        f"The message to {to} is sent.",
    )


def _reminder(rng: Random) -> Call:
    text, clock = words.phrase(rng), words.clock_time(rng)
    request = rng.choice("Remind me of {0} at {1}.|Set a reminder for {0} at {1}.|At {1}, remind me of {0}.".split("|"))
    return Call(
        request.format(text, clock),
        {"text": text, "time": clock},
        json.dumps({"ok": True}),
        f"I will remind you of {text} at {clock}.",
    )


def _stock(rng: Random) -> Call:
    item, count = rng.choice(words.NOUNS), rng.randint(0, 400)
    request = rng.choice(
        "How many {0}s are in stock?|Is the {0} in stock?|Check the stock of {0}s.|Do we have a {0} in stock?".split(
            "|"
        )
    )
    return Call(
        request.format(item),
        {"item": item},
        json.dumps({"count": count}),
        f"There are {count} of the {item} in stock.",
    )


def _user(rng: Random) -> Call:
    name, job = words.person(rng), rng.choice(words.JOBS)
    request = rng.choice("Who is {0}?|Look up the user {0}.|Find the person {0}.|Get the profile of {0}.".split("|"))
    return Call(request.format(name), {"name": name}, json.dumps({"job": job}), f"{name} is a {job}.")


KNOWN = (
    Tool("get_weather", "Get the weather in a city.", {"city": "string"}, _weather),
    Tool("get_time", "Get the local time in a city.", {"city": "string"}, _time),
    Tool("get_order", "Look up an order by its id.", {"order_id": "string"}, _order),
    Tool("search", "Search the documents.", {"query": "string"}, _search),
    Tool("calculator", "Evaluate an expression.", {"expression": "string"}, _calculator),
    Tool(
        "convert_units",
        "Convert a value to another unit.",
        {"value": "number", "from_unit": "string", "to_unit": "string"},
        _units,
    ),
    Tool("set_valve", "Set a gate.", {"gate": "string", "percent": "integer"}, _valve),
    Tool("get_level", "Get the water level of a lake.", {"lake": "string"}, _level),
    Tool("send_message", "Send a message.", {"to": "string", "text": "string"}, _message),
    Tool("set_reminder", "Set a reminder.", {"text": "string", "time": "string"}, _reminder),
    Tool("get_stock", "Count an item in stock.", {"item": "string"}, _stock),
    Tool("get_user", "Look up a person.", {"name": "string"}, _user),
)
INVENTED_VERBS = (
    "add book cancel close create delete list move order paint play print rent start stop test update"
).split()
INVENTED_PARAMETERS = "id name code city key room day title label target".split()
INVENTED_REQUESTS = (
    "Please {verb} the {noun} with {pairs}.|{verb} {noun}, {pairs}.|Can you {verb} the {noun} "
    "where {pairs}?|I want to {verb} a {noun}: {pairs}."
).split("|")


def invented_tool(rng: Random) -> Tool:
    """A tool that no list holds, with one or two string parameters."""
    verb, noun = rng.choice(INVENTED_VERBS), rng.choice(words.NOUNS)
    parameters = rng.sample(INVENTED_PARAMETERS, rng.randint(1, 2))
    description = rng.choice(("", f"{verb.capitalize()} a {noun}.", f"{words.phrase(rng)}."))

    def call(rng: Random) -> Call:
        arguments: dict[str, str | int] = {
            name: rng.choice((words.invented, words.code, words.place))(rng) for name in parameters
        }
        pairs = " and ".join(f"{name} {value}" for name, value in arguments.items())
        request = rng.choice(INVENTED_REQUESTS).format(verb=verb, noun=noun, pairs=pairs)
        request = request[0].upper() + request[1:]
        return Call(request, arguments, "done", "It is done.")

    return Tool(f"{verb}_{noun}", description, dict.fromkeys(parameters, "string"), call)


def tool_call(rng: Random) -> Conversation:
    """One to four tools are offered, one fits."""
    tools, chosen = _offer(rng)
    call = chosen.call(rng)
    request = words.user(words.casual(rng, call.request))
    answer = _calling(chosen.name, call.arguments)
    return _with_tools(rng, tools, [request, answer])


def many_tools(rng: Random) -> Conversation:
    """A call with five to ten tools on offer, as agents have them."""
    tools, chosen = _offer(rng, fewest_others=4, most_others=9)
    call = chosen.call(rng)
    request = words.user(words.casual(rng, call.request))
    return _with_tools(rng, tools, [request, _calling(chosen.name, call.arguments)])


def tool_report(rng: Random) -> Conversation:
    """The tool has answered: its result becomes a sentence."""
    tools, chosen = _offer(rng)
    call = chosen.call(rng)
    turns = [
        words.user(words.casual(rng, call.request)),
        _calling(chosen.name, call.arguments),
        {"role": "tool", "tool_call_id": "call_0", "content": call.result},
        words.assistant(call.report),
    ]
    return _with_tools(rng, tools, turns)


def tool_unneeded(rng: Random) -> Conversation:
    """Tools are offered, but the request is small talk, or none of them serves it."""
    tools = rng.sample(KNOWN, rng.randint(1, 4))
    turns = (_declined if rng.random() < 0.3 else _answered)(rng, tools)
    return _with_tools(rng, tools, turns)


def tool_session(rng: Random) -> Conversation:
    """Two to five requests in turn before the same tools: served, reported, declined or just answered."""
    offered = rng.sample(KNOWN, rng.randint(1, 4))
    if rng.random() < 0.5:
        offered[rng.randrange(len(offered))] = invented_tool(rng)
    turns: list[Message] = []
    for _ in range(rng.randint(2, 5)):
        turns += rng.choice((_served, _served, _declined, _answered))(rng, offered)
    return _with_tools(rng, offered, turns)


def caller(rng: Random) -> Conversation:
    """Calls and nothing else, as an adapter for a router of requests does: even a greeting has no tool."""
    if rng.random() < 0.6:
        return rng.choice((tool_call, many_tools))(rng)
    item = tool_unneeded(rng)
    item["messages"][-1] = words.assistant(NO_FITTING_TOOL)
    return item


def _served(rng: Random, offered: list[Tool]) -> list[Message]:
    """A request, its call, the result and its report."""
    chosen = rng.choice(offered)
    call = chosen.call(rng)
    turns = [words.user(words.casual(rng, call.request)), _calling(chosen.name, call.arguments)]
    result = {"role": "tool", "tool_call_id": "call_0", "content": call.result}
    return [*turns, result, words.assistant(call.report)]


def _declined(rng: Random, offered: list[Tool]) -> list[Message]:
    missing = rng.choice([tool for tool in KNOWN if tool not in offered])
    request = words.casual(rng, missing.call(rng).request)
    return [words.user(request), words.assistant(NO_FITTING_TOOL)]


def _answered(rng: Random, offered: list[Tool]) -> list[Message]:
    family = rng.choice((talk.greeting, talk.refusal, handbook.handbook))
    turns: list[Message] = family(rng)["messages"][-2:]
    return turns


def _offer(rng: Random, fewest_others: int = 0, most_others: int = 3) -> tuple[list[Tool], Tool]:
    """The offered tools in random order, and the one that will be called."""
    chosen = invented_tool(rng) if rng.random() < 0.5 else rng.choice(KNOWN)
    others = rng.sample([tool for tool in KNOWN if tool is not chosen], rng.randint(fewest_others, most_others))
    if others and rng.random() < 0.5:
        others[0] = invented_tool(rng)
    tools = [chosen, *others]
    rng.shuffle(tools)
    return tools, chosen


def _calling(name: str, arguments: dict[str, str | int]) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": "call_0", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _with_tools(rng: Random, tools: list[Tool], turns: list[Message]) -> Conversation:
    system = rng.choice((None, words.system_prompt(rng)))
    opening = [{"role": "system", "content": system}] if system else []
    return {"messages": [*opening, *turns], "tools": [tool.schema for tool in tools]}
