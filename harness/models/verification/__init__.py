"""Absolute checks of one model: transformers makes of its files what they ask for, whatever the other side is."""
