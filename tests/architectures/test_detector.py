"""ROIDetector: views, union and logits by hand, its size, what it detects, and that it finds boxes."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from nnunetv2_ext.architectures import ROIDetector
from nnunetv2_ext.architectures import detector as module
from nnunetv2_ext.architectures.detector import box_logits, slabs_of
from nnunetv2_ext.errors import InputError

SMALL: dict[str, Any] = {"size": 32, "features": 16, "stages": 2, "heads": 2, "points": 2}
PATCH = (6, 20, 17)


def build(channels: int = 1, classes: int = 3, **kwargs: Any) -> ROIDetector:
    torch.manual_seed(0)
    return ROIDetector(channels, classes, **{**SMALL, **kwargs})


# --- views ---


@pytest.mark.parametrize("slices", [1, 3, 8, 9, 19, 40])
def test_slabs_take_every_slice_in_order(slices: int) -> None:
    volume = torch.randn(2, 3, slices, 4, 5, generator=torch.Generator().manual_seed(0))
    image = slabs_of(volume)
    assert image.shape == (2, 16 * 3, 4, 5)
    means, maxima = image.unflatten(1, (2, 8, 3)).unbind(1)
    taken = []
    for number in range(8):
        start = math.floor(number * slices / 8)
        end = max(math.floor((number + 1) * slices / 8), start + 1)  # of few slices some come again
        taken.append((start, end))
        torch.testing.assert_close(means[:, number], volume[:, :, start:end].sum(2) / (end - start))
        assert torch.equal(maxima[:, number], volume[:, :, start:end].max(2).values)
    assert {place for start, end in taken for place in range(start, end)} == set(range(slices))
    assert max(end - start for start, end in taken) <= math.ceil(slices / 8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_central_view_is_the_slice_in_the_middle(axis: int) -> None:
    network = build(channels=2, view="central", size=16)
    x = torch.randn(1, 2, 16, 16, 16)
    assert torch.equal(network._seen(x, axis), x.select(2 + axis, 8))


# --- from boxes to logits ---


def test_logits_are_distances_in_voxels() -> None:
    """Of a box and presence by hand, voxel by voxel."""
    box, presence, patch = torch.tensor([[0.1, 0.5], [0.25, 0.8], [-0.2, 0.4]]), 2.5, (5, 8, 40)
    logits = box_logits(box[None, None].double(), torch.tensor([[presence]]).double(), patch)[0, 0]
    assert logits.shape == patch
    for place in ((0, 0, 0), (1, 4, 3), (2, 4, 12), (1, 3, 15), (4, 7, 39), (1, 2, 25), (0, 5, 1)):
        along = []
        for voxel, length, (low, high) in zip(place, patch, box.double(), strict=True):
            centre = voxel + 0.5
            along.append(float(min(centre - low * length, high * length - centre)))
        assert logits[place] == pytest.approx(max(-10.0, min(*along, presence)))
    inside = [
        [low * n < voxel + 0.5 < high * n for voxel in range(n)] for n, (low, high) in zip(patch, box, strict=True)
    ]
    expected = torch.tensor(inside[0])[:, None, None] & torch.tensor(inside[1])[:, None] & torch.tensor(inside[2])
    assert torch.equal(logits > 0, expected)


@pytest.mark.parametrize(("presence", "expected"), [(-3.0, -3.0), (-30.0, -10.0), (30.0, 10.0)])
def test_presence_limits_the_logits(presence: float, expected: float) -> None:
    whole = torch.tensor([0.0, 1.0]).expand(1, 1, 3, 2)
    assert box_logits(whole, torch.tensor([[presence]]), (32, 32, 32)).max() == expected


def test_the_box_of_the_volume_holds_those_of_the_planes() -> None:
    #                 plane z: y, x                  plane y: z, x                  plane x: z, y
    planes = [[[0.2, 0.5], [0.3, 0.6]], [[0.1, 0.4], [0.35, 0.7]], [[0.05, 0.3], [0.25, 0.55]]]
    union = module._union(torch.tensor(planes)[None, :, None])
    torch.testing.assert_close(union, torch.tensor([[[[0.05, 0.4], [0.2, 0.55], [0.3, 0.7]]]]))


def test_borders_are_those_of_the_likeliest_pixels() -> None:
    lines = torch.zeros(1, 1, 2, 8)
    lines[0, 0, 0, 2] = lines[0, 0, 1, 5] = 50
    torch.testing.assert_close(module._expected(lines), torch.tensor([[[2 / 8, 6 / 8]]]))


@pytest.mark.parametrize("head", ["extent", "pooled"])
@pytest.mark.parametrize("regions", [False, True])
def test_heads_and_what_is_detected(regions: bool, head: str) -> None:
    network, x = build(regions=regions, head=head), torch.randn(2, 1, *PATCH)
    organs = 3 if regions else 2
    logits = network(x)
    assert logits.shape == (2, 3, *PATCH)
    assert logits.abs().max() <= 10
    if not regions:
        torch.testing.assert_close(logits[:, 0], -logits[:, 1:].max(1).values)
    assert [plane.axis for plane in network.detected] == [0, 1, 2]
    for plane in network.detected:
        assert plane.boxes.shape == (2, organs, 2, 2)
        assert plane.presence.shape == (2, organs)
        assert [tuple(mask.shape) for mask in plane.masks] == [(2, organs, *size) for size in [(8, 8), (4, 4), (2, 2)]]
    boxes = module._union(torch.stack([plane.boxes for plane in network.detected], 1))
    presence = torch.stack([plane.presence for plane in network.detected]).mean(0)
    assert torch.equal(logits if regions else logits[:, 1:], box_logits(boxes, presence, PATCH))
    network.eval()(x)
    assert [plane.masks for plane in network.detected] == [[], [], []]


@pytest.mark.parametrize("send", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_network_travels_without_what_it_detected(send: Any) -> None:
    network = build()
    network(torch.randn(1, 1, *PATCH)).sum().backward()
    sent = send(network)
    assert sent.detected == ()
    assert len(network.detected) == 3
    assert sent.state_dict().keys() == network.state_dict().keys()


def test_boxes_stay_exact_under_autocast() -> None:
    network, x = build(), torch.randn(1, 1, *PATCH)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert {tensor.dtype for plane in network.detected for tensor in plane[1:3]} == {torch.float32}
    assert logits.dtype == torch.float32


# --- the network ---


def test_backbone_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = resnet18(norm_layer=lambda width: nn.GroupNorm(16, width))
    first = nn.Sequential(*list(theirs.children())[:4], *theirs.layer1)
    ours = module._Plane(3, 1, 16, 1, 2, 2).backbone[:-1]
    ours.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(ours(x), first(x))


def test_parameters_and_multiply_adds() -> None:
    with torch.device("meta"):
        network, x = ROIDetector(1, 2).eval(), torch.empty(1, 1, 96, 96, 96)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(5.6e6, rel=0.05)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert counter.get_total_flops() / 2 == pytest.approx(2.5e9, rel=0.05)


def test_compiled_outputs_and_what_is_detected() -> None:
    network, x = build(stages=1), torch.randn(1, 1, *PATCH)
    expected = network(x), network.detected
    compiled: Any = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected[0])
    for one, other in zip(compiled.detected, expected[1], strict=True):
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.masks, other.masks)
    sum(tensor.square().sum() for tensor in compiled.auxiliary_outputs).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"view": "mean"}, "view='mean'; expected one of slabs, central"),
        ({"head": "box"}, "head='box'; expected one of extent, pooled"),
        ({"classes": 1}, "1 classes"),
        ({"heads": 3}, "features=16 with heads=3"),
        ({"size": 40}, "size=40 with 2 stages; expected a multiple of 16; choose 32 or 48"),
        ({"size": 8}, "choose 16"),
        ({"stages": 0}, "stages=0"),
        ({"points": 1.5}, "points=1.5"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        build(**kwargs)
    assert told in str(error.value)


# --- does it find boxes? ---

SHAPE = (16, 32, 32)
Box = list[tuple[int, int]]
BOXES: list[Box] = [
    [(2, 9), (4, 15), (16, 28)],
    [(6, 14), (14, 29), (3, 12)],
    [(1, 5), (18, 26), (15, 30)],
    [(9, 16), (0, 10), (5, 18)],
]


def volume_with(box: Box | None, seed: int) -> Tensor:
    """A bright box in noise, or noise alone: (1, Z, Y, X)."""
    image = 0.3 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    if box is not None:
        z, y, x = (slice(low, high) for low, high in box)
        image[0, z, y, x] += 1.5
    return image


def shares(box: Box) -> Tensor:
    return torch.tensor(box) / torch.tensor(SHAPE)[:, None]


def loss_of(detected: Any, boxes: Tensor, present: Tensor) -> Tensor:
    """Mean distances of the borders of boxes that there are, cross-entropies of presence and masks."""
    losses = []
    for plane in detected:
        others = [axis for axis in range(3) if axis != plane.axis]
        distances = (plane.boxes[:, 0] - boxes[:, others]).abs().mean((1, 2))
        losses += [10 * (distances * present).mean()]
        losses += [F.binary_cross_entropy_with_logits(plane.presence[:, 0], present)]
        for mask in plane.masks:
            rows, columns = (
                (boxes[:, axis, :1] < centre) & (centre < boxes[:, axis, 1:])
                for axis, size in zip(others, mask.shape[2:], strict=True)
                for centre in [(torch.arange(size) + 0.5) / size]
            )
            inside = (rows[:, :, None] & columns[:, None]).float()
            losses += [F.binary_cross_entropy_with_logits(mask[:, 0], inside * present[:, None, None])]
    return torch.stack(losses).sum()


@pytest.fixture(scope="module")
def trained() -> ROIDetector:
    """Four boxes and an image without one, learned by heart."""
    images = torch.stack([volume_with(box, seed) for seed, box in enumerate([*BOXES, None])])
    boxes = torch.stack([*map(shares, BOXES), torch.zeros(3, 2)])
    network, steps = build(classes=2, features=32, stages=1, heads=4), 80
    optimizer = torch.optim.AdamW(network.parameters(), 4e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        network(images)
        optimizer.zero_grad()
        loss_of(network.detected, boxes, torch.tensor([1.0, 1, 1, 1, 0])).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1)
        optimizer.step()
        scheduler.step()
    return network.eval()


def found_box(network: ROIDetector, image: Tensor) -> Tensor:
    """(3, 2), in shares."""
    with torch.no_grad():
        network(image[None])
    return module._union(torch.stack([plane.boxes for plane in network.detected], 1))[0, 0]


def test_it_learns_boxes_by_heart(trained: ROIDetector) -> None:
    for seed, box in enumerate(BOXES):
        found, true = found_box(trained, volume_with(box, seed)), shares(box)
        common = torch.minimum(found[:, 1], true[:, 1]) - torch.maximum(found[:, 0], true[:, 0])
        volumes = [float((one[:, 1] - one[:, 0]).prod()) for one in (found, true)]
        intersection = float(common.clamp(min=0).prod())
        assert intersection / (sum(volumes) - intersection) >= 0.9


def test_no_voxel_of_an_image_without_an_organ(trained: ROIDetector) -> None:
    seeds = range(len(BOXES) + 1)
    with torch.no_grad():
        labels = trained(torch.stack([volume_with(box, seed) for seed, box in zip(seeds, [*BOXES, None], strict=True)]))
    assert [bool(of_one.any()) for of_one in labels.argmax(1)] == [True] * len(BOXES) + [False]


@pytest.mark.parametrize("shift", [(3, 0, 0), (0, 5, 0), (0, 0, 6), (0, 0, -6)], ids=str)
def test_a_moved_organ_moves_its_box(trained: ROIDetector, shift: tuple[int, int, int]) -> None:
    """Of an image that was not learned, within a voxel or so."""
    organ: Box = [(4, 11), (8, 19), (10, 22)]
    moved = [(low + step, high + step) for (low, high), step in zip(organ, shift, strict=True)]
    before, after = (found_box(trained, volume_with(box, 99)).mean(-1) for box in (organ, moved))
    torch.testing.assert_close((after - before) * torch.tensor(SHAPE), torch.tensor(shift).float(), rtol=0, atol=1.5)
