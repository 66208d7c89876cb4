"""`pocket`: the reference model bundled with the harness, and the code that generates its data and trains it.

`world` writes its documents and task items, `train` trains the model, and MODEL_DIR holds the result.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
