"""The shared teacher-forced pass; ``driver`` is where to begin."""
