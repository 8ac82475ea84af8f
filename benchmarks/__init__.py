"""Speed and memory, as figures printed side by side from one interleaved run. No test asserts on them."""
