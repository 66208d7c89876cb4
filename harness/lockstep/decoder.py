"""A causal language model in two halves: hidden states of a batch, then logits of any rows of these states.

The second half is the model's own ``forward`` with its trunk patched to return given hidden states at once. So
soft-caps, scales and biases of any architecture are applied by its own code, and the logits of a whole batch are never
in memory.

Legend: B documents, T positions, N rows (positions of several documents), D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError, ModelError
from harness.lockstep.arrangement import Arrange, Gatherer, plan_moves
from harness.lockstep.batches import Batch
from harness.lockstep.recording import Tap
from harness.models.language_model import LanguageModel
from harness.system.foreign import guard

VERIFIED_TOKENS = 128
"""Number of positions on which split and plain forward are compared before a pass."""
COMPARED_ROWS = 8
"""Rows of logits that are compared at a time."""


class Decoder:
    """One model, run in two halves. ``whole``: why it cannot be split ("" if it can).

    arrange: batch layout, if the documents of a batch do not run together.
    """

    def __init__(self, name: str, model: LanguageModel, arrange: Arrange | None = None) -> None:
        self.name, self.language_model = name, model
        self._arrange, self._gatherer = arrange, Gatherer()
        self.whole = ""
        self._trunk: nn.Module | None = None
        self._answer: type[Any] | None = None

    @property
    def modules(self) -> Any:
        """The modules of the model; None where its engine gives no access to them."""
        return self.language_model.modules

    @property
    def device(self) -> torch.device:
        """Device of the token ids."""
        return self.language_model.device

    def prepare(self, ids_1T: Tensor) -> Tensor:
        """Find the trunk by testing candidates: both halves must reproduce the plain logits [T, V], which are returned.

        If no candidate does, the model stays unsplit (``whole``), and logits take the place of hidden states: correct,
        but larger. Raises ModelError for a model that cannot be called at all.
        """
        try:
            with guard(f"{self.name}: its forward pass"):
                plain_TV = self._plain(ids_1T, None)[0]
        except HarnessError:
            raise
        except Exception as error:  # Kernels of libraries raise anything; the user must learn whose they were.
            raise ModelError(
                f"{self.name}: calling it on {ids_1T.shape[1]} tokens raised {type(error).__name__}: {error}; look "
                "whether its kernels take models of this shape and dtype"
            ) from error
        self.whole = "it has no trunk" if self.modules is not None else "its engine gives no access to hidden states"
        for trunk in self._candidates():
            self._trunk = trunk
            try:
                states_TD = self.states(ids_1T, None)
                halves_TV = torch.cat([self.logits(rows) for rows in torch.split(states_TD, 48)])
            except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
                # not the module that the model's forward asks for hidden states: try the next one
                self.whole = f"{type(trunk).__name__} alone failed ({type(error).__name__}: {error})"
                continue
            if same_logits(halves_TV, plain_TV):
                self.whole = ""
                return plain_TV
            self.whole = f"{type(trunk).__name__} and the rest of the model gave other logits than both together"
        self._trunk = None
        return plain_TV

    def states(self, ids_BT: Tensor, mask_BT: Tensor | None, positions_BT: Tensor | None = None) -> Tensor:
        """Last hidden states [B*T, D] (logits [B*T, V] of a model that cannot be split).

        positions_BT: position of each token in its document, if that differs from its index in the row.
        """
        if self._trunk is None:
            return self._plain(ids_BT, mask_BT, positions_BT).flatten(0, 1)
        output = self._call(self._trunk, ids_BT, mask_BT, positions_BT)
        self._answer = type(output)
        states_BTD: Tensor = output.last_hidden_state
        return states_BTD.flatten(0, 1)

    def scored_states(self, batch: Batch) -> Tensor:
        """``states`` [N, D] of the positions of a batch that predict a token, document by document."""
        if self._arrange is None:
            return self._batch_states(batch)[batch.index_scored(self.device)[0]]
        states_PD: Tensor | None = None
        self._gatherer.begin(batch)
        for move in plan_moves(batch, self._arrange(batch)):
            self._gatherer.next_part(move)
            found_PD = self._gatherer.place_rows(self._batch_states(move.part))
            states_PD = found_PD if states_PD is None else states_PD + found_PD
        self._gatherer.end()
        if states_PD is None:
            raise ValueError(f"{self.name}: the layout of batch {batch.index} has no parts")
        return states_PD[batch.index_scored(states_PD.device)[0]]

    def wrap_taps(self, taps: Mapping[str, Sequence[Tap]]) -> dict[str, list[Tap]]:
        """Taps to attach to the modules so that the given taps see whole batches in every layout."""
        if self._arrange is None:
            return {module: list(own) for module, own in taps.items()}
        return self._gatherer.wrap_taps(taps)

    def _batch_states(self, batch: Batch) -> Tensor:
        mask_BT = batch.is_token(self.device).long() if batch.has_padding else None
        positions_BT = batch.positions(self.device) if batch.left else None
        return self.states(batch.token_ids(self.device), mask_BT, positions_BT)

    def logits(self, states_ND: Tensor) -> Tensor:
        """Logits [N, V] of rows of ``states``, in the dtype in which the model gives them."""
        if self._trunk is None or self._answer is None:
            return states_ND
        stand_in = torch.zeros(1, len(states_ND), dtype=torch.int64, device=states_ND.device)
        with _answer_with(self._trunk, self._answer(last_hidden_state=states_ND[None])):
            return self.language_model.logits(stand_in)[0]

    def _plain(self, ids_BT: Tensor, mask_BT: Tensor | None, positions_BT: Tensor | None = None) -> Tensor:
        if self.modules is not None:
            self._check_positions(self.modules, positions_BT)
        logits_BTV = self.language_model.logits(ids_BT, mask_BT, positions_BT)
        if logits_BTV.dim() != 3 or logits_BTV.shape[:2] != ids_BT.shape:
            raise ModelError(
                f"{self.name}: found logits of shape {tuple(logits_BTV.shape)} for token ids of shape "
                f"{tuple(ids_BT.shape)}, expected one row of logits for every token"
            )
        return logits_BTV

    def _call(self, module: Any, ids_BT: Tensor, mask_BT: Tensor | None, positions_BT: Tensor | None) -> Any:
        named: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        self._check_positions(module, positions_BT)
        if positions_BT is not None:
            named["position_ids"] = positions_BT
        return module(**named, use_cache=False, return_dict=True)

    def _check_positions(self, module: Any, positions_BT: Tensor | None) -> None:
        """Raise ModelError where positions are given to a module that does not take any."""
        if positions_BT is not None and "position_ids" not in inspect.signature(module.forward).parameters:
            raise ModelError(
                f"{self.name}: {type(module).__name__} takes no position_ids, which documents that are padded on the "
                "left need; remove padding_side from the suite's noise_floor"
            )

    def _candidates(self) -> Iterator[nn.Module]:
        model = self.modules
        if model is None:
            return
        seen: list[nn.Module] = [model]
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        # Classes whose base_model is themselves, or whose decoder has a head (Llama 4), have their trunk in ``model``.
        inner = [getattr(each, "model", None) for each in (model, decoder)]
        for trunk in (model.base_model, decoder, *inner):
            if isinstance(trunk, nn.Module) and not any(trunk is other for other in seen):
                seen.append(trunk)
                yield trunk


def same_logits(left_NV: Tensor, right_NV: Tensor) -> bool:
    """Whether two logits agree up to the rounding of matrix products of different shapes; NaN equals NaN."""
    if left_NV.shape != right_NV.shape or left_NV.dtype != right_NV.dtype:
        return False
    unit = torch.finfo(left_NV.dtype).eps * (64 if left_NV.dtype == torch.float32 else 4)
    # A few rows at a time: copies of all of them, freed here and there, would cost the whole pass its memory.
    pairs = list(zip(torch.split(left_NV, COMPARED_ROWS), torch.split(right_NV, COMPARED_ROWS), strict=True))
    count, squares = 0, 0.0
    for _, right in pairs:
        finite = right[right.isfinite()].float()
        count, squares = count + len(finite), squares + float(finite.square().sum())
    scale = (squares / count) ** 0.5 if count else 1.0
    return all(
        torch.allclose(left.float(), right.float(), rtol=unit, atol=unit * scale, equal_nan=True)
        for left, right in pairs
    )


@contextmanager
def _answer_with(trunk: nn.Module, answer: object) -> Iterator[None]:
    """Let ``trunk`` answer every call with ``answer`` instead of computing."""
    before = trunk.__dict__.get("forward")
    trunk.__dict__["forward"] = lambda *_arguments, **_named: answer
    try:
        yield
    finally:
        del trunk.__dict__["forward"]
        if before is not None:
            trunk.__dict__["forward"] = before
