"""Several workers: the same race, batches shared, what they send counted; and what happens when one is gone."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hasten.race import Race, RaceError, load, race, resume
from hasten.race.cli import main
from hasten.race.errors import INTERRUPTED, LOST
from hasten.race.hooks import WAYS, parse_hooks
from hasten.race.launch import Crew
from hasten.race.progress import Observer
from hasten.race.run import Point, Run
from hasten.race.store import Store
from hasten.race.task import Task
from hasten.race.tasks import find_task
from hasten.race.training import blaming
from hasten.race.workers import part
from hasten.wire import WorkerLost

pytest.importorskip("sklearn", reason="the extra 'race' is not installed")

HOOKS = "none,subspace(ratio=16),local(every=4)"
SHAPES = [(128, 64), (128,), (128, 128), (128,), (10, 128), (10,)]
"""Of the parameters of task digits."""


class Heard(Observer):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.runs: list[Run] = []

    def measured(self, label: str) -> None:
        self.told["measured"] += 1

    def planned(self, plan: object) -> None:
        self.told["planned"] += 1

    def began(self, name: str) -> None:
        self.told["began"] += 1

    def stepped(self) -> None:
        self.told["stepped"] += 1

    def ended(self, run: Run) -> None:
        self.runs.append(run)

    def closed(self) -> None:
        self.told["closed"] += 1


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, heard: Heard) -> Race:
    """A race of two workers over three hooks."""
    folder = tmp_path_factory.mktemp("two") / "race"
    return race(
        "digits", "AdamW", seeds=1, steps=6, evaluations=3, hook=HOOKS, world=2, threads=1, out=folder,
        observer=heard,
    )  # fmt: skip


def sent(result: Race, label: str) -> list[float | None]:
    return [point.bytes for point in next(run for run in result.runs if run.label == label).points]


def test_two_workers_follow_one(of_two: Race, tmp_path: Path) -> None:
    alone = race("digits", "AdamW", seeds=1, steps=6, evaluations=3, threads=1, out=tmp_path / "one")
    both = next(run for run in of_two.runs if run.label == "AdamW")
    for one, two in zip(alone.runs[0].points, both.points, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-5)
        if one.step:
            assert two.train_loss == pytest.approx(one.train_loss, rel=1e-5)
        assert (one.bytes, one.samples) == (None, two.samples)
    alike = torch.load(next((alone.folder / "runs").glob("*.pt")), weights_only=True)["model"]
    shared = torch.load(next((of_two.folder / "runs").glob("AdamW-seed*.pt")), weights_only=True)["model"]
    for name, weight in alike.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-5)


def test_what_is_sent_is_counted(of_two: Race) -> None:
    """Of n bytes one of two workers sends n in an all-reduce."""
    entries = [torch.Size(shape).numel() for shape in SHAPES]
    assert of_two.plan.parameters == sum(entries)
    assert sent(of_two, "AdamW") == [4 * step * sum(entries) for step in (0, 2, 4, 6)]
    few = sum(n if len(shape) < 2 else -(-n // 16) for n, shape in zip(entries, SHAPES, strict=True))
    assert sent(of_two, "AdamW over subspace(ratio=16)") == [4 * step * few for step in (0, 2, 4, 6)]
    # An exchange after step 4 and one when training ends, each with 4 bytes that say whether all are sound.
    exchange = 4 * sum(entries) + 4
    assert sent(of_two, "AdamW over local(every=4)") == [0, 0, exchange, 2 * exchange]
    thin = next(s for s in of_two.standings if "subspace" in s.label)
    assert (thin.bytes, thin.fewer) == (24 * few, sum(entries) / few)
    assert thin.bytes_to_target is not None
    assert 0 <= thin.bytes_to_target <= thin.bytes


def test_the_caller_hears_how_it_goes(of_two: Race, heard: Heard) -> None:
    assert heard.told == {"measured": 3, "planned": 1, "began": 3, "stepped": 18, "closed": 1}
    assert tuple(heard.runs) == of_two.runs
    assert not of_two.interrupted
    assert (of_two.plan.world, of_two.plan.hooks) == (2, tuple(h.label for h in parse_hooks(HOOKS)))


def test_the_report_draws_loss_against_bytes(of_two: Race) -> None:
    page = of_two.report().read_text()
    figures = json.loads(re.findall(r'type="application/json">(.*?)</script>', page, re.S)[-1])
    figure = next(f for f in figures if f["id"] == "plot-bytes")
    assert figure["layout"]["xaxis"]["type"] == "log"
    for trace in figure["traces"]:
        run = next(run for run in of_two.runs if run.label == trace["name"])
        assert trace["x"] == [p.bytes / 1e6 if p.bytes else None for p in run.points]
        assert trace["y"] == [p.loss for p in run.points]
    assert set(next(f for f in figures if f["id"] == "plot-target")["axes"]) == {
        "steps",
        "seconds",
        "MB_sent",
    }
    assert '<section id="bytes">' in page
    for text in ("× fewer than fp32", "MB to target", "2 workers share every batch"):
        assert text in page
    thin = next(line for line in of_two.summary().splitlines() if "subspace" in line)
    assert "13.9" in thin.split()
    assert {path.name for path in of_two.figures()} == {"curves.png", "standings.png", "bytes.png"}


def test_a_worker_alone_is_as_it_was(tmp_path: Path) -> None:
    """Files of races without workers load, whether written before there were any or since."""
    result = race("valley", "SGD(lr=0.01)", seeds=1, steps=5, out=tmp_path / "race")
    assert result.runs[0].label == "SGD(lr=0.01)"
    plan = json.loads((result.folder / "plan.json").read_text())
    for name in ("world", "hooks"):
        del plan[name]
    for contender in plan["contenders"]:
        assert contender.pop("hook") is None
    (result.folder / "plan.json").write_text(json.dumps(plan))
    path = next((result.folder / "runs").glob("*.jsonl"))
    path.write_text(path.read_text().replace(', "bytes": null', ""))
    assert load(result.folder).runs == result.runs
    assert "MB sent" not in load(result.folder).summary()
    assert "plot-bytes" not in result.report().read_text()


def test_torchrun_starts_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "race"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hasten.race",
        "--task", "digits", "--optimizers", "AdamW,SubspaceNesterov", "--hook", "subspace", "--seeds", "1",
        "--budget", "12s", "--tune", "1", "--out", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:") == 1
    assert "hasten:" not in done.stderr
    result = load(folder)
    assert not result.interrupted
    assert [run.label for run in result.trials] == [c.label for c in result.plan.contenders]
    assert {run.steps for run in (*result.runs, *result.trials)} == {result.plan.steps}
    assert result.plan.steps >= 10
    assert result.plan.command.startswith("torchrun --nproc-per-node 2 -m hasten.race --task digits")
    nesterov = next(run for run in result.runs if run.label.startswith("SubspaceNesterov"))
    assert nesterov.points[-1].bytes is not None


# -- workers that go ------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hasten.race", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def await_runs(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("runs/*.jsonl"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def digests(result: Race) -> dict[tuple[str, int], str]:
    return {(run.label, run.seed): run.digest for run in result.runs}


def test_a_worker_whose_pipe_is_closed_before_it_is_gone_is_the_cause(tmp_path: Path) -> None:
    crew = Crew.__new__(Crew)
    crew.store, crew.heard = Store(tmp_path), queue.Queue()
    crew.members = [subprocess.Popen(["sh", "-c", line]) for line in ("exit 1", "sleep 0.5; kill -KILL $$")]
    crew.heard.put((1, None))
    failure = crew._failure({0: {"what": "failed", "kind": "lost", "value": ""}})
    assert isinstance(failure, WorkerLost)
    assert str(failure).startswith("worker 1 of 2 died (killed by SIGKILL); ")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_worker_dies_then_a_person_stops_it_then_it_is_as_if_nothing_had_happened(
    own_task: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "race"
    line = f"go on with: hasten race --resume --out {folder}"
    process = start(
        "--task", f"{own_task}:slow", "--optimizers", "AdamW,Lion,SGD(lr=0.1)", "--seeds", "2", "--steps", "20",
        "--hook", "none", "--world", "2", "--threads", "1", "--out", str(folder),
    )  # fmt: skip
    await_runs(process, folder, 2)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == LOST
    assert errors == f"hasten: worker 1 of 2 died (killed by SIGKILL); {line}\n"
    assert all(gone(pid) for pid in workers)
    first = load(folder)
    assert first.interrupted
    assert len(first.runs) >= 2

    kept, lost = sorted(folder.glob("runs/*.jsonl"))[:2]
    content = kept.read_bytes()
    lost.unlink()
    process = start("--resume", "--out", str(folder))
    await_runs(process, folder, len(first.runs) + 1)
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (INTERRUPTED, "")
    assert line in output
    assert all(gone(pid) for pid in workers)
    assert load(folder).interrupted

    rest = resume(folder)
    assert not rest.interrupted
    assert len(rest.runs) == 6
    assert digests(first).items() <= digests(rest).items()  # what was lost is found again, to the bit
    assert kept.read_bytes() == content


def test_a_launcher_of_another_size_is_refused(of_two: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RaceError, match="is a race of 2 workers, but 1 were started"):
        resume(of_two.folder)
    with pytest.raises(RaceError, match="world=2 workers are asked for, but 1 were started"):
        race("digits", "SGD", world=2)


# -- what is asked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world", "2", "--hook", "subspce"], "unknown hook 'subspce': did you mean 'subspace'?"),
        (["--world", "2", "--hook", "bf16,bf16"], "hooks: bf16 is named twice"),
        (
            ["--world", "2", "--hook", "subspace(64)"],
            "write a name and named arguments, as in subspace(ratio=64)",
        ),
        (
            ["--world", "2", "--hook", "subspace(ratoi=64)"],
            "ratoi is not allowed; subspace takes ratio, rank",
        ),
        (["--world", "2", "--hook", "bf16(x=1)"], "x is not allowed; bf16 takes no arguments"),
        (["--world", "2", "--hook", "subspace(ratio=0.5)"], "ratio = 0.5 is not allowed"),
        (["--world", "2", "--hook", "subspace(rank=4, ratio=4)"], "a rank or a ratio, not both"),
        (["--world", "2", "--hook", "topk(ratio=0)"], "ratio = 0"),
        (["--world", "2", "--hook", "powersgd(start=1)"], "start = 1 is not allowed"),
        (["--world", "2", "--hook", "local(every=0)"], "every = 0 is not allowed"),
        (["--world", "2", "--hook", "local(lr=1.0, momentum=2.0)"], "momentum = 2.0"),
        (["--world", "2", "--hook", "local(momentum=0.9)"], "momentum = 0.9 needs an lr"),
        (["--world", "2", "--hook", "local(feedback=True)"], "feedback=True needs a ratio"),
        (["--world", "0"], "world=0 must be at least 1"),
        (["--hook", "bf16"], "hook='bf16' is for several workers, and there is one: add --world 2"),
        (
            ["--world", "2", "--task", "rosenbrock"],
            "task rosenbrock: there are no batches that 2 workers could share",
        ),
        (["--world", "2", "--task", "convex/logistic"], "there are no batches that 2 workers could share"),
        (["--world", "2", "--task", "least-squares"], "batches of 1 cannot be shared evenly by 2 workers"),
        (["--world", "3", "--task", "digits"], "batches of 64 cannot be shared evenly by 3 workers"),
        (
            ["--world", "2", "--task", "digits", "--optimizers", "SubspaceNesterov", "--hook", "topk"],
            "each worker would estimate the smoothness from its own loss",
        ),
        (
            [
                "--world",
                "2",
                "--task",
                "digits",
                "--optimizers",
                "SGD(on_nonfinite='raise')",
                "--hook",
                "local",
            ],
            "would stop one worker while the others wait",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_begins(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["race", *arguments])
    _, err = capsys.readouterr()
    assert stop.value.code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_task_is_one_line_too(own_task: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own_task.write_text(own_task.read_text().replace("x[rows]) - y[rows]", "x[rows]) - z[rows]"))
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "race",
                "--task",
                f"{own_task}:line",
                "--optimizers",
                "SGD",
                "--world",
                "2",
                "--out",
                str(own_task.parent / "out"),
            ]
        )
    _, err = capfd.readouterr()
    assert stop.value.code == 2
    assert re.fullmatch(r"hasten: task .*own.py:\d+: name 'z' is not defined\n", err)


def test_parts_of_a_batch_are_the_batch() -> None:
    batch = {"x": torch.arange(12.0).view(6, 2), "rows": (torch.arange(6), "as it is", torch.tensor(3.0))}
    parts = [part(batch, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([p["x"] for p in parts]), batch["x"])
    assert torch.equal(torch.cat([p["rows"][0] for p in parts]), batch["rows"][0])
    assert {p["rows"][1:] for p in parts} == {batch["rows"][1:]}
    with pytest.raises(RaceError, match="6 and 12 rows"):
        part((torch.zeros(6), torch.zeros(12)), 0, 2)


# -- ways to exchange, in a group of one ----------------------------------------------------------------------------


@pytest.fixture
def group_of_one() -> Iterator[None]:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(task: Task, wrap: Callable[[torch.optim.Optimizer], torch.optim.Optimizer], steps: int) -> None:
    optimizer = wrap(torch.optim.SGD(task.model.parameters(), lr=0.1))
    batches = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(task.sample(batches)).backward()
        optimizer.step()


EVERY_WAY = [
    *(name for name in WAYS if name != "local"),
    "subspace(sketch='Haar', rank=2)", "subspace(feedback=True)", "local(every=2)", "local(every=2, ratio=8)",
    "local(every=2, ratio=8, feedback=True, lr=0.5, momentum=0.5)",
]  # fmt: skip


@pytest.mark.parametrize("text", EVERY_WAY)
def test_every_way_trains_and_is_counted(text: str, group_of_one: None) -> None:
    from hasten.wire import communication

    task = find_task("digits").build(0)
    before = [p.clone() for p in task.model.parameters()]
    attached = parse_hooks(text)[0].way().attach(task, 1)
    trained(attached.task, attached.wrap, 4)
    attached.finish()
    assert communication(task.model.parameters()).total.payload > 0
    assert attached.sent() == 0  # there is nobody to send to
    kept = "feedback" in text or text.split("(")[0] not in ("none", "bf16", "subspace")
    assert (attached.memory() > 0) == kept
    assert all(not torch.equal(p, q) for p, q in zip(task.model.parameters(), before, strict=True))


def test_bytes_of_torchs_powersgd_are_those_it_hands_over(
    group_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    from hasten.wire import communication

    handed: list[int] = []
    reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: object, **options: object) -> object:
        handed.append(tensor.nbytes)
        return reduce(tensor, *args, **options)

    monkeypatch.setattr(dist, "all_reduce", counting)
    assert default_hooks.dist is dist
    task = find_task("digits-conv").build(0)
    attached = parse_hooks("powersgd(rank=2, start=3)")[0].way().attach(task, 1)
    handed.clear()
    trained(attached.task, attached.wrap, 6)
    assert communication(task.model.parameters()).total.payload == sum(handed)
    assert len(handed) > 6


def test_torchs_powersgd_gets_one_bucket(group_of_one: None) -> None:
    from hasten.wire import communication

    # More than DistributedDataParallel puts into its first bucket.
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512, bias=False) for _ in range(3)))
    task = Task(
        model=model,
        loss=lambda batch: model(batch).square().mean(),
        evaluate=lambda: 0.0,
        sample=lambda generator: torch.randn(2, 512, generator=generator),
    )
    attached = parse_hooks("powersgd")[0].way().attach(task, 1)
    trained(attached.task, attached.wrap, 4)
    assert communication(model.parameters()).total.calls == 4


def test_a_lost_worker_is_not_a_mistake_in_the_task() -> None:
    """DistributedDataParallel tells of both in a RuntimeError."""
    source = find_task("digits")
    with pytest.raises(WorkerLost), blaming(source, "training"):
        raise RuntimeError(
            "Got the following error when running the callback: WorkerLost: the exchange failed"
        )
    with (
        pytest.raises(RaceError, match="task digits: training raised RuntimeError"),
        blaming(source, "training"),
    ):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_points_keep_their_bytes() -> None:
    point = Point(1, 8, 0.1, 2.0, 1.9, None, 12.5)
    run = Run("a", 0, 0.1, {}, "finished", (point,), 1, 1.0, 0.1, 8.0, "")
    assert Run.from_lines(run.to_lines()) == run
