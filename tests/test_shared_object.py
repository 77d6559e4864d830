"""Native passes are compiled once, kept safely, and missed with a clear word."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hasten import shared_object
from hasten.engine.formula import Formula, Layout
from hasten.engine.native import native_pass
from hasten.engine.passes import compiled_pass
from hasten.shared_object import NoCompiler

LAYOUT = Layout((torch.float32, torch.float32), torch.float32, "cpu")


def descent(entry, number):
    return {"param": entry["param"] - number["lr"] * entry["grad"]}, {}


DESCENT = Formula(("param", "grad"), ("lr",), ("param",), (), descent, "descent")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CC": "", "PATH": "/nonexistent"}, "no C compiler found"),
        ({"CC": "/nonexistent/cc"}, "CC='/nonexistent/cc' is not a program"),
        ({"CC": "false"}, "false does not compile"),
    ],
)
def test_without_a_compiler_one_line_says_so(monkeypatch, variables, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NoCompiler, match=reason) as caught:
        compiled_pass(DESCENT, LAYOUT)
    assert len(str(caught.value).splitlines()) == 1


def built_in(folder, monkeypatch):
    monkeypatch.setenv("HASTEN_CACHE_DIR", str(folder))
    param = torch.ones(3)
    native_pass(DESCENT, LAYOUT)([[param], [torch.ones(3)]], [0.5], None)
    assert param.tolist() == [0.5] * 3


def test_objects_are_kept_private_and_used_again(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "cache"
    built_in(folder, monkeypatch)
    (made,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(shared_object, "_compile", lambda *_: pytest.fail("compiled again"))
    built_in(folder, monkeypatch)
    assert list(folder.iterdir()) == [made]


@pytest.mark.parametrize("damage", [b"", b"\x7fELF nonsense", None])
def test_a_damaged_object_is_built_again(tmp_path, monkeypatch, damage):
    built_in(tmp_path, monkeypatch)
    (made,) = tmp_path.iterdir()
    content = made.read_bytes()
    made.unlink()  # not overwritten in place: this process has it mapped
    made.write_bytes(content[: len(content) // 2] if damage is None else damage)
    built_in(tmp_path, monkeypatch)
    (made,) = tmp_path.iterdir()
    assert shared_object._load(made, "run") is not None


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="can be written by other users"):
        built_in(tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        built_in(tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_not_followed_to_a_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.warns(RuntimeWarning, match="is not a folder"):
        built_in(tmp_path / "link", monkeypatch)


NEEDED = """
import sys
from pathlib import Path
try:
    import sklearn.utils._openmp_helpers  # brings an OpenMP runtime of its own, whose path sorts before torch's
except ImportError:
    pass
import torch
from hasten import shared_object
print(shared_object._openmp_library()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torchs_openmp_runtime_is_the_one_that_passes_are_linked_to():
    run = subprocess.run([sys.executable, "-c", NEEDED], capture_output=True, text=True, check=True)
    used = Path(run.stdout.strip())
    bundled = [
        p
        for p in (Path(torch.__file__).parent / "lib").iterdir()
        if p.name.startswith(("libgomp", "libiomp5", "libomp"))
    ]
    assert not bundled or used in bundled


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pass_brings_no_further_openmp_runtime():
    def loaded() -> set[str]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return {
            line.split()[-1] for line in maps if "libgomp" in line or "libiomp5" in line or "libomp" in line
        }

    before = loaded()
    native_pass(DESCENT, LAYOUT)
    assert loaded() == before


def test_building_a_native_pass_does_not_load_the_compiler_of_torch():
    code = (
        "import sys, torch; from hasten.engine.formula import Formula, Layout;"
        "from hasten.engine.passes import compiled_pass;"
        "f = Formula(('param',), (), ('param',), (), lambda e, n: ({'param': -e['param']}, {}), 1);"
        "compiled_pass(f, Layout((torch.float32,), torch.float32, 'cpu'));"
        "assert 'torch._inductor.compile_fx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
