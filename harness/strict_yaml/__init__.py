"""Strict YAML: every value knows its line, and nothing is guessed, merged or silently overwritten."""
