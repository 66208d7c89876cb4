"""Draws the report's charts as SVG: tags, scales, charts."""
