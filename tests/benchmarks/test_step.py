"""Ratios and tables from made-up figures, refusals, and one tiny run."""

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import _memory, step
from benchmarks._networks import IN_BLOCKS, ORACLE, PRIMUS, REFERENCE, build
from benchmarks._report import cpu_model
from benchmarks.step import MEBIBYTE, Measurement, interleave, spread, summarise, table
from nnunetv2_ext.errors import InputError
from nnunetv2_ext.text import markdown_table

# one thread: threads that wait for each other make tiny steps slow on a busy machine
TOKENS = ["--shape", "1", "1", "8", "32", "32", "--token-size"]
TINY = ["--shape", "1", "1", "4", "32", "32", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    """The benchmark sets PyTorch's threads; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rounds_alternate():
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    runs: step.Runs = {name: partial(run, name) for name in "abc"}
    seconds = interleave(runs, 3)
    assert "".join(order) == "abccbaabc"
    assert seconds == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], (3, 3, 3)), ([4.0, 1.0, 2.0], (2, 1, 4)), ([4.0, 1.0, 2.0, 3.0], (2.5, 1, 4))],
)
def test_spread(values, expected):
    assert tuple(spread(values).values()) == expected


def test_ratio_is_the_median_of_the_rounds_ratios():
    rows = summarise(
        [
            Measurement(REFERENCE, 100, [1.0, 2.0, 10.0], [100 * MEBIBYTE]),
            Measurement(ORACLE, 50, [2.0, 2.0, 40.0], [400 * MEBIBYTE]),
            Measurement("Ours", 50, [1.5, 4.0, 10.0], [150 * MEBIBYTE, 200 * MEBIBYTE, 250 * MEBIBYTE]),
        ]
    )
    assert rows[0]["time_to_reference"] == {"median": 1, "min": 1, "max": 1}
    # the ratio of the medians would be 2
    assert rows[2]["time_to_reference"] == {"median": 1.5, "min": 1, "max": 2}
    assert rows[2]["time_to_oracle"] == {"median": 0.75, "min": 0.25, "max": 2}
    assert (rows[2]["memory_to_reference"], rows[2]["memory_to_oracle"]) == (2, 0.5)
    last = table(rows).splitlines()[-1]
    assert last.startswith("| Ours") and "4.000 (1.500-10.000)" in last and "200 (150-250)" in last


def test_ratios_to_another_reference():
    rows = summarise([Measurement(PRIMUS, 1, [1.0], [100]), Measurement("Ours", 1, [3.0], [50])], PRIMUS)
    assert (rows[1]["time_to_reference"]["median"], rows[1]["memory_to_reference"]) == (3, 0.5)


def test_table_without_memory_and_oracle_has_no_such_columns():
    header = table(summarise([Measurement(REFERENCE, 1, [1.0])])).splitlines()[0]
    assert "memory" not in header and ORACLE not in header


def test_markdown_table_lines_up():
    assert markdown_table(["a", "long"], [["xyz", "1"]]) == "| a   | long |\n| --- | ---: |\n| xyz |    1 |"


@pytest.mark.parametrize("aligned", [True, False])
def test_markdown_cells_do_not_end_the_table(aligned):
    rows = markdown_table(["a|b"], [["one\ntwo|"], ["three"]], aligned=aligned).splitlines()
    assert [row.strip("| ") for row in (rows[0], *rows[2:])] == ["a\\|b", "one two\\", "three"]


@pytest.mark.parametrize(
    ("text", "expected"), [("processor : 0\nmodel name\t: Some CPU 3 GHz\n", "Some CPU 3 GHz"), ("", None)]
)
def test_cpu_model(tmp_path, text, expected):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert cpu_model(file) == expected if expected else cpu_model(file)


def test_reference_is_the_published_one():
    network = build(REFERENCE, [1, 1, 16, 32, 32], 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 16_137_900
    assert [tuple(output.shape[2:]) for output in network(torch.zeros(1, 1, 4, 32, 32))] == [
        (4, 32, 32),
        (4, 16, 16),
        (2, 8, 8),
        (1, 4, 4),
    ]


@pytest.mark.parametrize(
    ("name", "wrapped"), [("PaR", "PlainConvUNet"), ("PaR:MNet", "MNet"), ("SegResNet", "SegResNet")]
)
def test_backbones_with_and_without_the_refiner(name, wrapped):
    network: Any = build(name, [1, 1, 8, 32, 32], 3)
    assert hasattr(network, "refiner") == name.startswith("PaR")
    inner = network.backbone if hasattr(network, "refiner") else network
    assert inner.backbone == wrapped


def test_networks_of_tokens():
    shape, tokens = [1, 1, 4, 16, 16], (2, 8, 8)
    networks: dict[str, Any] = {
        name: build(name, shape, 3, tokens) for name in ("ConvFreeTransformer", IN_BLOCKS, PRIMUS)
    }
    assert [networks[name].context for name in ("ConvFreeTransformer", IN_BLOCKS)] == ["patch", "block"]
    for network in networks.values():
        (logits,) = network(torch.zeros(*shape))
        assert logits.shape == (1, 3, 4, 16, 16)
    assert networks["ConvFreeTransformer"].token_size == tokens
    assert networks[PRIMUS].primus.down_projection.proj.kernel_size == tokens


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shape", "1", "1", "6", "32", "32"], "multiples of 4, 16, 16"),
        (["--shape", "1", "1", "6", "32", "32", "--reference", "MNet", "--architectures", "PaR"], "multiples of 4"),
        (["--reference", "Nothing"], "one of MNet"),
        (["--reference", "Primus", "--architectures", "ConvFreeTransformer", *TOKENS, "3", "8", "8"], "powers of two"),
        (["--architectures", "ConvFreeTransformer", *TOKENS, "4", "12", "12"], "multiples of the token"),
        (["--shape", "0", "1", "4", "32", "32"], "all positive"),
        (["--architectures", "Nothing"], "one of MNet"),
        (["--rounds", "0"], "at least 1 round"),
        (["--classes", "1"], "2 classes"),
        (["--threads", "0"], "a positive number"),
        (["-device", "tpu"], "expected cpu, or cuda"),
        (["--json", "no/such/folder/file.json"], "existing folder"),
    ],
)
def test_bad_input_is_a_sentence(arguments, told, capsys):
    assert step.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_tiny_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_memory, "measure", lambda *_, **__: 3 * MEBIBYTE)
    file = tmp_path / "step.json"
    assert step.main([*TINY, "--rounds", "2", "--memory-runs", "1", "--oracle", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    rows = {row["network"]: row for row in content["tables"]["float32"]}
    assert list(rows) == [REFERENCE, ORACLE, "MNet", "PaR"]
    assert all(f"| {name}" in printed for name in rows)
    assert content["machine"]["cpu"] in printed and content["machine"]["torch"] == torch.__version__
    assert rows["MNet"]["parameters"] == rows[ORACLE]["parameters"]
    assert all(row["peak_mib"]["median"] == 3 for row in rows.values())
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in content["seconds"]["float32"].values())


def test_a_reference_of_ones_own_takes_shapes_that_the_default_cannot(tmp_path, monkeypatch, capsys):
    given = []

    def measured(*_: Any, **options: Any) -> int:
        given.append(options["token_size"])
        return MEBIBYTE

    monkeypatch.setattr(_memory, "measure", measured)
    arguments = ["--reference", IN_BLOCKS, "--architectures", "ConvFreeTransformer", "--rounds", "1"]
    arguments += ["--shape", "1", "1", "3", "12", "12", "--token-size", "3", "12", "12", "--threads", "1"]
    assert step.main([*arguments, "--memory-runs", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"reference {IN_BLOCKS}" in printed and "tokens (3, 12, 12)" in printed and f"| {REFERENCE}" not in printed
    assert given == [[3, 12, 12]] * 2


def test_memory_in_a_process_of_its_own_holds_weights_and_gradients():
    peak = _memory.measure(ORACLE, [1, 1, 2, 32, 32], 2, threads=1)
    assert 2 * 4 * 8_700_000 < peak < 400 * MEBIBYTE


def test_memory_process_builds_the_tokens_asked_for(monkeypatch, capsys):
    def in_this_process(command, **_):
        assert _memory.main(command[3:]) == 0
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setattr(_memory.subprocess, "run", in_this_process)
    # 0 where the memory was the process's before
    assert _memory.measure("ConvFreeTransformer", [1, 1, 3, 12, 12], 2, threads=1, token_size=(3, 12, 12)) >= 0
    with pytest.raises(InputError, match=r"multiples of the token \[8, 8, 8\]"):
        _memory.measure("ConvFreeTransformer", [1, 1, 3, 12, 12], 2, threads=1, token_size=(8, 8, 8))


def test_memory_sees_a_tensor_that_is_freed_before_the_end(monkeypatch):
    size = 200 * MEBIBYTE

    def step_with_a_spike(network, x):
        if x.shape[2] == 4:
            torch.ones(size // 4)

    monkeypatch.setattr(_memory, "step", step_with_a_spike)
    monkeypatch.setattr(_memory, "build", lambda *_: None)
    peak = _memory.peak_bytes(REFERENCE, [1, 1, 4, 32, 32], 3)
    # the kernel counts in batches of pages, hence the slack below; two steps may use two places of an old heap
    assert 0.99 * size <= peak <= 2.2 * size
