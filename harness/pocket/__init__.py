"""`pocket`: the reference model that ships with the harness, and everything it was made from.

`world` writes its documents and task items, `train` makes the model, and MODEL_DIR holds the result.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
