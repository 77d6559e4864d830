"""What the layers of a module say about their parameters: which are matrices, and how they are read."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from hasten.engine.structure import Layout, Structure

Kind = Literal["matrix", "embedding", "head", "vector", "other"]
"""What a parameter is."""

HEADS = frozenset(
    [
        *(
            "lm_head",
            "embed_out",
            "output_projection",
            "unembed",
            "logits",
            "score",
            "head",
            "heads",
            "fc_out",
        ),
        *("classifier", "classification_head", "qa_outputs"),
    ]
)
"""Names of modules whose matrix is the output head, wherever they are."""
FUSED = frozenset(["qkv", "qkv_proj", "wqkv", "query_key_value", "in_proj", "c_attn"])
"""Names of projections that hold query, key and value, one below the other."""
EMBEDDED = ("embed", "_token", "pos_")
"""Parts of the names of parameters, not modules, that are embeddings."""
GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
"""Recurrent layers whose matrices hold so many gates, one below the other."""


class Place(NamedTuple):
    """Where a parameter is: the path of its layer, its own name, the layer, and what that is in."""

    path: str
    own: str
    layer: nn.Module
    parent: nn.Module

    @property
    def name(self) -> str:
        """As ``named_parameters`` gives it."""
        return f"{self.path}.{self.own}" if self.path else self.own

    @property
    def last(self) -> str:
        """The layer's own name."""
        return self.path.rpartition(".")[2].lower()


def last_layer(module: nn.Module, first: bool = True) -> nn.Module | None:
    """The last layer, if others come before it: a child of the module, of a Sequential, or of a mere wrapper."""
    layers = [layer for layer in module.children() if any(True for _ in layer.parameters())]
    if not layers:
        return None if first else module
    first = first and len(layers) == 1
    last = layers[-1]
    if isinstance(last, nn.Sequential) or first or not any(True for _ in last.children()):
        return last_layer(last, first)
    return None


def judge(tensor: Tensor, places: list[Place], last: nn.Module | None) -> tuple[Kind, str, Structure]:
    """Kind, reason and structure of a tensor with two dimensions or more, from the layers it is in."""
    for place in places:
        if isinstance(place.layer, nn.Embedding | nn.EmbeddingBag):
            return "embedding", f"in {type(place.layer).__name__}", Structure()
        if any(word in place.own for word in EMBEDDED):
            return "embedding", "named so", Structure()
    for place in places:
        if tensor.dim() == 2 and place.last in HEADS:
            return "head", "named so", Structure()
        if tensor.dim() == 2 and place.layer is last:
            return "head", "the last layer", Structure()
    structure, why = _structure(tensor, places[0])
    columns = structure.matrix(tensor.shape)[2]
    if min(*structure.heights(tensor.shape), columns) == 1:
        return "other", f"{why}: one {'row' if columns > 1 else 'column'}", Structure()
    return "matrix", why, structure


def _structure(tensor: Tensor, place: Place) -> tuple[Structure, str]:
    """How a matrix is read, and the reason."""
    layer, shape = place.layer, tensor.shape
    where = f"in {type(layer).__name__}"
    if isinstance(layer, nn.modules.conv._ConvNd):
        if layer.groups > 1:
            return Structure(split=layer.groups), f"{where}, {layer.groups} groups"
        return (Structure("transposed"), f"{where}, transposed") if layer.transposed else (Structure(), where)
    for kind, gates in GATES.items():
        if isinstance(layer, kind) and place.own.startswith(("weight_ih", "weight_hh")):
            return Structure(split=gates), f"{where}, {gates} gates"
    fused = ", fused: see split"
    if tensor.dim() > 2:
        return Structure("stack"), f"{where}, a stack{fused if 'gate_up' in place.own else ''}"
    transposed = type(layer).__name__ == "Conv1D"
    layout: Layout = "transposed" if transposed else "flatten"
    rows, columns = reversed(shape) if transposed else shape
    if place.last in FUSED or place.own == "in_proj_weight":
        interleaved = (
            place.last == "query_key_value" and type(place.parent).__module__.split(".")[0] == "transformers"
        )
        if rows == 3 * columns and not interleaved:
            return Structure(layout, 3), "query, key and value"
        return Structure(layout), where + fused
    if "gate_up" in place.last:
        return Structure(layout), where + fused
    return Structure(layout), f"{where}, transposed" if transposed else where
