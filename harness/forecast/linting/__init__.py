"""Checks gates before they judge anything: rules that can never pass, can never fail, or lack power."""
