"""A check in parts: computing one of them anywhere, and putting all of them together."""
