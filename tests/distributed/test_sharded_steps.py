"""What one step over sharded parameters must get right beside the trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import hasten
from hasten.engine import NonFiniteGradient
from hasten.iterates import EstimatedCanonical
from hasten.oracles import Backpropagation, ForwardMode
from hasten.transforms import ClipNorm


def mesh_of(world: int) -> Any:
    return init_device_mesh("cpu", (world,))


def placed(t: Tensor, mesh: Any, *placements: Any) -> DTensor:
    whole = DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, placements).detach()


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape).to(dtype)


def with_a_bad_shard(rank: int, world: int, policy: str) -> dict[str, Any]:
    mesh = mesh_of(world)
    plain = nn.Parameter(weights(3))
    params = [plain, nn.Parameter(placed(weights(4, 3), mesh, Shard(0)))]
    opt = hasten.AdamW([("bias", plain), ("weight", params[1])], on_nonfinite=policy)
    found: dict[str, Any] = {}
    for k in range(3):
        g = torch.ones(4, 3)
        if k == 1:
            g[3, 2] = torch.nan  # in the last shard only
        plain.grad, params[1].grad = torch.ones(3), placed(g, mesh, Shard(0))
        before = [p.detach().clone() for p in (plain, params[1].to_local())]
        try:
            opt.step()
        except NonFiniteGradient as error:
            found["error"] = str(error)
        after = [plain, params[1].to_local()]
        found[f"moved {k}"] = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    found["skipped"] = opt.skipped_steps
    found["calls"] = opt.communication.parts["finite"].calls
    return found


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_all_workers_refuse_a_step_that_one_cannot_take(pair, policy: str) -> None:
    for found in pair.run(with_a_bad_shard, policy):
        assert found["moved 0"] == found["moved 2"] == [True, True]
        assert found["moved 1"] == [False, False]
        assert found["skipped"] == (policy == "skip")
        assert ("parameter 'weight' is not finite" in found.get("error", "")) == (policy == "raise")
        assert found["calls"] == 3


def rounded(rank: int, world: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Steps of a quarter of a unit in the last place: a quarter of the entries move, at random."""
    mesh = init_device_mesh("cpu", (2, 2))
    runs = []
    for _ in range(2):
        start = torch.ones(4, 512, dtype=torch.bfloat16)
        p = nn.Parameter(placed(start, mesh, Replicate(), Shard(0)))
        opt = hasten.SGD([p], lr=2**-10, stochastic_rounding=True, seed=3)
        p.grad = placed(torch.full_like(start, -2.0), mesh, Replicate(), Shard(0))
        opt.step()
        runs.append(p.to_local().detach().float() - 1)
    plain = nn.Parameter(torch.ones(2, 512, dtype=torch.bfloat16))
    opt = hasten.SGD([plain], lr=2**-10, stochastic_rounding=True, seed=3)
    plain.grad = torch.full_like(plain, -2.0)
    opt.step()
    return runs, plain.detach().float() - 1, p.full_tensor().detach().float()


def test_shards_are_rounded_independently_and_replicas_alike(four) -> None:
    found = four.run(rounded)
    for runs, plain, _ in found:
        assert torch.equal(*runs)
        assert torch.equal(plain, found[0][1])
        assert abs(runs[0].mean().item() / 2**-7 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 1024)
    shards = [runs[0] for runs, _, _ in found]
    assert torch.equal(shards[0], shards[2])
    assert torch.equal(shards[1], shards[3])
    agreeing = (shards[0] == shards[1]).float().mean().item()
    assert abs(agreeing - (0.25**2 + 0.75**2)) < 5 * math.sqrt(0.25 / 1024)


def narrow(rank: int, world: int) -> list[Any]:
    mesh = mesh_of(world)
    p = nn.Parameter(placed(weights(5, 3), mesh, Shard(0)))
    opt = hasten.ScheduleFreeAdamW([p], lr=0.1, state_dtype=torch.bfloat16)
    q = nn.Parameter(weights(5, 3))
    alone = hasten.ScheduleFreeAdamW([q], lr=0.1, state_dtype=torch.bfloat16)
    points = []
    for k in range(3):
        q.grad = torch.cos(q.detach() + k)
        p.grad = placed(q.grad, mesh, Shard(0))
        opt.step(), alone.step()
    for _ in range(2):
        points.append((p.full_tensor().detach().clone(), q.detach().clone(), p._version))
        opt.eval(), alone.eval()
    opt.train(), alone.train()
    points.append((p.full_tensor().detach().clone(), q.detach().clone(), p._version))
    kinds = {name: (t.dtype, t.shape, isinstance(t, DTensor)) for name, t in opt.state[p].items()}
    expected = {name: (t.dtype, t.shape, name in ("z", "exp_avg_sq")) for name, t in alone.state[q].items()}
    return [points, kinds == expected]


def test_low_precision_states_and_two_points(pair) -> None:
    for points, kinds in pair.run(narrow):
        assert kinds
        for a, b, _ in points:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert not torch.equal(points[0][0], points[1][0])
        versions = [version for _, _, version in points]
        assert versions == sorted(set(versions))


def summed(rank: int, world: int) -> tuple[list[Tensor], Any]:
    """A gradient of which every worker has a summand, for a replicated and for a sharded parameter."""
    mesh = mesh_of(world)
    params = [
        nn.Parameter(placed(weights(4, 3), mesh, placement))
        for placement in (Replicate(), Shard(0), Shard(1))
    ]
    opt = hasten.SGD(params, lr=1.0)
    for p in params:
        p.grad = DTensor.from_local(torch.full((4, 3), float(rank + 1)), mesh, [Partial()], run_check=False)
    opt.step()
    return [p.full_tensor().detach() for p in params], opt.communication.parts["gradients"].sent


def test_summands_of_gradients_are_summed(pair) -> None:
    for values, sent in pair.run(summed):
        for p in values:
            torch.testing.assert_close(p, weights(4, 3) - 3, rtol=0, atol=0)
        assert sent == 48 * (1 + 0.5 + 0.5)


def estimating(rank: int, world: int) -> tuple[Tensor, float]:
    mesh = mesh_of(world)
    p = nn.Parameter(placed(weights(6, 2, dtype=torch.float64), mesh, Shard(0)))
    iterate = EstimatedCanonical(smoothness=4.0, strong_convexity=0.1, estimate_smoothness=True)
    opt = hasten.Optimizer([p], iterate=iterate, oracle=Backpropagation(loss=True))
    losses = (1.0, 3.0)
    for _ in range(3):

        def closure() -> Tensor:
            p.grad = p.detach() * 2
            return torch.tensor(losses[rank] if world > 1 else sum(losses) / 2, dtype=torch.float64)

        opt.step(closure)
    return p.full_tensor().detach(), opt.communication.parts["sums"].calls


def test_every_worker_steps_by_the_mean_of_the_losses(pair) -> None:
    found = pair.run(estimating)
    q = nn.Parameter(weights(6, 2, dtype=torch.float64))
    iterate = EstimatedCanonical(smoothness=4.0, strong_convexity=0.1, estimate_smoothness=True)
    opt = hasten.Optimizer([q], iterate=iterate, oracle=Backpropagation(loss=True))
    for _ in range(3):
        q.grad = q.detach() * 2
        opt.step(lambda: torch.tensor(2.0, dtype=torch.float64))
    for value, _ in found:
        torch.testing.assert_close(value, q.detach(), rtol=1e-12, atol=1e-12)
        assert torch.equal(value, found[0][0])


def clipped(rank: int, world: int) -> Any:
    mesh = mesh_of(world)
    params = [nn.Parameter(placed(weights(4, 3), mesh, Shard(side))) for side in (0, 1, 0, 1)]
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.2}]
    opt = hasten.Optimizer(groups, ClipNorm(0.5))
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    return opt.communication.parts


def test_one_number_is_sent_for_a_norm_over_everything(pair) -> None:
    for parts in pair.run(clipped):
        assert list(parts) == ["sums"]
        assert (parts["sums"].calls, parts["sums"].payload) == (1, 8)


def swapped(rank: int, world: int) -> tuple[Tensor, Tensor, int]:
    """As frameworks do that shard a model after its optimizer was made."""
    plain, q = nn.Parameter(weights(5, 3)), nn.Parameter(weights(5, 3))
    opt, alone = hasten.AdamW([plain], lr=0.1), hasten.AdamW([q], lr=0.1)
    p = nn.Parameter(placed(plain.detach(), mesh_of(world), Shard(0)))
    opt.param_groups[0]["params"] = [p]
    for k in range(3):
        q.grad = torch.cos(q.detach() + k)
        p.grad = placed(q.grad, mesh_of(world), Shard(0))
        opt.step()
        alone.step()
    return p.full_tensor().detach(), q.detach(), len(opt.state_dict()["state"])


def test_parameters_may_be_swapped_for_sharded_ones(pair) -> None:
    for p, q, states in pair.run(swapped):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        assert states == 1


def refused(rank: int, world: int) -> dict[str, str]:
    mesh = mesh_of(world)

    def fresh(*placements: Any) -> nn.Parameter:
        return nn.Parameter(placed(weights(4, 3), mesh, *(placements or (Shard(0),))))

    def stepped(opt: torch.optim.Optimizer, p: Tensor) -> None:
        opt.step(lambda: (p * p).sum().full_tensor())

    def of_summands() -> None:
        p = nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, [Partial()], run_check=False))
        opt = hasten.SGD([p], lr=0.1)
        p.grad = p.detach().clone()
        opt.step()

    def forward() -> None:
        p = fresh()
        stepped(hasten.SubspaceNesterov([p], rank=2, smoothness=2.0, oracle=ForwardMode()), p)

    def estimated() -> None:
        p = fresh()
        stepped(hasten.SubspaceNesterov([p], rank=2), p)

    return {case.__name__: refusal(case) for case in (of_summands, forward, estimated)}


def refusal(case: Callable[[], None]) -> str:
    try:
        case()
    except RuntimeError as error:
        return str(error)
    return ""


def test_what_cannot_be_done_is_refused_by_name(pair) -> None:
    for found in pair.run(refused):
        assert "SGD: parameter 0 of group 0, shape (4, 3), cannot be stepped" in found["of_summands"]
        assert "ForwardMode does not support" in found["forward"]
        assert "give smoothness as a number" in found["estimated"]
