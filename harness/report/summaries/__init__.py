"""Summaries for the sections of the report: pure functions of a run and its tables, which templates call by name."""
