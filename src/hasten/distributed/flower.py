"""Flower's side of federated learning with sketched updates: a mod for its clients and a strategy for its server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from hasten.distributed.anchor import Outer
from hasten.distributed.federated import SketchedMean, sketched
from hasten.sketches import Sketch
from hasten.sketches.layers import Shape, vectors
from hasten.wire import Communication

logger = logging.getLogger("flwr")


class SketchMod:
    """A mod of a Flower ``ClientApp``: its training replies carry r numbers instead of the model.

    The app's own code stays as it is: it trains the model from the message's arrays and replies with all arrays and the
    number of examples. On the way out, θ − θ_i is projected on the round's random subspace. It needs a server with a
    :class:`SketchStrategy` of the same sketch, and fails, as Flower clients do, with a message that says so otherwise.

    Args:
        sketch: family of P; balanced CountSketch with d/r = 64 unless given.
        exact: which shapes are sent whole; vectors and scalars unless given.

    Example:
        ``app = ClientApp(mods=[SketchMod(BalancedCountSketch(ratio=64))])``
    """

    def __init__(self, sketch: Sketch | None = None, *, exact: Callable[[Shape], bool] = vectors) -> None:
        SketchedMean(
            sketch, exact=exact
        )  # an argument that is not allowed shows here, not in the first round
        self.sketch = sketch
        self.exact = exact

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Let the app answer; if that was training, sketch what it sends."""
        if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        _, model = _only(message)
        before = tensors(model)
        settings = {
            key: value for record in message.content.config_records.values() for key, value in record.items()
        }
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        key, trained = _only(reply)
        sent = sketched(before, tensors(trained), settings, self.sketch, exact=self.exact)
        reply.content[key] = arrays(sent)
        return reply


class SketchStrategy(FedAvg):
    """Federated averaging in which clients send r numbers, and an optimizer of any kind steps on their mean.

    Clients need :class:`SketchMod` with the same sketch. What happens to what they send is told by
    :class:`~hasten.distributed.federated.SketchedMean`; clients that fail or die are left out of the mean.

    Args:
        sketch: family of P; balanced CountSketch with d/r = 64 unless given.
        outer: makes the server's optimizer from a list of tensors; SGD(lr=1) unless given: federated averaging.
        averaged: names of arrays that are averaged whole instead, such as those of ``model.named_buffers()``.
        exact: which shapes are sent whole; vectors and scalars unless given.
        seed: of the subspaces.
        fedavg: as for Flower's ``FedAvg``: how many clients take part, names of records, aggregation of metrics.

    Example:
        ``SketchStrategy(BalancedCountSketch(ratio=64), fraction_train=0.1).start(grid, initial_arrays)``
    """

    def __init__(
        self,
        sketch: Sketch | None = None,
        outer: Outer | None = None,
        *,
        averaged: Collection[str] = (),
        exact: Callable[[Shape], bool] = vectors,
        seed: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        self.server = SketchedMean(sketch, outer, averaged=averaged, exact=exact, seed=seed)

    @property
    def communication(self) -> Communication:
        """What the server sent, as "model", and received, as "displacements": arrays, without Flower's framing."""
        return self.server.communication

    def summary(self) -> None:
        """Log how updates are sketched, then what FedAvg says."""
        logger.info("\t├──> Updates: %r, outer step by %s", self.server.exchange, self.server.outer)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg, and tell the clients from what to draw the round's subspaces."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if messages:
            settings = self.server.begin(tensors(arrays), clients=len(messages))
            for message in messages:
                record = message.content.config_records[self.configrecord_key]
                for key, value in settings.items():
                    record[key] = value
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model after the outer step, and the metrics, weighted by the examples of those that answered."""
        contents, found = [], []
        for reply in replies:
            fault = reply.error.reason if reply.has_error() else _fault(reply)
            if fault:
                logger.warning("node %s failed: %s", reply.metadata.src_node_id, fault)
            else:
                contents.append(reply.content)
                found.append((_examples(reply, self.weighted_by_key), tensors(_only(reply)[1])))
        if not found:
            return None, None
        model = self.server.finish(found)
        for i, reason in self.server.refused.items():
            logger.warning("the reply of %s examples was left out of the mean: %s", found[i][0], reason)
        used = [content for i, content in enumerate(contents) if i not in self.server.refused]
        return arrays(model), self.train_metrics_aggr_fn(used, self.weighted_by_key) if used else None


def tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """A record's arrays as tensors."""
    return dict(record.to_torch_state_dict())


def arrays(state: dict[str, Tensor]) -> ArrayRecord:
    """Tensors as a record."""
    return ArrayRecord({name: Array(t.detach().cpu().numpy()) for name, t in state.items()})


def _fault(message: Message) -> str:
    count = len(message.content.array_records)
    return "" if count == 1 else f"it holds {count} records of arrays; it must be exactly 1: the model's"


def _only(message: Message) -> tuple[str, ArrayRecord]:
    fault = _fault(message)
    if fault:
        raise ValueError(f"a message cannot be sketched: {fault}")
    ((key, record),) = message.content.array_records.items()
    return key, record


def _examples(reply: Message, key: str) -> float:
    for record in reply.content.metric_records.values():
        value = record.get(key)
        if isinstance(value, int | float):
            return float(value)
    return 0.0
