"""Which number formats have kernels on which hardware: a declared table, and its lookup for a model.

``profiles.yaml`` is the table: targets, and kernels with their supported formats and the public pages that document
them. Nothing is measured or guessed here: a format that no entry names has no known kernel. Nothing in this package
loads torch.
"""
