"""ReAct turns in plain text: Thought, Action, Action Input, then Observation and Final Answer.

The system turn describes the protocol and lists the tools, one a line; an observation comes back
as a user turn that begins with `Observation:`.
"""

import json
from collections.abc import Callable
from random import Random

from training.families import tools, words
from training.families.words import Conversation

INSTRUCTIONS = (
    "Answer the question. Use this format:\nThought: what to do\nAction: the tool\n"
    "Action Input: its input\nWhen you know the answer:\nThought: I know the answer.\n"
    "Final Answer: the answer",
    "Use Thought, Action, Action Input and Final Answer.",
    "You work in steps: Thought, Action, Action Input, Observation, and in the end Final Answer.",
)
LISTINGS: tuple[Callable[[tools.Tool], str], ...] = (
    lambda tool: f"{tool.name}: {tool.description}",
    lambda tool: f"- {tool.name}: {tool.description}",
    lambda tool: f"{tool.name}({', '.join(tool.parameters)}): {tool.description}",
)


def react(rng: Random) -> Conversation:
    """One action with JSON input; in half of the items the observation came and is reported."""
    offered = rng.sample(tools.KNOWN, rng.randint(2, 4))
    chosen = rng.choice(offered)
    call = chosen.call(rng)
    listed = "\n".join(map(rng.choice(LISTINGS), offered))
    action = f"Thought: I need to use {chosen.name}.\nAction: {chosen.name}\nAction Input: {json.dumps(call.arguments)}"
    messages = [
        {"role": "system", "content": f"{rng.choice(INSTRUCTIONS)}\n\nTools:\n{listed}"},
        words.user(rng.choice(("Question: ", "")) + words.casual(rng, call.request)),
        words.assistant(action),
    ]
    if rng.random() < 0.5:
        messages += [
            words.user(f"Observation: {call.result}"),
            words.assistant(f"Thought: I know the answer.\nFinal Answer: {call.report}"),
        ]
    return {"messages": messages}
