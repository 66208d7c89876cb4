"""Which number formats have kernels on which hardware: a declared table, and what it says about a model.

``profiles.yaml`` is the table: targets, and kernels with the formats they take and the public pages that say so.
Nothing is measured here, and nothing is guessed: a format that no entry names has no kernel as far as is known. Nothing
of this package loads torch.
"""
