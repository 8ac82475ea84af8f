"""How good an answer is, how sure that is, and whether another model answers better."""
