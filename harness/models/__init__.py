"""Loading models, trusting their files, knowing which they are; ``loading`` is where to begin."""
