"""Tokens: start, supervise and reach an inference engine. The only package that knows the hardware."""
