"""Texts: where they come from, how they become token ids, and which of them overlap."""
