"""Rewrites of a model that backends and mutants share."""
