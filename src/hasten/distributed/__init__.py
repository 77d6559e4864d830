"""The same sentences over torch.distributed: what workers send, and how sharded parameters are moved."""

from hasten.distributed.agreement import Disagreement, agree, agree_on
from hasten.distributed.checkpoint import Checkpoint, CheckpointError, latest, load, save
from hasten.distributed.compressors import Compressor, Sign, Sketched, TopK
from hasten.distributed.error_feedback import ErrorFeedback, redistributed
from hasten.distributed.exchange import Exchange, Parcel
from hasten.distributed.hook import Hook, SubspaceHook
from hasten.distributed.linear import AllReduce, Subspace
from hasten.distributed.local_steps import LocalSteps
from hasten.distributed.low_rank import DCTColumns, LowRank
from hasten.wire import Communication, Traffic, WorkerLost

__all__ = [
    "AllReduce",
    "Checkpoint",
    "CheckpointError",
    "Communication",
    "Compressor",
    "DCTColumns",
    "Disagreement",
    "ErrorFeedback",
    "Exchange",
    "Hook",
    "LocalSteps",
    "LowRank",
    "Parcel",
    "Sign",
    "Sketched",
    "Subspace",
    "SubspaceHook",
    "TopK",
    "Traffic",
    "WorkerLost",
    "agree",
    "agree_on",
    "latest",
    "load",
    "redistributed",
    "save",
]
