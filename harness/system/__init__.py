"""The machine and its files: writing, reading strict YAML, subprocesses, the environment, what ships in the package."""
