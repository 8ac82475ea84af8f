"""An engine that misbehaves on command: vLLM's API with deterministic text, set speed and every protocol fault."""

from engine.sim.asked import Model
from engine.sim.expected import Expected, expected
from engine.sim.faults import KINDS, Fault, FaultError, parse
from engine.sim.run import simulator
from engine.sim.simulator import Simulator

__all__ = ["KINDS", "Expected", "Fault", "FaultError", "Model", "Simulator", "expected", "parse", "simulator"]
