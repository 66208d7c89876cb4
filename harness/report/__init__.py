"""What the report and the terminal show: readable numbers, sentences, charts, summaries of a run and its tables.

Nothing here changes a number that a rule compares.
"""
