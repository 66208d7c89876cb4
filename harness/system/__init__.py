"""Operating-system services: atomic writes, strict YAML, subprocesses, the environment, bundled files."""
