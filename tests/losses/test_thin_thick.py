"""The thin-thick loss: a plain evaluation in double precision, what must not count, errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.losses import ThinThickLoss, mark_ignored
from nnunetv2_ext.losses.thin_thick import feature_distance
from tests.losses.plain import IGNORE, MATRICES, SIZE, SLICES, dense_logits, random, slab_rows


def nnunet_loss(regions: bool, *, ignore: bool = True, batch_dice: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": regions, "ddp": False}
    if regions:
        return DC_and_BCE_loss({}, dice, use_ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    return DC_and_CE_loss(dice, {}, ignore_label=IGNORE if ignore else None, dice_class=MemoryEfficientSoftDiceLoss)


def plain_loss(logits: Tensor, truth: Tensor, counted: Tensor, *, regions: bool) -> Tensor:
    """Dice + cross-entropy over the counted voxels: (B, C, T, Y, X), 0 or 1 of that shape, (B, 1, T, Y, X)."""
    if regions:
        probabilities = logits.sigmoid()
        entropy = -(truth * F.logsigmoid(logits) + (1 - truth) * F.logsigmoid(-logits)) * counted
        entropy = entropy.sum() / counted.sum()  # nnU-Net divides by voxels, not by voxels times regions
    else:
        probabilities = logits.softmax(1)
        entropy = -(truth * logits.log_softmax(1) * counted).sum() / counted.sum()
        probabilities, truth = probabilities[:, 1:], truth[:, 1:]
    over = (2, 3, 4)
    overlap = (probabilities * truth * counted).sum(over)
    return entropy - ((2 * overlap + 1e-5) / ((probabilities * counted + truth * counted).sum(over) + 1e-5)).mean()


def problem(name: str = "ratio 3.7 and gaps", *, regions: bool = False, ignored: bool = False) -> dict[str, Tensor]:
    """Arguments of the loss: two samples of different ratio with slabs to pad, 3 classes or regions."""
    slabs = MATRICES[name]
    count = slabs.shape[1]
    generator = torch.Generator().manual_seed(3)
    if regions:
        target = torch.randint(0, 2, (2, 3, count, *SIZE), generator=generator).bool()
        target = torch.cat([target, torch.zeros_like(target[:, :1])], dim=1) if ignored else target
    else:
        target = torch.randint(0, 3, (2, 1, count, *SIZE), generator=generator)
    if ignored:
        target[:, -1:, 0, :2] = 1 if regions else IGNORE
    valid = slabs.sum(-1) > 0
    return {
        "target": target,
        "slabs": slabs,
        "valid": valid,
        "thick_logits": random(2, 3, count, *SIZE, seed=4),
        "thin_logits": random(2, 3, SLICES, *SIZE, seed=5),
        "thin_features": random(2, 5, SLICES, 2, 2, seed=6),
        "thick_features": random(2, 5, count, 2, 2, seed=7),
        "feature_slabs": slabs,
        "feature_valid": valid,
    }


def plain_terms(given: dict[str, Tensor], *, beta: float, regions: bool) -> dict[str, Tensor]:
    target, valid = given["target"], given["valid"][:, None, :, None, None]
    if regions:
        truth = target[:, :3].double()
        ignored = target[:, 3:] if target.shape[1] == 4 else torch.zeros_like(target[:, :1])
    else:
        truth = torch.cat([target == label for label in range(3)], dim=1).double()
        ignored = target == IGNORE
    counted = (valid & ~ignored.bool()).double()
    thin = dense_logits(given["thin_logits"], given["slabs"], beta=beta, regions=regions)
    distances = []
    for b, t in given["feature_valid"].nonzero().tolist():
        average = (given["feature_slabs"][b, t][None, :, None, None] * given["thin_features"][b]).sum(1)
        a, other = F.normalize(average, dim=0), F.normalize(given["thick_features"][b, :, t], dim=0)
        distances.append(0.5 * (a - other).square().sum(0).mean())
    return {
        "thick": plain_loss(given["thick_logits"], truth, counted, regions=regions),
        "thin": plain_loss(thin, truth, counted, regions=regions),
        "features": torch.stack(distances).mean(),
    }


def gradients(total: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
    names = [name for name, value in given.items() if isinstance(value, Tensor) and value.requires_grad]
    return dict(zip(names, torch.autograd.grad(total, [given[name] for name in names]), strict=True))


def with_gradients(given: dict[str, Tensor]) -> dict[str, Tensor]:
    learned = ("thick_logits", "thin_logits", "thin_features", "thick_features")
    return {name: value.clone().requires_grad_() if name in learned else value for name, value in given.items()}


@pytest.mark.parametrize("beta", [1.0, 4.0])
@pytest.mark.parametrize("ignored", [False, True], ids=["all voxels", "ignored voxels"])
@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
def test_terms_and_gradients_are_those_of_the_plain_evaluation(regions: bool, ignored: bool, beta: float) -> None:
    given = with_gradients(problem(regions=regions, ignored=ignored))
    assert 0 < int((~given["valid"]).sum()) < given["valid"].numel()
    weights = (0.7, 1.3, 0.1)
    loss = ThinThickLoss(nnunet_loss(regions), weights=weights, beta=beta, regions=regions, ignore_label=IGNORE)
    total, terms = loss(**given)
    expected = plain_terms(given, beta=beta, regions=regions)
    plain_total = torch.stack([weight * term for weight, term in zip(weights, expected.values(), strict=True)]).sum()
    assert list(terms) == list(expected) == ["thick", "thin", "features"]
    assert not any(term.requires_grad for term in terms.values())
    for name, term in expected.items():
        assert float(terms[name]) == pytest.approx(term.item(), rel=1e-5), name
    assert total.item() == pytest.approx(
        sum(w * float(t) for w, t in zip(weights, terms.values(), strict=True)), rel=1e-6
    )
    results, plain = gradients(total, given), gradients(plain_total, given)
    for name, gradient in plain.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(results[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_padded_slabs_and_ignored_voxels_change_nothing(regions: bool, batch_dice: bool) -> None:
    loss_of = nnunet_loss(regions, batch_dice=batch_dice)
    loss = ThinThickLoss(loss_of, regions=regions, ignore_label=IGNORE)
    given = with_gradients(problem(regions=regions, ignored=True))
    total, _ = loss(**given)
    padded = {}
    for name, value in given.items():
        axis = 1 if value.ndim < 5 else 2
        if name.startswith("thin"):
            padded[name] = value
            continue
        shape = list(value.shape)
        shape[axis] = 2
        fill = 1e3 * random(*shape) if value.is_floating_point() and value.ndim == 5 else torch.zeros(shape)
        padded[name] = torch.cat([value, fill.to(value.dtype)], dim=axis).detach().requires_grad_(value.requires_grad)
    with torch.no_grad():
        padded["thick_logits"][:, :, 0, :2] += 7.0  # ignored voxels
        padded["thick_logits"].transpose(1, 2)[:, : given["valid"].shape[1]][~given["valid"]] = -50.0
    padded = {**padded, "thin_logits": given["thin_logits"], "thin_features": given["thin_features"]}
    padded_total, _ = loss(**padded)
    assert padded_total.item() == pytest.approx(total.item(), rel=1e-6)
    before, after = gradients(total, given), gradients(padded_total, padded)
    for name, gradient in before.items():
        count = gradient.shape[2]
        torch.testing.assert_close(after[name][:, :, :count], gradient, rtol=1e-5, atol=1e-8, msg=name)
        assert not after[name][:, :, count:].any(), name


@pytest.mark.parametrize("regions", [False, True])
def test_nothing_valid_gives_no_gradient(regions: bool) -> None:
    given = with_gradients(problem("one slab, none", regions=regions))
    given["valid"] = given["feature_valid"] = torch.zeros_like(given["valid"])
    total, _ = ThinThickLoss(nnunet_loss(regions), regions=regions, ignore_label=IGNORE)(**given)
    assert torch.isfinite(total)
    assert not any(gradient.any() for gradient in gradients(total, given).values())


@pytest.mark.parametrize("regions", [False, True])
def test_slabs_of_one_slice_give_the_plain_segmentation_loss(regions: bool) -> None:
    given = problem("whole ratios", regions=regions)
    logits, target = given["thin_logits"][:, :, :6], given["target"]
    slabs = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    plain = nnunet_loss(regions, ignore=False)
    loss = ThinThickLoss(plain, weights=(0, 1, 0), beta=1.0, regions=regions)
    total, _ = loss(target=target, slabs=slabs, thin_logits=logits)
    assert float(total) == pytest.approx(float(plain(logits, target)), rel=1e-6)


def test_the_thin_truth_reaches_the_minimum_where_slabs_are_pure_and_nears_it_with_beta() -> None:
    slabs = slab_rows(4, slabs=3)[None]
    thick = torch.tensor([0, 1, 1])
    for thin, pure in ((thick.repeat_interleave(4), True), (torch.tensor([0] * 5 + [1] * 7), False)):
        logits = 1e3 * F.one_hot(thin, 2).double().T[None, :, :, None, None].expand(1, 2, SLICES, *SIZE)
        target = thick[None, None, :, None, None].expand(1, 1, 3, *SIZE)
        values = []
        for beta in (1.0, 4.0):
            loss = ThinThickLoss(nnunet_loss(False, ignore=False), weights=(0, 1, 0), beta=beta)
            values.append(float(loss(target=target, slabs=slabs, thin_logits=logits)[0]))
        if pure:
            assert values == pytest.approx([-1.0, -1.0])
        else:
            assert values[0] > -0.85
            assert values[1] < -0.97


def test_under_autocast_the_thin_and_feature_terms_stay_in_single_precision() -> None:
    given = {name: value.bfloat16() if value.ndim == 5 else value for name, value in problem().items()}
    given["target"], given["slabs"] = problem()["target"], given["slabs"].float()
    given["feature_slabs"] = given["slabs"]
    loss = ThinThickLoss(nnunet_loss(False), weights=(0, 1, 0.1), ignore_label=IGNORE)
    single = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in given.items()}
    _, expected = loss(**single)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = loss(**given)
    assert total.dtype == torch.float32
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert float(term) == pytest.approx(float(expected[name]), rel=1e-6), name


class Counted:
    """A segmentation loss that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(logits, target[:, 0].long(), ignore_index=IGNORE)


# weights, what such a loss needs, calls of the segmentation loss
NEEDS: list[tuple[tuple[float, float, float], tuple[str, ...], int]] = [
    ((1, 0, 0), ("target", "thick_logits"), 1),
    ((0, 1, 0), ("target", "thin_logits", "slabs"), 1),
    ((0, 0, 1), ("thin_features", "thick_features", "feature_slabs"), 0),
    ((1, 2, 0), ("target", "thick_logits", "thin_logits", "slabs"), 2),
]


@pytest.mark.parametrize(("weights", "needs", "calls"), NEEDS, ids=str)
def test_a_term_with_weight_zero_is_not_computed(weights: Any, needs: tuple[str, ...], calls: int) -> None:
    counted = Counted()
    given = {name: value for name, value in problem("whole ratios").items() if name in needs}
    total, terms = ThinThickLoss(counted, weights=weights)(**given)
    assert counted.calls == calls
    assert list(terms) == [name for name, weight in zip(("thick", "thin", "features"), weights, strict=True) if weight]
    assert float(total) == pytest.approx(
        sum(w * float(terms[n]) for n, w in zip(terms, filter(None, weights), strict=True))
    )
    for name in needs:
        with pytest.raises(InputError, match=name):
            ThinThickLoss(counted, weights=weights)(**{**given, name: None})


def test_weights_may_be_set_between_steps() -> None:
    loss = ThinThickLoss(Counted(), weights=(1, 0, 0), ignore_label=IGNORE)
    assert list(loss(**problem())[1]) == ["thick"]
    loss.weights = (1, 0.5, 0)
    assert list(loss(**problem())[1]) == ["thick", "thin"]


@pytest.mark.parametrize(("output_weights", "calls"), [((0.75, 0.25), 4), ((1.0, 0.0), 2), (None, 4)])
def test_deep_supervision_weighs_every_output(output_weights: Any, calls: int) -> None:
    finest, second = problem(), problem("slices thicker than slabs")
    outputs = ("target", "slabs", "valid", "thick_logits", "thin_logits")
    lists: dict[str, Any] = {name: [finest[name], second[name]] for name in outputs}
    features = {name: value for name, value in finest.items() if name not in outputs}
    counted = Counted()
    loss = ThinThickLoss(counted, ignore_label=IGNORE, output_weights=output_weights)
    _, terms = loss(**lists, **features)
    assert counted.calls == calls
    first, last = (loss(**given)[1] for given in (finest, second))
    a, b = output_weights or (0.5, 0.5)
    for name in ("thick", "thin"):
        assert float(terms[name]) == pytest.approx(a * float(first[name]) + b * float(last[name])), name
    assert float(terms["features"]) == float(first["features"])


def test_outputs_of_the_thick_image_may_have_a_target_of_their_own() -> None:
    given = problem("whole ratios")
    halved = {"thick_logits": given["thick_logits"][:, :, ::2], "thick_target": given["target"][:, :, ::2].clone()}
    halved["thick_target"][:, :, 1] = IGNORE
    loss = ThinThickLoss(nnunet_loss(False), ignore_label=IGNORE)
    _, terms = loss(**{**given, **halved})
    own = {"thick_logits": halved["thick_logits"], "target": halved["thick_target"]}
    _, expected = ThinThickLoss(nnunet_loss(False), ignore_label=IGNORE, weights=(1, 0, 0))(**own)
    assert float(terms["thick"]) == pytest.approx(float(expected["thick"]))
    assert float(terms["thin"]) == pytest.approx(float(loss(**given)[1]["thin"]))


def test_thick_image_on_the_thin_grid() -> None:
    given = problem("whole ratios")
    repeated = given["slabs"] > 0
    on_grid = {
        name: torch.einsum("bts,bctyx->bcsyx", repeated.double(), given[name])
        for name in ("thick_logits", "thick_features")
    }
    _, expected = ThinThickLoss(nnunet_loss(False), ignore_label=IGNORE)(**given)
    _, terms = ThinThickLoss(nnunet_loss(False), ignore_label=IGNORE, thick_on_thin_grid=True)(**{**given, **on_grid})
    for name, term in expected.items():
        assert float(terms[name]) == pytest.approx(float(term), rel=1e-6), name


# two feature vectors, their distance
DISTANCES = [
    ((3.0, 0.0), (0.5, 0.0), 0.0),
    ((3.0, 0.0), (0.0, 2.0), 1.0),
    ((1.0, 1.0), (-2.0, -2.0), 2.0),
    ((0.0, 0.0), (0.0, 5.0), 0.5),
    ((0.0, 0.0), (0.0, 0.0), 0.0),
    ((1e-12, 0.0), (1.0, 0.0), 0.5),
]


@pytest.mark.parametrize(("a", "b", "expected"), DISTANCES, ids=str)
def test_distance_of_features(a: tuple[float, float], b: tuple[float, float], expected: float) -> None:
    vectors = [torch.tensor(vector).view(1, 2, 1, 1, 1).requires_grad_() for vector in (a, b)]
    distance = feature_distance(*vectors)
    assert distance.item() == pytest.approx(expected, abs=1e-6)
    for gradient in torch.autograd.grad(distance, vectors):
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().max()) < 10


REGION = torch.tensor([[[0, 1, 1]], [[1, 1, 0]]]).view(1, 2, 3, 1, 1)
# target by channels and slabs, arguments, expected
MARKED: list[tuple[Tensor, dict[str, int], list[list[int]]]] = [
    (REGION[:, :1].float(), {"ignore_label": IGNORE}, [[0, IGNORE, 1]]),
    (REGION[:, :1].short(), {"ignore_label": IGNORE}, [[0, IGNORE, 1]]),
    (REGION.bool(), {"regions": 2}, [[0, 1, 1], [1, 1, 0], [0, 1, 0]]),
    (REGION.float(), {"regions": 2}, [[0, 1, 1], [1, 1, 0], [0, 1, 0]]),
    (REGION.bool(), {"regions": 1}, [[0, 1, 1], [1, 1, 0]]),
    (REGION.short(), {"regions": 1}, [[0, 1, 1], [1, 1, 0]]),
]


@pytest.mark.parametrize(("target", "options", "expected"), MARKED)
def test_mark_ignored(target: Tensor, options: dict[str, int], expected: list[list[int]]) -> None:
    before = target.clone()
    marked = mark_ignored(target, torch.tensor([[True, False, True]]), **options)
    assert marked.dtype == target.dtype
    assert marked[0, :, :, 0, 0].long().tolist() == expected
    assert torch.equal(target, before)


# options of the loss, changed arguments, what the error names
ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"weights": (1, 1)}, {}, "weights"),
    ({"weights": (1, -1, 0)}, {}, "weights"),
    ({"weights": (0, 0, 0)}, {}, "not all 0"),
    ({"weights": (1, float("nan"), 0)}, {}, "weights"),
    ({"beta": 0.0}, {}, "beta 0"),
    ({"output_weights": (0.0, 0.0)}, {}, "output_weights"),
    ({"ignore_label": None}, {}, "ignore_label"),
    ({}, {"slabs": random(2, 6, 5)}, "12 slices"),
    ({}, {"feature_slabs": random(1, 6, SLICES)}, "2 samples"),
    ({}, {"thick_features": random(2, 5, 3, 2, 2)}, "one shape"),
    ({}, {"thick_logits": [random(2, 3, 6, *SIZE)] * 2}, "1 of target for 2 outputs"),
    ({"regions": True}, {"target": random(2, 2, 6, *SIZE)}, "2 channels for 3 regions"),
]


@pytest.mark.parametrize(("options", "changed", "message"), ERRORS, ids=str)
def test_bad_input(options: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ThinThickLoss(Counted(), **{"ignore_label": IGNORE, **options})(**{**problem(), **changed})
