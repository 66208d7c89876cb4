"""SVG: tags, scales, charts."""
