"""A vLLM plugin: Hermes tool calls whose arguments have at most one white space in a row.

JSON allows any amount, so does vLLM's grammar of a tool call, and a small model that would rather not go on writes
nothing else until its tokens are used up. `disable_any_whitespace` does not reach this grammar.
"""

from typing import Any

from pydantic import BaseModel
from vllm.tool_parsers.abstract_tool_parser import ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
from xgrammar.structural_tag import JSONSchemaFormat


class TightHermes(Hermes2ProToolParser):  # type: ignore[misc]  # vLLM is not followed
    def get_structural_tag(self, *args: Any, **options: Any) -> Any:
        tag = super().get_structural_tag(*args, **options)
        if tag is not None:
            tighten(tag.format)
        return tag


def tighten(node: Any) -> None:
    """Walks a tag as vLLM's own `limit_to_single_tool_call` does."""
    if isinstance(node, JSONSchemaFormat):
        node.max_whitespace_cnt = 1
    if isinstance(node, BaseModel):
        for name in type(node).model_fields:
            tighten(getattr(node, name))
    elif isinstance(node, list | tuple):
        for item in node:
            tighten(item)


ToolParserManager.register_module("tight_hermes", module=TightHermes)
