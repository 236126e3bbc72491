"""The loss of boxes: every term by hand, gradients by finite differences, what must not count, what covers an organ."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.losses import BoxLoss
from nnunetv2_ext.losses.boxes import pinball, sides

SHAPE = (4, 5, 10)


class Plane(NamedTuple):
    axis: int
    boxes: Tensor
    presence: Tensor
    masks: list[Tensor]


def cuboid(*spans: tuple[int, int]) -> Tensor:
    """One sample of one organ: (1, 1, Z, Y, X)."""
    voxels = torch.zeros(1, 1, *SHAPE, dtype=torch.bool)
    voxels[0, 0][tuple(slice(*span) for span in spans)] = True
    return voxels


ORGAN = cuboid((1, 3), (0, 4), (5, 9))
NOTHING = torch.zeros_like(ORGAN)
OF_ORGAN = [[0.25, 0.75], [0.0, 0.8], [0.5, 0.9]]


def plane(axis: int, boxes: Any, presence: float = 0.0, masks: Any = (), **options: Any) -> Plane:
    tensors = [torch.tensor(value, dtype=torch.float64, **options)[None, None] for value in (boxes, *masks)]
    return Plane(axis, tensors[0], torch.tensor([[presence]], dtype=torch.float64, **options), tensors[1:])


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        (ORGAN, OF_ORGAN),
        (cuboid((0, 1), (0, 1), (0, 1)), [[0, 0.25], [0, 0.2], [0, 0.1]]),
        (cuboid((3, 4), (4, 5), (9, 10)), [[0.75, 1], [0.8, 1], [0.9, 1]]),
        (cuboid((0, 1), (0, 1), (0, 1)) | cuboid((3, 4), (2, 3), (4, 5)), [[0, 1], [0, 0.6], [0, 0.5]]),
        (cuboid((0, 4), (0, 5), (0, 10)), [[0, 1]] * 3),
        (NOTHING, [[0, 1]] * 3),
    ],
)
def test_sides(voxels: Tensor, expected: Any) -> None:
    torch.testing.assert_close(sides(voxels)[0, 0], torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("axis", "boxes", "expected"),
    [
        # of y and x; shortfalls of the four sides: -0.1, 0, 0.1, -0.05
        (0, [[-0.1, 0.8], [0.6, 0.95]], 10 * (0.1 * 0.1 + 0 + 0.9 * 0.1 + 0.1 * 0.05)),
        (1, [[0.25, 0.75], [0.5, 0.9]], 0),
        (1, [[0.35, 0.75], [0.5, 0.8]], 10 * (0.9 * 0.1 + 0.9 * 0.1)),
        (2, [[0.15, 0.75], [0.0, 0.9]], 10 * (0.1 * 0.1 + 0.1 * 0.1)),
        # the wrong way round, as an untrained network may have them
        (2, [[0.75, 0.25], [0.0, 0.8]], 10 * (0.9 * 0.5 + 0.9 * 0.5)),
    ],
)
def test_a_box_by_hand(axis: int, boxes: Any, expected: float) -> None:
    total, terms = BoxLoss()([plane(axis, boxes, presence=2.0)], ORGAN)
    entropy = math.log(1 + math.exp(-2))
    assert float(terms["box"]) == pytest.approx(expected, abs=1e-6)
    assert float(terms["presence"]) == pytest.approx(entropy)
    assert float(terms["masks"]) == 0
    assert float(total) == pytest.approx(expected + entropy)


def test_l1_and_giou_by_hand() -> None:
    # y: [0.2, 0.8] of [0, 0.8], x: [0.5, 1] of [0.5, 0.9]
    _, terms = BoxLoss(box="l1_giou")([plane(0, [[0.2, 0.8], [0.5, 1.0]])], ORGAN)
    overlap, union, around = 0.6 * 0.4, 0.8 * 0.4 + 0.6 * 0.5 - 0.6 * 0.4, 0.8 * 0.5
    expected = 5 * (0.2 + 0.1) + 2 * (1 - overlap / union + (around - union) / around)
    assert float(terms["box"]) == pytest.approx(expected, abs=1e-5)


def test_means_over_planes_and_over_what_is_present() -> None:
    organs = torch.cat([torch.cat([ORGAN, NOTHING], 1), torch.cat([NOTHING, NOTHING], 1)])
    found = [
        Plane(axis, torch.full((2, 2, 2, 2), 0.5), torch.tensor([[1.0, -1.0], [0.0, 3.0]]), []) for axis in range(3)
    ]
    _, terms = BoxLoss()(found, organs)
    # of z, y, x: the low side is 0.25, 0.5 or 0 too far inwards, and so on; each axis is seen by two of three planes
    short = (0.25 + 0.25) + (0.5 + 0.3) + (0 + 0.4)
    assert float(terms["box"]) == pytest.approx(10 * 0.9 * 2 * short / 3, rel=1e-6)
    entropies = [math.log(1 + math.exp(x)) for x in (-1, -1, 0, 3)]
    assert float(terms["presence"]) == pytest.approx(sum(entropies) / 4, rel=1e-6)


@pytest.mark.parametrize("box", ["pinball", "l1_giou"])
def test_nothing_is_there(box: str) -> None:
    """Presence alone learns, and everything keeps its place in the graph."""
    found = plane(0, [[0.2, 0.8], [0.3, 0.6]], 1.0, [[[0.5, 1.0], [0.0, -1.0]]], requires_grad=True)
    total, terms = BoxLoss(box=box)([found], NOTHING)
    entropies = [math.log(1 + math.exp(x)) for x in (0.5, 1.0, 0.0, -1.0)]
    assert float(terms["box"]) == 0
    assert float(terms["masks"]) == pytest.approx(sum(entropies) / 4)
    gradients = torch.autograd.grad(total, [found.boxes, found.presence, *found.masks])
    assert not gradients[0].any()
    assert float(gradients[1]) == pytest.approx(1 / (1 + math.exp(-1)))


def test_masks_by_hand() -> None:
    """Along z the plane is 5 x 10, pooled to 1 x 2: a single voxel is enough for a pixel."""
    voxel = cuboid((0, 1), (4, 5), (7, 8))
    logits = [[[-1.0, 2.0]]]
    _, terms = BoxLoss(dice=2.0, bce=3.0)([plane(0, [[0.0, 1.0]] * 2, masks=logits)], voxel)
    inside = [1 / (1 + math.exp(1)), 1 / (1 + math.exp(-2))]
    dice = 1 - 2 * inside[1] / (sum(inside) + 1)
    entropy = -(math.log(1 - inside[0]) + math.log(inside[1])) / 2
    assert float(terms["masks"]) == pytest.approx(2 * dice + 3 * entropy)
    # the mean over stages
    _, both = BoxLoss()([plane(0, [[0.0, 1.0]] * 2, masks=[*logits, [[0.0]]])], voxel)
    coarse = 1 - 2 * 0.5 / 1.5 + math.log(2)
    assert float(both["masks"]) == pytest.approx((dice + entropy + coarse) / 2)


@pytest.mark.parametrize(("view", "shown"), [("slabs", True), ("central", False)])
def test_what_a_plane_shows(view: str, shown: bool) -> None:
    """The first slices of each axis are not in the middle."""
    corner = cuboid((0, 1), (0, 1), (0, 1))
    logits = 9.0 if shown else -9.0
    found = [plane(axis, [[0.0, 1.0]] * 2, masks=[[[logits]]]) for axis in range(3)]
    _, terms = BoxLoss(view=view)(found, corner)
    assert float(terms["masks"]) < 1e-3


@pytest.mark.parametrize(("box", "partly"), [("pinball", False), ("pinball", True), ("l1_giou", False)])
def test_gradients_by_finite_differences(box: str, partly: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    organs = torch.cat([ORGAN, NOTHING], 1)
    ignored = cuboid((0, 4), (0, 5), (9, 10)) & partly

    def loss(boxes: Tensor, presence: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        found = [Plane(axis, boxes[axis], presence[axis], [fine[axis], coarse[axis]]) for axis in range(3)]
        return BoxLoss(box=box)(found, organs, ignored)[0]

    shapes = [(3, 1, 2, 2, 2), (3, 1, 2), (3, 1, 2, 2, 2), (3, 1, 2, 1, 1)]
    given = [torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(loss, given)


@pytest.mark.parametrize("box", ["pinball", "l1_giou"])
def test_a_side_before_ignored_voxels_is_pulled_outwards_alone(box: str) -> None:
    """Of the organ, [0.5, 0.9] along x, nothing is known beyond 0.9; its low side is known."""
    ignored = cuboid((0, 4), (0, 5), (9, 10))
    gradients = []
    for low, high in ((0.4, 0.95), (0.6, 0.85)):
        found = plane(0, [[0.05, 0.75], [low, high]], requires_grad=True)
        total, _ = BoxLoss(box=box)([found], ORGAN, ignored)
        gradients.append(torch.autograd.grad(total, found.boxes)[0][0, 0, 1].tolist())
    (low_outside, high_outside), (low_inside, high_inside) = gradients
    assert high_outside == 0
    assert high_inside < 0  # descent moves it outwards
    assert low_inside > 0 > low_outside


def test_ignored_voxels_count_neither_for_presence_nor_for_masks() -> None:
    ignored = cuboid((0, 1), (0, 5), (0, 5))
    masks = [[[1.0, 1.0]]]
    found = plane(0, [[0.2, 0.8], [0.3, 0.6]], 1.0, masks, requires_grad=True)
    total, terms = BoxLoss()([found], NOTHING, ignored)
    presence, mask = torch.autograd.grad(total, [found.presence, found.masks[0]])
    assert float(terms["presence"]) == float(presence) == 0
    assert mask[0, 0, 0, 0] == 0 and mask[0, 0, 0, 1] > 0
    # what is known of an organ counts
    total, terms = BoxLoss()([found], ORGAN, ignored)
    assert float(terms["presence"]) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(torch.autograd.grad(total, found.masks[0])[0][0, 0, 0, 1]) < 0
    everything = torch.ones_like(ignored)
    total, terms = BoxLoss()([found], NOTHING, everything)
    assert total.detach() == 0 and all(float(term) == 0 for term in terms.values())


@pytest.mark.parametrize(("quantile", "covered"), [(0.9, 0.9), (0.5, 0.5), (0.75, 0.75)])
def test_a_side_is_the_quantile_of_its_samples(quantile: float, covered: float) -> None:
    """0.5 is the L1 distance: its boxes hold half of the sides, at a quantile of 0.9 they hold 90 %."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.tensor([0.3, 0.7]) + 0.1 * torch.randn(2000, 2, generator=generator)
    found = torch.tensor([0.5, 0.5], requires_grad=True)
    optimizer = torch.optim.SGD([found], lr=0.02)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step / 10)
        optimizer.zero_grad()
        pinball(found.expand_as(samples), samples, quantile).mean(0).sum().backward()
        optimizer.step()
    low, high = found.tolist()
    assert float((samples[:, 0] >= low).float().mean()) == pytest.approx(covered, abs=0.02)
    assert float((samples[:, 1] <= high).float().mean()) == pytest.approx(covered, abs=0.02)


def test_refused() -> None:
    with pytest.raises(InputError, match="the loss of boxes 'iou'; expected pinball or l1_giou"):
        BoxLoss(box="iou")
