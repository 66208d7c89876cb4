"""What the sections of the report show: small pure summaries of a run and its tables. Templates use them by name."""
