"""Sequential sampling with interim looks, and slices of the documents."""
