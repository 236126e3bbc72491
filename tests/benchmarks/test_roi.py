"""The row of a way of predicting, from cases by hand."""

from benchmarks._roi import Seen, _row


def seen(seconds: float, dice: float, inside: float = 1.0, share: float = 1.0, windows: float = 1.0) -> Seen:
    return Seen(seconds, {"liver": dice, "kidney": dice - 0.1}, inside, share, windows, 0)


def test_a_row_compares_with_the_whole_image() -> None:
    whole = {"a": [seen(10, 0.8), seen(12, 0.8), seen(30, 0.8)], "b": [seen(8, 0.9)] * 3}
    boxes = {
        "a": [seen(3, 0.82, 0.99, 0.1, 0.2), seen(4, 0.82, 0.99, 0.1, 0.2), seen(9, 0.82, 0.99, 0.1, 0.2)],
        "b": [seen(6, 0.92, 1.0, 0.3, 0.4)] * 3,
    }
    row = _row("grid box", boxes, whole)
    assert row["s"] == 5 and row["time ratio"] == 0.5
    assert round(row["windows"], 6) == 0.3 and round(row["share of image"], 6) == 0.2
    assert round(row["Dice"], 6) == 0.82 and round(row["Dice liver"], 6) == 0.87
    assert row["difference"] == "+2.00 [+2.00, +2.00]"
    assert (row["inside, mean"], row["inside, worst"]) == ("0.9950", "0.9900")
    assert "GPU MiB" not in row
    assert _row("whole image", whole, whole)["time ratio"] == 1
