"""What must not be said: found in text, also while it streams, and held back before it is sent."""
