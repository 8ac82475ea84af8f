"""Tokens: start, supervise and reach an inference engine. The only package that knows the hardware."""

# In an engine's environment: the process that started it, without which it must not go on.
SUPERVISOR_PID = "PENSTOCK_SUPERVISOR_PID"
# There where the model has 4-bit weights: vLLM gets the kernel of engine/dequantizing.py, too.
DEQUANTIZING = "PENSTOCK_DEQUANTIZING"
