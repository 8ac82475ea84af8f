"""Prompt strategies: each a small file, a step that is a `Chat -> Chat`."""

from penstock.steps import Table
from prompting.best_of_n import BestOfN
from prompting.chain_of_thought import ChainOfThought
from prompting.critique_revise import CritiqueRevise
from prompting.few_shot import FewShot
from prompting.instruct import Instruct
from prompting.least_to_most import LeastToMost
from prompting.self_consistency import SelfConsistency
from prompting.self_refine import SelfRefine
from prompting.stored import StoredPrompt
from prompting.tree_of_thoughts import TreeOfThoughts

STEPS: Table = {
    "best_of_n": BestOfN,
    "chain_of_thought": ChainOfThought,
    "critique_revise": CritiqueRevise,
    "few_shot": FewShot,
    "instruct": Instruct,
    "least_to_most": LeastToMost,
    "prompt": StoredPrompt,
    "self_consistency": SelfConsistency,
    "self_refine": SelfRefine,
    "tree_of_thoughts": TreeOfThoughts,
}
