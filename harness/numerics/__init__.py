"""Number formats: tensors onto grids of few values and back. Nothing here knows what a model is.

Grid      which values exist, in units of a scale            grids
Blocks    what shares one scale                              blocks
Format    both, and how the scales themselves are stored     formats
limits    what the grid has to span                          ranges
"""
