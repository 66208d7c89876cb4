"""Sequential sampling: interim looks at growing documents, and slices of them."""
