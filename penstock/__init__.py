"""The nouns every other package speaks in, and the command line."""

__version__ = "0.1.0"
