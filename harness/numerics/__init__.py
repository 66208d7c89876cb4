"""Number formats: tensors onto grids of few values and back. Nothing here knows what a model is."""
