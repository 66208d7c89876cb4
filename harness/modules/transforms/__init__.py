"""Rewrites and analyses of the modules of a model, shared by backends and mutants."""
