"""Memory of a training, forecast from shapes. Loads no torch.

AdamW keeps two moments of float32 for every trainable parameter, 8 bytes; with a float32 master copy beside 16-bit
weights 12. A gradient has the size of its parameter. A base that stays as it is has no gradients and no moments: 7
billion parameters of 4 bits are 3.5 GB (scales apart), which is why QLoRA fits where full fine-tuning does not.

Activations are what the backward pass needs of the forward pass. For every token a decoder layer of the Llama family
keeps, in units of its widths (H hidden, A all query heads, K key and value heads together, I intermediate):

    two norms            2·(2H)      input and normalized values of each
    q, k, v              H + A + K   their common input; rotated queries, keys, and values
    attention            A           its output, which is the input of the output projection
    gate, up, down       H + 4I      common input; gate, activated gate, up, product
    head                 H + 2V      input, once for the model; logits and log-probabilities
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = 4


@dataclass(frozen=True)
class Shapes:
    """The sizes of a decoder that its configuration tells. heads: width of all query heads together; pairs: of all key
    and value heads together."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int
    pairs: int

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the linear layers of one decoder layer: q, k, v, output, gate, up, down."""
        hidden, inner, heads, pair = self.hidden, self.intermediate, self.heads, self.pairs // 2
        attention = (hidden, heads), (hidden, pair), (hidden, pair), (heads, hidden)
        return (*attention, (hidden, inner), (hidden, inner), (inner, hidden))

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers but the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    def adapter_parameters(self, rank: int, dora: bool = False) -> int:
        """Parameters of LoRA adapters on all of them, r·(I + O) each; with DoRA O more."""
        each = (rank * (inputs + outputs) + outputs * dora for inputs, outputs in self.linears)
        return self.layers * sum(each)

    def activations(self, documents: int, tokens: int) -> int:
        """Bytes that ``documents`` of ``tokens`` each keep for the backward pass, in float32."""
        layer = 6 * self.hidden + 2 * self.heads + self.pairs + 4 * self.intermediate
        model = self.layers * layer + self.hidden + 2 * self.vocabulary
        return FLOAT32 * documents * tokens * model


def shapes_of(config: object) -> Shapes | None:
    """The shapes that the text configuration of a model of transformers tells; None where one is missing."""
    hidden, layers, vocabulary = (
        _number(config, "hidden_size", "n_embd"),
        _number(config, "num_hidden_layers", "n_layer"),
        _number(config, "vocab_size"),
    )
    heads = _number(config, "num_attention_heads", "n_head")
    if not (hidden and layers and vocabulary and heads):
        return None
    width = _number(config, "head_dim") or hidden // heads
    pairs = 2 * width * (_number(config, "num_key_value_heads") or heads)
    intermediate = _number(config, "intermediate_size", "n_inner") or 4 * hidden
    return Shapes(hidden, intermediate, layers, vocabulary, width * heads, pairs)


def bytes_of_moments(trainable: int, bits: int = 32) -> int:
    """Bytes of the optimizer's states: two moments of ``bits`` bits for each of ``trainable`` parameters."""
    return 2 * bits // 8 * trainable


def bytes_of_base(parameters: int, bits: float) -> int:
    """Bytes of weights of ``bits`` bits each."""
    return -(-round(parameters * bits) // 8)


def _number(config: object, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)
