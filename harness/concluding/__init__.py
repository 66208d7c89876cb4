"""What the tables of a run come to: interim looks, notes, measurements. Nothing here has a model."""
