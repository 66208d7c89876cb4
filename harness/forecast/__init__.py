"""Forecasts for a plan before it runs: power, required sample sizes, cost, and defects of its gates."""
