"""Training of variants inside a run: what is learned from, what is minimized, and how a student is made."""
