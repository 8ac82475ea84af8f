"""What each kind of fault does: a function from the moves of an answer to others."""

from collections.abc import Callable, Mapping
from contextlib import closing

from engine.sim.broken_answers import ANSWERS, status
from engine.sim.broken_streams import STREAMS
from engine.sim.faults import Fault
from engine.sim.moves import Moves
from engine.sim.shapes import Shape

Twist = Callable[[Fault, Moves, Shape | None], Moves]


def twisted(fault: Fault, moves: Moves, shape: Shape | None) -> Moves:
    """The answer with one fault; `shape` is how its route writes, where it generates text."""
    with closing(moves):
        yield from TWISTS[fault.kind](fault, moves, shape)


TWISTS: Mapping[str, Twist] = {twist.__name__: twist for twist in (*ANSWERS, *STREAMS)} | {"health_lies": status}
