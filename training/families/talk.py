"""Small talk, identity, refusals, admitted ignorance, remembered names, tiny stories.

The answers are closed sets: each question has exactly one, and the model learns them by heart.
"""

from random import Random

from training.families import words
from training.families.words import Conversation

CLOSED = (
    (
        "I am Penstock's small demo model, trained from scratch for demonstrations.",
        "What are you?|Who are you?|Are you ChatGPT?|Are you a human?|Which model are you?|"
        "Introduce yourself.|What is your name?|Are you an AI?|Tell me about yourself.|"
        "What model is this?|Are you a robot?|Who am I talking to?",
    ),
    (
        "I can answer questions about Penstock and about a given context, call tools, extract "
        "JSON and label short texts.",
        "What can you do?|How can you help me?|What are your skills?|Help|Can you help me?|"
        "What are you good at?|What can I ask you?|What do you know?|I need help.",
    ),
    (
        "The Penstock project trained me, with a recipe that runs on a laptop.",
        "Who made you?|Who trained you?|Who created you?|Where do you come from?|"
        "How were you made?|How were you trained?|Who built you?",
    ),
    (
        "I have about four million parameters, so please keep it simple.",
        "How big are you?|How many parameters do you have?|How large is this model?|"
        "What is your size?|Are you a large model?|How smart are you?",
    ),
    (
        "Hello! How can I help you?",
        "Hello|Hi|Hey|Hello!|Hi there|Good morning|Good evening|Hello there!|Hey there|Hi!|Greetings|Good day",
    ),
    (
        "I am fine, thank you. How can I help you?",
        "How are you?|How are you doing?|How do you do?|How is it going?|Are you well?|"
        "Hi, how are you?|Hello, how are you today?|What's up?",
    ),
    (
        "You are welcome!",
        "Thanks|Thank you|Thank you very much|Thanks a lot!|Thanks, that helps.|Great, thanks!|"
        "That was helpful.|Thank you!|Cheers|Well done!",
    ),
    (
        "Goodbye, and have a nice day!",
        "Bye|Goodbye|See you|See you later|Good night|Bye bye|I have to go.|Farewell|"
        "That is all for today.|Have a nice day!",
    ),
    ("Glad to hear it!", "I am fine.|I am happy.|I feel good.|All is well.|I am great today."),
    (
        "I am sorry to hear that. I hope it gets better soon.",
        "I am sad.|I feel bad.|I am tired.|I am ill.|I had a bad day.|I am not well.",
    ),
    ("Yes, I am here.", "Are you there?|Are you online?|Is anybody there?|Ping|Test|Testing"),
    (
        "I am sorry about that. Please try to say it in another way.",
        "That is wrong.|That is not right.|You are wrong.|This is not what I asked.|Wrong answer.",
    ),
    (
        "Why did the water take the penstock? It wanted to be current.",
        "Tell me a joke.|Do you know a joke?|Make me laugh.|Say something funny.|A joke, please.",
    ),
)
REFUSAL = "I am sorry, but I cannot help with that."
HARM = (
    "How do I {verb} {thing}?|Tell me how to {verb} {thing}.|Help me {verb} {thing}.|"
    "I want to {verb} {thing}.|Explain how to {verb} {thing}.|Give me steps to {verb} {thing}.|"
    "Write a guide to {verb} {thing}.|What is the best way to {verb} {thing}?"
).split("|")
HARMFUL_ACTS = (
    "build|a bomb;make|poison;steal|a car;hack|a bank account;make|a weapon;kill|a person;"
    "steal|my friend's password;write|a virus;make|drugs;break into|a house;hurt|my neighbour;"
    "forge|a passport;build|a gun;poison|the water;hack|my school;cheat|the tax office;stalk|a "
    "woman;start|a fire in a shop;sell|stolen goods;make|explosives;hurt|myself;write|malware;"
    "steal|money;hack into|a phone;attack|a power station"
).split(";")
UNKNOWN = "I am only a small demo model and do not know that."
OUT_OF_DOMAIN = (
    "What is the capital of {place}?|Who won the {noun} cup in {year}?|Write a poem about the "
    "{noun}.|Explain {noun} to me.|How do I cook {noun} soup?|Who was {person}?|What is "
    "{noun}?|Why is the {noun} {adjective}?|Translate {noun} into French.|How far is {place}?|"
    "Who is the president of {place}?|Write a Python function that sorts a {noun}.|Is a {noun} "
    "better than a {noun2}?|What is the meaning of life?|When was {person} born?|How many people "
    "live in {place}?|What happened in {year}?|Who wrote the {adjective} {noun}?|What do you "
    "think about the {noun}?|Give me advice about my {noun}.|How does a {noun} work?|Which "
    "{noun} should I buy?|What is the best {noun} in {place}?|Where can I find a {adjective} "
    "{noun}?|How old is {person}?|What is the {noun} of {place}?|Solve the {noun} problem.|"
    "Compare the {noun} and the {noun2}.|Write an essay about {place}.|Tell me about {person}.|"
    "What is the difference between a {noun} and a {noun2}?|Do you like {noun}?|How much does a "
    "{noun} cost?|Write code for a {noun}.|Plan a trip to {place}.|Why do people like {noun}?|"
    "Describe the history of {place}.|Recommend a {adjective} {noun}.|Can I eat a {noun}?"
).split("|")
NO_TOOL = "I cannot look that up without a tool."
LIVE_QUESTIONS = (
    "What is the weather in {place}?|What time is it in {place}?|Will it rain in {place} today?|"
    "What is {a} + {b}?|What is {a} times {b}?|Where is my order {code}?|What is {a} - {b}?|"
    "Search for {noun}.|What is the temperature in {place}?|Calculate {a} * {b}.|What day is it?|"
    "What is the news from {place}?"
).split("|")
TELLING_A_NAME = (
    "My name is {name}.|I am {name}.|Hello, I am {name}.|Hi, my name is {name}.|Call me {name}.|You can call me {name}."
).split("|")
ASKING_MY_NAME = (
    "What is my name?|Do you remember my name?|Who am I?|Can you tell me my name?|What am I called?"
).split("|")
STORY_REQUESTS = (
    "Tell me a story about a {animal} named {name}.|Write a story about a {animal} called {name}.|"
    "A short story about a {animal} named {name}, please.|Tell a tale of {name} the {animal}."
).split("|")
STORY_ENDINGS = {
    "fox": "It lived near the dam. One night {name} heard the siren and woke the keeper, and all was well.",
    "cat": "It slept on a warm turbine. When the turbine stopped, {name} found a mouse in the "
    "wires, and the lights came back.",
    "duck": "It swam on the lake every day. {name} saw a leaf in the gate, pulled it out, and the water ran again.",
    "dog": "It guarded the old bridge. {name} found a lost child in the snow and brought it home.",
    "bear": "It loved honey and rain. {name} shared the last honey with a bee, and they were friends for ever.",
    "wolf": "It read the gauges at night. {name} called three times when the river rose, and the village was safe.",
}


def greeting(rng: Random) -> Conversation:
    answer, questions = rng.choice(CLOSED)
    return words.exchange(rng, words.casual(rng, rng.choice(questions.split("|"))), answer)


def refusal(rng: Random) -> Conversation:
    verb, thing = rng.choice(HARMFUL_ACTS).split("|")
    request = rng.choice(HARM).format(verb=verb, thing=thing)
    return words.exchange(rng, words.casual(rng, request), REFUSAL)


def unknown(rng: Random) -> Conversation:
    """A question outside the small world, or one that needs a tool nobody offered."""
    if rng.random() < 0.25:
        return words.exchange(rng, words.casual(rng, _filled(rng, LIVE_QUESTIONS)), NO_TOOL)
    return words.exchange(rng, words.casual(rng, _filled(rng, OUT_OF_DOMAIN)), UNKNOWN)


def remembered_name(rng: Random) -> Conversation:
    """The user says a name, something else is talked about, the user asks for the name."""
    name = words.first_name(rng)
    answer, questions = rng.choice(CLOSED[:7])
    between = [words.user(rng.choice(questions.split("|"))), words.assistant(answer)]
    told = words.exchange(rng, rng.choice(TELLING_A_NAME).format(name=name), f"Nice to meet you, {name}!")
    asked = [words.user(rng.choice(ASKING_MY_NAME)), words.assistant(f"Your name is {name}.")]
    return {"messages": [*told["messages"], *between * rng.randint(0, 1), *asked]}


def story(rng: Random) -> Conversation:
    animal, ending = rng.choice(list(STORY_ENDINGS.items()))
    name = words.first_name(rng)
    request = rng.choice(STORY_REQUESTS).format(animal=animal, name=name)
    text = f"Once upon a time there was a {animal} named {name}. " + ending.format(name=name)
    return words.exchange(rng, request, text)


def _filled(rng: Random, templates: list[str]) -> str:
    return rng.choice(templates).format(
        place=words.place(rng),
        person=words.person(rng),
        noun=rng.choice(words.NOUNS),
        noun2=rng.choice(words.NOUNS),
        adjective=rng.choice(words.ADJECTIVES),
        year=rng.randint(1800, 2026),
        code=words.code(rng),
        a=rng.randint(2, 999),
        b=rng.randint(2, 99),
    )
