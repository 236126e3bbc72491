"""Which GPUs are there, which of them this shell may use, and which torch can use."""

from typing import Any

import pytest

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.jobs import devices
from nnunetv2_ext.jobs.devices import check_gpus, gpus_visible, has_mps

LISTING = "".join(
    f"GPU {number}: NVIDIA Card (UUID: GPU-{number}a-b)\n  MIG 1g Device 0: (UUID: MIG-x)\n" for number in (0, 1, 3)
)


def answer(monkeypatch: pytest.MonkeyPatch, listing: str, count: str) -> list[dict[str, str]]:
    """nvidia-smi and torch say so; returns the variables that they are asked with."""
    asked: list[dict[str, str]] = []

    def said(*command: str, **variables: str) -> str:
        asked.append(variables)
        return listing if command[-1] == "-L" else count

    monkeypatch.setattr(devices, "_said", said)
    return asked


@pytest.mark.parametrize(
    ("variable", "visible"),
    [
        (None, [0, 1, 3]),
        ("", []),
        ("3", [3]),
        ("3, 0", [3, 0]),
        ("-1", []),
        ("1,-1,0", [1]),
        ("7,0", []),
        ("NoDevFiles", []),
        ("GPU-3a-b,0", [3, 0]),
        ("GPU-1", [1]),
    ],
)
def test_the_gpus_of_this_shell(monkeypatch: pytest.MonkeyPatch, variable: str | None, visible: list[int]) -> None:
    answer(monkeypatch, LISTING, "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert gpus_visible() == visible


def test_parts_of_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, LISTING, "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-x")
    with pytest.raises(InputError, match=r"got CUDA_VISIBLE_DEVICES=MIG-x, .* say --gpus or -device cpu"):
        gpus_visible()


@pytest.mark.parametrize(
    ("listing", "count", "gpus", "told"),
    [
        (LISTING, "2\n", (3, 0), ""),
        (LISTING, "0\n", (0,), r"got GPU 0, which PyTorch \S+ cannot use; .* install one .* or say -device cpu"),
        (LISTING, "1\n", (0, 1), "got GPU 0, 1, which PyTorch"),
        (LISTING, "", (0,), "got GPU 0, which PyTorch"),
        ("", "1\n", (0,), ""),
        ("", "0\n", (0,), r"got GPU 0 on .*, which has none that CUDA can use; .* say -device cpu"),
        ("", "", (0,), "which has none"),
    ],
)
def test_gpus_are_asked_of_the_driver_and_of_torch(
    monkeypatch: pytest.MonkeyPatch, listing: str, count: str, gpus: tuple[int, ...], told: str
) -> None:
    asked = answer(monkeypatch, listing, count)
    if not told:
        check_gpus(gpus)
        named = ",".join(map(str, gpus))
        assert asked[-1] == {"CUDA_VISIBLE_DEVICES": named, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return
    with pytest.raises(InputError, match=told):
        check_gpus(gpus)


@pytest.mark.parametrize(
    ("system", "said", "there"), [("Linux", "True", False), ("Darwin", "True\n", True), ("Darwin", "", False)]
)
def test_the_gpu_of_a_mac(monkeypatch: pytest.MonkeyPatch, system: str, said: str, there: bool) -> None:
    answer(monkeypatch, "", said)
    monkeypatch.setattr("platform.system", lambda: system)
    assert has_mps() == there


def test_torch_answers_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no GPU to be seen there is none, whatever this machine has."""
    said: Any = devices._said(devices.sys.executable, "-c", devices.COUNT, CUDA_VISIBLE_DEVICES="")
    assert said == "0\n"
