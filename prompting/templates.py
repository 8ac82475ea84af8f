"""Templates of stored prompts: the operator's text, with the caller's variables in it as data.

They are Jinja2's, in its sandbox, with a short list of filters and methods, and with bounds on loops and size: a caller
chooses values, and no value may make rendering long.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.errors import BadRequest, StartError

ITERATIONS = 1000
"""Of all loops of one rendering together."""
CHARACTERS = 200_000
"""Of one rendered text."""
FILTERS = frozenset(
    """abs capitalize count d default dictsort first float int items join last length list lower map max min reject
    select sort string sum title tojson trim truncate unique upper wordcount""".split()
)
METHODS = frozenset(
    """capitalize casefold endswith lower lstrip removeprefix removesuffix rstrip split splitlines startswith strip
    title upper""".split()
)
COUNTED = "counted by penstock"
"""No name that a template can write."""
NOT_HERE = (nodes.Block, nodes.CallBlock, nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include, nodes.Macro)


@pass_context
def counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if not next(context[COUNTED], False):
            raise SecurityError(f"its loops take more than {ITERATIONS} rounds")
        yield item


class Sandbox(ImmutableSandboxedEnvironment):
    """`*`, `**` and `%` work on numbers of a size that costs nothing."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self.filters = {name: code for name, code in self.filters.items() if name in FILTERS}
        self.filters[COUNTED] = counted
        self.globals = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in METHODS
        return not callable(value) and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not all(isinstance(side, int | float) and abs(side) < 1e15 for side in (left, right)):
            raise SecurityError(f"{operator} is for numbers")
        if operator == "**":
            raise SecurityError("** is not for templates")
        return super().call_binop(context, operator, left, right)


SANDBOX = Sandbox()


class Text:
    """A template with variables, `if`, `for`, `set` and filters. Raises StartError, with `place`, for what is none."""

    def __init__(self, source: str, place: str) -> None:
        try:
            tree = SANDBOX.parse(source)
            self.names = frozenset(find_undeclared_variables(tree))
            self._template = SANDBOX.from_string(bounded(tree))
        except TemplateSyntaxError as error:
            raise StartError(f"{place}, line {error.lineno}: {error.message}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Raises BadRequest for variables that it cannot be rendered with."""
        pieces, size = [], 0
        try:
            for piece in self._template.generate({**variables, COUNTED: iter([True] * ITERATIONS)}):
                size += len(piece)
                if size > CHARACTERS:
                    raise SecurityError(f"it becomes longer than {CHARACTERS} characters")
                pieces.append(piece)
        except TemplateError as error:
            raise BadRequest(f"the prompt cannot be rendered: {error.message}", param="prompt.variables") from None
        except Exception as error:  # what the operator's expressions do with the caller's values, such as 1 / 0
            raise BadRequest(f"the prompt cannot be rendered: {error}", param="prompt.variables") from error
        return "".join(pieces).strip()


def bounded(tree: nodes.Template) -> nodes.Template:
    """The same with every loop counted. Raises TemplateSyntaxError for what could run on in another way."""
    for node in tree.find_all(NOT_HERE):
        raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not for prompts", node.lineno)
    for loop in list(tree.find_all(nodes.For)):
        if loop.recursive:
            raise TemplateSyntaxError("recursive loops are not for prompts", loop.lineno)
        loop.iter = nodes.Filter(loop.iter, COUNTED, [], [], None, None, lineno=loop.lineno)
    tree.set_environment(SANDBOX)
    return tree
