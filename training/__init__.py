"""Training scripts that read top to bottom, and the generator of the data the demo learns from."""
