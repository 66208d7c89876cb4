"""Rewrites and analyses of a model shared by backends and mutants."""
