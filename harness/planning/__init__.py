"""Reading variant, suite and gate files into records; ``harness/plan.py`` puts the parts together."""
