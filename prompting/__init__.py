"""Prompt strategies: each a small file, a step that is a `Chat -> Chat`."""

from penstock.steps import Table
from prompting.instruct import Instruct

STEPS: Table = {
    "instruct": Instruct,
}
