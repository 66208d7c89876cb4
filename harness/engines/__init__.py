"""What can run a model: one file is one engine."""
