"""Muon for the matrices inside the layers, AdamW for the embedding and the gains."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

# Coefficients of the quintic iteration that pushes all singular values towards one (Jordan et al. 2024,
# "Muon").
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(updates_NRC: Tensor, steps: int = 5) -> Tensor:
    """Roughly the nearest (semi-)orthogonal matrix to each of N matrices, by Newton-Schulz steps."""
    x = updates_NRC.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(updates_NRC.dtype)
    return result


class Muon:
    """Momentum orthogonalized by Newton-Schulz steps, with decoupled weight decay.

    Same-shaped matrices go together.
    """

    def __init__(self, matrices: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            shapes[matrix.shape].append(matrix)
        self.groups = list(shapes.values())
        self.buffers = [torch.zeros(len(group), *group[0].shape) for group in self.groups]
        self.momentum = momentum
        self.weight_decay = weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update with learning rate `rate`.

        Tall matrices take a larger step, so that outputs change alike.
        """
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradients = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            buffer.lerp_(gradients, 1.0 - self.momentum)
            updates = orthogonalize(gradients.lerp(buffer, self.momentum))  # Nesterov
            scale = rate * max(1.0, buffer.shape[-2] / buffer.shape[-1]) ** 0.5
            for matrix, update in zip(group, updates, strict=True):
                matrix.mul_(1.0 - rate * self.weight_decay).add_(update, alpha=-scale)


class Optimizer:
    """Both optimizers behind one `step`. The rates are those of Muon and AdamW at full learning rate."""

    def __init__(self, network: nn.Module, muon_rate: float = 0.02, adam_rate: float = 3e-3, clip: float = 1.0) -> None:
        matrices = [p for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name]
        self.others = [p for name, p in network.named_parameters() if p.ndim != 2 or "embed" in name]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(self.others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.muon_rate, self.adam_rate, self.clip = muon_rate, adam_rate, clip

    def step(self, fraction: float) -> None:
        """Apply and clear the gradients; `fraction` scales both learning rates."""
        nn.utils.clip_grad_norm_(self.others, self.clip)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * fraction
        self.adam.step()
        self.muon.step(self.muon_rate * fraction)
        for parameter in self.others:
            parameter.grad = None
        for matrices in self.muon.groups:
            for matrix in matrices:
                matrix.grad = None
