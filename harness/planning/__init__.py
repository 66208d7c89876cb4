"""Reads variant, suite and gate files into records; ``harness/plan.py`` combines them into a plan."""
