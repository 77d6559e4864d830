"""The same sentences over torch.distributed: what workers send, and how sharded parameters are moved."""

from hasten.distributed.agreement import Disagreement, agree
from hasten.distributed.exchange import Exchange, Parcel
from hasten.distributed.hook import Hook, SubspaceHook
from hasten.distributed.linear import AllReduce, Subspace
from hasten.wire import Communication, Traffic, WorkerLost

__all__ = [
    "AllReduce",
    "Communication",
    "Disagreement",
    "Exchange",
    "Hook",
    "Parcel",
    "Subspace",
    "SubspaceHook",
    "Traffic",
    "WorkerLost",
    "agree",
]
