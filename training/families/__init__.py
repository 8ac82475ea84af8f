"""Families of generated conversations: each module turns a random generator into one item."""
