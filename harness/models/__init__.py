"""Opens checkpoints, verifies their files and identifies the loaded model; start reading at ``loading``."""
