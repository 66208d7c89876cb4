"""Quantization with GPTQModel, in an environment of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.backends._common.isolated import IsolatedBackend

if TYPE_CHECKING:
    from harness.modules.linears import Linear


class GptqModel(IsolatedBackend):
    """Quantizes weights with the library GPTQModel (GPTQ), which runs in an environment of its own.

    Its pins do not go with those of other libraries. The model goes there as a folder and comes back as the checkpoint
    that would be shipped; what its codes mean is read from that and computed with floats here, not by its kernels. The
    checkpoint keeps a zero point for every scale and the index of every column's group, which are counted.
    """

    needs_calibration = True
    library = "gptqmodel"
    worker = Path(__file__).parent / "_common" / "gptqmodel_worker.py"
    create = (
        "python3 -m venv .venv-gptqmodel && "
        ".venv-gptqmodel/bin/pip install torch==2.13.0 transformers==5.17.0 numpy==2.2.6 setuptools wheel && "
        ".venv-gptqmodel/bin/pip install --no-build-isolation 'gptqmodel==7.6.*' torch==2.13.0 transformers==5.17.0 "
        "numpy==2.2.6"
    )

    bits: Literal[2, 3, 4, 8]
    """Bits of one code."""
    group_size: Annotated[int, Field(ge=1)] | None = 128
    """Inputs that share a scale; null: the whole output channel."""
    symmetric: bool = True
    """Zero points in the middle of the codes."""
    act_order: bool = False
    """Columns with the strongest inputs first."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Added to the diagonal of the Hessian, as a share of its mean."""

    def job(self) -> Mapping[str, Any]:
        """The settings under the names that the library has for them."""
        return {
            "bits": self.bits,
            "group_size": self.group_size or -1,
            "sym": self.symmetric,
            "desc_act": self.act_order,
            "damp_percent": self.damping,
        }

    def check(self, module: Linear) -> str:
        """Why the library cannot take a layer: it packs codes into words of 32 bits."""
        outputs, inputs = module.weight.shape
        if inputs % 32 or outputs % 32 or (self.group_size and inputs % self.group_size):
            return f"is {outputs}×{inputs}, and the library packs multiples of 32 and of group_size; skip it"
        return ""
