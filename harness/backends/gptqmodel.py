"""GPTQ with the library GPTQModel, in a separate Python environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.backends._common.isolated import IsolatedBackend

if TYPE_CHECKING:
    from harness.modules.linears import Linear


class GptqModel(IsolatedBackend):
    """Quantizes weights with the library GPTQModel (GPTQ), which runs in a separate Python environment.

    Its pinned dependencies conflict with those of other libraries. The model is passed as a folder and returns as the
    checkpoint that would be released; its codes are dequantized and evaluated with floats here, not with the library's
    kernels. The checkpoint stores a zero point per scale and the group index of every column, which are counted.
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
    """Bits per code."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = 128
    """Inputs that share a scale; null: the whole output channel."""
    symmetric: bool = True
    """true: zero point in the middle of the codes; false: asymmetric."""
    act_order: bool = False
    """Quantize columns with the strongest inputs first."""
    damping: Annotated[float, Field(gt=0, lt=1, examples=[0.01])] = 0.05
    """Damping added to the diagonal of the Hessian, as a fraction of its mean."""

    def job(self) -> Mapping[str, Any]:
        """The settings under the library's own names."""
        return {
            "bits": self.bits,
            "group_size": self.group_size or -1,
            "sym": self.symmetric,
            "desc_act": self.act_order,
            "damp_percent": self.damping,
        }

    def check(self, module: Linear) -> str:
        """Why the library cannot quantize a layer: it packs codes into 32-bit words."""
        outputs, inputs = module.weight.shape
        if inputs % 32 or outputs % 32 or (self.group_size and inputs % self.group_size):
            return f"is {outputs}×{inputs}, and the library packs multiples of 32 and of group_size; skip it"
        return ""
