"""Reads variant, suite and gate files into records, which ``harness/plan.py`` combines into a plan; interim looks and
slices of the documents that a plan asks for."""
