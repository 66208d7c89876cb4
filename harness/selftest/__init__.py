"""Gate mutation testing: how many known-bad variants a gate kills, and whether it lets harmless ones pass."""
