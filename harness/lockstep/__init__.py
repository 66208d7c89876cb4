"""The shared teacher-forced pass; start reading at ``driver``."""
