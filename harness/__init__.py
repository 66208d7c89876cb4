"""Evaluation and quality gates for compressed language models."""

__version__ = "0.1.0"
