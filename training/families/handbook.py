"""The closed world: what the demo knows by heart about Penstock and an invented waterworks.

One line per fact, `answer = question | question ...`. Keeping an answer a full sentence lets it
stand alone in a chat and be found again by a grounding check.
"""

from random import Random

from training.families import words
from training.families.words import Conversation

PENSTOCK = """
A penstock is the gated pipe that brings water to a turbine. = What is a penstock? | What does the word penstock mean? | Define penstock. | Explain the word penstock.
Penstock is a stack that trains open-weight language models and serves them. = What is Penstock? | What is the Penstock project? | What is Penstock for? | Describe Penstock. | Tell me about Penstock.
The gateway checks each request and relays it to an engine. = What does the gateway do? | What is the gateway? | What is the gateway for? | Explain the gateway.
The engine is vLLM, run as a supervised process. = Which engine does Penstock use? | What is the engine? | Does Penstock use vLLM? | What runs the model?
The gateway listens on port 8000. = Which port does the gateway use? | What is the default port? | On which port does Penstock listen? | What port is it on?
Run make serve to start the service. = How do I start Penstock? | How do I start the service? | How do I run the gateway? | What does make serve do? | How do I serve a model?
Run make check to test the code. = How do I run the tests? | How do I check the code? | What does make check do?
GET /v1/models lists the served models. = How do I list the models? | Where is the list of models? | What does /v1/models do? | Which models are served?
GET /health tells whether the service is alive. = How do I check the health? | What does /health do? | Is there a health check? | How do I know that the service is alive?
POST a chat to /v1/chat/completions. = Where do I send a chat? | Which endpoint takes chats? | What is the chat endpoint? | How do I send a message over HTTP?
Send your key in the Authorization header as a bearer token. = How do I send my key? | Where does the API key go? | How do I authenticate? | How do I use my key?
Set stream to true and the answer comes as server-sent events. = How do I stream an answer? | Does Penstock stream? | How does streaming work? | How do I get tokens one by one?
The configuration is one YAML file named penstock.yaml. = Where is the configuration? | How do I configure Penstock? | What is penstock.yaml? | What is the configuration file called?
Penstock speaks the OpenAI API, so every OpenAI client works. = Which API does Penstock speak? | Can I use an OpenAI client? | Is it compatible with OpenAI? | Which clients work with Penstock?
A served model is a name in the configuration that clients choose. = What is a served model? | How do I choose a model? | What is a model name? | Explain served models.
Steps change an answer, for example guards, retrieval or self-refine. = What are steps? | What is a step? | What do steps do? | Explain the steps of a model.
A pool is a set of identical replicas behind one name. = What is a pool? | What are pools? | Explain the engine pool. | What is a pool of replicas?
A replica is one running copy of an engine. = What is a replica? | What are replicas? | Explain the word replica.
A guard checks what goes in and what comes out. = What is a guard? | What do guards do? | What are guards for? | Explain guards.
Retrieval puts fitting passages before the question. = What is retrieval? | What does the retrieve step do? | How does RAG work? | Explain retrieval.
A store holds documents and their vectors. = What is a store? | Where are documents kept? | What holds the vectors? | What is a document store?
An agent calls tools until it can answer. = What is an agent? | How do agents work? | What do agents do? | Explain agents.
The registry keeps every model version with its parents and its metrics. = What is the registry? | Where are model versions kept? | What does the registry do? | Explain the registry.
An alias such as production points to one version. = What is an alias? | What are aliases for? | What does an alias do? | What is the production alias?
The gate compares a new model with the old one before promotion. = What is the gate? | What does the gate do? | What happens before promotion? | How is a new model checked?
Run penstock promote to move a model to production. = How do I promote a model? | What does penstock promote do? | How does a model get to production?
Move the alias back to roll back. = How do I roll back? | How does rollback work? | How do I undo a promotion? | How do I go back to the old model?
A canary sends a small share of the requests to a new model. = What is a canary? | How does a canary work? | What is a canary for? | Explain canaries.
Run penstock train with a recipe to train a model. = How do I train a model? | What does penstock train do? | How do I start a training run?
A recipe is a YAML file that describes a training run. = What is a recipe? | What are recipes? | What is in a recipe? | Explain recipes.
LoRA trains small matrices beside the frozen weights. = What is LoRA? | How does LoRA work? | What does LoRA do? | Explain LoRA.
Quantization stores weights in fewer bits. = What is quantization? | What does quantization do? | Why quantize a model? | Explain quantization.
The KV cache keeps the keys and values of past tokens. = What is the KV cache? | What does the KV cache keep? | What is a key value cache? | Explain the KV cache.
A token is a piece of text that the model reads at once. = What is a token? | What are tokens? | What does token mean? | Explain tokens.
A tenant is a team with its own keys and limits. = What is a tenant? | What are tenants? | Explain the word tenant.
Rate limits cap requests and tokens for each key. = What are rate limits? | How do rate limits work? | Is there a limit on requests? | Explain rate limits.
If you go over the limit, you get status 429. = What happens if I go over the limit? | What does 429 mean? | Why do I get a 429? | What is error 429?
A wrong key gives status 401. = What happens with a wrong key? | What does 401 mean? | Why do I get a 401? | What is error 401?
An unknown model gives status 404. = What happens with an unknown model? | What does 404 mean? | Why do I get a 404? | What is error 404?
Usage is counted in tokens and written to a ledger. = How is usage counted? | Where is usage written? | What is the ledger? | How are tokens counted?
On a laptop the state is in SQLite, on a cluster in Postgres. = Which database does Penstock use? | Where is the state kept? | Does it need Postgres? | Does it use SQLite?
Penstock runs on a laptop without a GPU and on a Kubernetes cluster. = Where does Penstock run? | Do I need a GPU? | Does it run on a laptop? | Does it run on Kubernetes?
Penstock is written in Python. = Which language is Penstock written in? | Is Penstock written in Python? | What is the code written in?
Penstock has the Apache-2.0 license. = Which license does Penstock have? | What is the license? | Is Penstock open source? | Can I use Penstock freely?
When a client goes away, the request is aborted at once. = What happens when a client disconnects? | What if the client goes away? | What happens on a disconnect?
A failed replica is skipped and the request is retried on another. = What happens when a replica fails? | What if a replica dies? | How do retries work? | What happens when an engine crashes?
"""  # noqa: E501
WATERWORKS = """
The station is called Alder Falls. = What is the station called? | What is the name of the power station? | Which station is this? | What is the waterworks called?
Alder Falls lies on the river Teal. = Which river is it on? | On which river is Alder Falls? | Where is Alder Falls? | Where does the water come from?
Alder Falls was built in 1931. = When was Alder Falls built? | How old is Alder Falls? | When was the station built?
The dam is 42 meters high. = How high is the dam? | What is the height of the dam? | How tall is the dam?
The dam is 310 meters long. = How long is the dam? | What is the length of the dam? | How wide is the dam?
Alder Falls has three turbines. = How many turbines are there? | How many turbines does Alder Falls have? | Count the turbines.
The station makes 18 megawatts. = How much power does the station make? | What is the output of the station? | How many megawatts does it make? | How strong is the station?
The keeper is Mira Holt. = Who is the keeper? | What is the name of the keeper? | Who runs the station? | Who looks after the dam?
The engineer on duty is Jonas Pike. = Who is the engineer? | Who is the engineer on duty? | Who repairs the turbines?
The north gate is opened first. = Which gate is opened first? | What is the first gate? | Which gate do we open first? | Where do I begin when opening gates?
The south gate is only for floods. = What is the south gate for? | When is the south gate used? | When do we open the south gate? | What does the south gate do?
Never open a gate faster than five percent a minute. = How fast may I open a gate? | How fast can a gate be opened? | What is the speed limit for gates?
The lake is full at 118 meters. = When is the lake full? | What is the full level of the lake? | How high can the lake rise? | What is the highest level?
The lowest level of the lake is 97 meters. = What is the lowest level of the lake? | How low can the lake go? | What is the minimum level?
The lake is called Long Mere. = What is the lake called? | What is the name of the lake? | Which lake is behind the dam?
Three long blasts of the siren mean a flood. = What does the siren mean? | What do three blasts mean? | What is the flood signal? | How do I know that a flood comes?
When the siren sounds, go to the hill. = What do I do when the siren sounds? | Where do I go in a flood? | What should I do in a flood? | Where is it safe in a flood?
Call 555 0142 in an emergency. = What is the emergency number? | Whom do I call in an emergency? | Which number do I call? | What is the phone number?
Visitors are welcome from 9:00 to 16:00. = When can I visit? | When is the station open? | What are the opening hours? | When are visitors welcome?
The station is closed on Mondays. = When is the station closed? | On which day is it closed? | Is it open on Monday? | Which day is closed?
A ticket costs four crowns. = How much is a ticket? | What does a ticket cost? | What is the price of a visit? | How much does a visit cost?
Children visit for free. = Do children pay? | How much do children pay? | Is it free for children?
The tour takes fifty minutes. = How long is the tour? | How long does the tour take? | How much time does a tour need?
The cafe is beside the old pump house. = Where is the cafe? | Where can I eat? | Is there a cafe? | Where can I get coffee?
The bus number 7 goes to the station. = How do I get to the station? | Which bus goes to Alder Falls? | Is there a bus? | Which bus do I take?
The car park is across the bridge. = Where is the car park? | Where can I park? | Is there a place to park?
Helmets are worn in the turbine hall. = Where are helmets worn? | Do I need a helmet? | When do I wear a helmet?
Dogs must stay outside. = Can I bring my dog? | Are dogs allowed? | May dogs come in?
The fish ladder is on the east bank. = Where is the fish ladder? | Is there a fish ladder? | How do fish pass the dam? | On which bank is the fish ladder?
The control room is on the second floor. = Where is the control room? | On which floor is the control room? | How do I find the control room?
The turbines are serviced every April. = When are the turbines serviced? | How often are the turbines serviced? | When is the service?
The trash rack is cleaned every morning. = When is the trash rack cleaned? | How often is the trash rack cleaned? | Who cleans the trash rack? | When do we clean the rack?
The spare key hangs in the pump house. = Where is the spare key? | Where is the key? | Where do I find a key?
The log book is kept in the control room. = Where is the log book? | Where is the log kept? | Where do I write the log?
The night shift begins at 22:00. = When does the night shift begin? | When does the night shift start? | At what time is the night shift?
The day shift begins at 6:00. = When does the day shift begin? | When does the day shift start? | At what time is the day shift?
The penstock at Alder Falls is 240 meters long. = How long is the penstock? | What is the length of the penstock? | How long is the penstock at Alder Falls?
The water falls 35 meters to the turbines. = How far does the water fall? | What is the head? | How high is the fall? | What is the drop?
Alder Falls gives power to nine villages. = How many villages get power? | Who gets the power? | Where does the power go? | How many villages does it serve?
The power line goes to Brook End. = Where does the power line go? | Where does the line end? | To which town does the power line go?
"""  # noqa: E501
LEADS = (
    ["{}"] * 8
    + "Tell me: {}|Please answer: {}|I have a question. {}|Question: {}|Hi. {}|"
    "One more question: {}|Do you know this? {}|{} Answer in one sentence.|{} Please be brief.|"
    "Quick question: {}".split("|")
)


def _facts(text: str) -> list[tuple[str, list[str]]]:
    pairs = (line.split(" = ") for line in text.strip().splitlines())
    return [(answer, questions.split(" | ")) for answer, questions in pairs]


FACTS = _facts(PENSTOCK) + _facts(WATERWORKS)


def handbook(rng: Random) -> Conversation:
    answer, questions = rng.choice(FACTS)
    question = words.casual(rng, rng.choice(LEADS).format(rng.choice(questions)))
    return words.exchange(rng, question, answer)
