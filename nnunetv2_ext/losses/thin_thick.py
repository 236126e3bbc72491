"""The thin-thick joint loss: thin slices learn from annotations of the thick slices (slabs) that average them.

Paper: Gang, "A Novel Convolutional-Free Method for 3D Medical Imaging Segmentation", 2025, section 3.6, in words there:

    L = w1 * loss(f(Px), y) + w2 * loss(P softmax f(x), y) + w3 * mean 1/2 |PF(x) - F(Px)|^2

with f the network's logits, F its last feature map, P the averaging over each slab, x the thin image and y the
annotation of the slabs. Departures: the weights, which the paper leaves open; features are compared by direction
alone; and `beta`, which sharpens the second term. With beta = 1 (the paper) its minimum is the thick annotation copied
to every thin slice, and the thin truth itself, fractional in the slabs that it leaves or enters, does not reach it.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from nnunetv2_ext.errors import InputError

TERMS = ("thick", "thin", "features")
# Shorter feature vectors have no direction worth the name: they count as zero and get no gradient
SHORTEST_FEATURE = 1e-6

Outputs = Tensor | Sequence[Tensor]


def outputs(name: str, value: Outputs | None) -> Sequence[Tensor]:
    """One tensor per output of the network."""
    if value is None:
        raise InputError(
            f"no {name}", "what every term with a weight needs", f"hand over {name} or set the weight to 0"
        )
    return [value] if isinstance(value, Tensor) else value


def finest(name: str, value: Tensor | None) -> Tensor:
    """The one tensor of the finest output."""
    return outputs(name, value)[0]


def check_slabs(volume: Tensor, slabs: Tensor) -> None:
    """Refuse P (B, T, S) that does not belong to a volume (B, C, S, Y, X)."""
    if slabs.ndim != 3 or slabs.shape[::2] != volume.shape[:3:2]:
        got = f"slabs of shape {tuple(slabs.shape)} for {volume.shape[0]} samples of {volume.shape[2]} slices"
        raise InputError(got, "(samples, slabs, slices)", "build the matrix from the slices of this very output")


def full_precision(x: Tensor) -> Tensor:
    """float32, or float64 where `x` has it."""
    return x if x.dtype == torch.float64 else x.float()


def take(volume: Tensor, index: Tensor) -> Tensor:
    """Slices of every sample: (B, C, S, Y, X), (B, T) -> (B, C, T, Y, X)."""
    return torch.stack([sample.index_select(1, chosen) for sample, chosen in zip(volume, index, strict=True)])


def beside_volume(rows: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, 1, 1)."""
    return rows[:, None, :, None, None]


def support(matrix: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where the rows of (B, N, M) are above zero: columns (B, N, K) and log of the weights there, K the most in a row.

    Rows with fewer are filled up with weights of log 0 = -inf. Both come in the device of `like`, the weights in its
    data type; they are found where `matrix` lies, so that a matrix on the CPU makes nobody wait for the GPU.
    """
    most = max(int((matrix > 0).sum(-1).max()), 1)
    weight, index = matrix.topk(most, dim=-1)
    return index.to(like.device), weight.clamp_min(0).to(like).log()


class LogAverage(torch.autograd.Function):
    """log of the average over each slab, of logs: (B, C, S, Y, X), P (B, T, S) -> log(P exp(.)), (B, C, T, Y, X).

    `log(P @ exp(.))` is wrong where the probabilities saturate, and a `logsumexp` that autograd follows keeps a tensor
    with every slab's slices beside each other. A slab covers few slices, and a slice lies in few slabs (1 or 2 as a
    rule), so both directions walk over those few instead: slices of a slab forward, slabs of a slice backward, as

        d log q[t] / d l[s] = exp(log P[t, s] + l[s] - log q[t]), at most 1

    which needs no more than the input and the output. Gathering alone, no scattering: results are reproducible on CUDA.
    Slabs without slices give 0 and no gradient.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logs: Tensor, slabs: Tensor) -> Tensor:
        index, log_weight = support(slabs, logs)
        result = logs.new_full((*logs.shape[:2], slabs.shape[1], *logs.shape[3:]), -math.inf)
        for k in range(index.shape[2]):
            result = torch.logaddexp(result, take(logs, index[:, :, k]) + beside_volume(log_weight[:, :, k]))
        empty = beside_volume(log_weight.isneginf().all(-1))
        result = result.masked_fill(empty, 0.0)
        ctx.save_for_backward(logs, result, *support(slabs.mT, logs))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        logs, result, index, log_weight = ctx.saved_tensors
        total = torch.zeros_like(logs)
        for k in range(index.shape[2]):
            share = (logs - take(result, index[:, :, k]) + beside_volume(log_weight[:, :, k])).exp_()
            total += share.mul_(take(gradient, index[:, :, k]))
        return total, None


def slab_logits(logits: Tensor, slabs: Tensor, *, beta: float = 1.0, regions: bool = False) -> Tensor:
    """Logits of the slabs' average probabilities q, for a loss that applies softmax (or, for regions, sigmoid) itself.

    Softmax: beta * log q, and softmax(log q) = q. Regions: beta * log(q / (1 - q)). Exact for saturated logits too.

    Args:
        logits: (B, C, S, Y, X); computed in float32 (float64 where they are), under autocast too.
        slabs: P, (B, T, S), one per sample; rows of zeros give 0.
        beta: above 1 draws the averages towards 0 and 1, so that a slab that is mostly one label counts as that label.
        regions: C regions, each with its sigmoid, in place of C exclusive labels.

    Returns:
        (B, C, T, Y, X).
    """
    check_slabs(logits, slabs)
    with torch.autocast(logits.device.type, enabled=False):
        logits = full_precision(logits)
        if not regions:
            return beta * LogAverage.apply(F.log_softmax(logits, dim=1), slabs)
        inside = LogAverage.apply(F.logsigmoid(logits), slabs)
        return beta * (inside - LogAverage.apply(F.logsigmoid(-logits), slabs))


def slab_features(features: Tensor, slabs: Tensor) -> Tensor:
    """The slabs' average feature maps, in float32: (B, D, S, Y, X), (B, T, S) -> (B, D, T, Y, X)."""
    check_slabs(features, slabs)
    with torch.autocast(features.device.type, enabled=False):
        features = full_precision(features)
        return torch.einsum("bts,bdsyx->bdtyx", slabs.to(features), features)


def unit_vectors(features: Tensor) -> Tensor:
    """The direction of each voxel's features, (B, D, T, Y, X); zero vectors stay zero and get no gradient."""
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / length.masked_fill(length < SHORTEST_FEATURE, math.inf)


def feature_distance(averaged: Tensor, thick: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the voxels of valid slabs of 1/2 |a - b|^2, a and b the directions of (B, D, T, Y, X); 0 if none is."""
    if averaged.shape != thick.shape:
        got = f"features of shape {tuple(averaged.shape)} and {tuple(thick.shape)}"
        raise InputError(got, "one shape for both images", "take both from the same layer, with one row of P per slice")
    with torch.autocast(thick.device.type, enabled=False):
        difference = unit_vectors(averaged) - unit_vectors(full_precision(thick))
        distance = 0.5 * difference.square().sum(1)  # (B, T, Y, X)
        if valid is None:
            return distance.mean()
        valid = valid.to(distance.device)
        voxels = valid.sum() * distance.shape[2:].numel()
        return distance.masked_fill(~valid[:, :, None, None], 0.0).sum() / voxels.clamp_min(1)


def mark_ignored(
    target: Tensor, valid: Tensor, *, ignore_label: int | None = None, regions: int | None = None
) -> Tensor:
    """`target` with the slabs that do not count marked as ignored, as nnU-Net lays that out.

    Args:
        target: (B, 1, T, Y, X) labels; (B, regions, T, Y, X) or, with a last channel that is 1 where voxels are
            ignored, (B, regions + 1, T, Y, X) for regions, bool or number.
        valid: (B, T) bool.
        ignore_label: the value that marks labels.
        regions: number of regions; None for labels.

    Returns:
        The target, with the last channel in any case for regions.
    """
    ignored = beside_volume(~valid.to(target.device))
    if regions is None:
        if ignore_label is None:
            raise InputError("slabs that do not count", "a loss with an ignore label", "set ignore_label")
        return target.masked_fill(ignored, ignore_label)
    if target.shape[1] == regions:
        target = F.pad(target, (0, 0) * 3 + (0, 1))
    elif target.shape[1] != regions + 1:
        got = f"a target of {target.shape[1]} channels for {regions} regions"
        raise InputError(got, f"{regions} channels, or one more that marks ignored voxels", "check the target")
    return torch.cat([target[:, :-1], target[:, -1:].masked_fill(ignored, 1)], dim=1)


class ThinThickLoss(nn.Module):
    """Joint loss of one forward pass on the thin image x and one on the slabs' averages P x.

    - thick (L1): `segmentation_loss` of f(P x) against y.
    - thin (L2): `segmentation_loss` of the slabs' averages of the thin predictions against y, see `slab_logits`.
    - features (L3): distance of the directions of P F(x) and F(P x), gradient to both, see `feature_distance`.

    Slabs that do not count (padding, or not covered by the patch) are marked as ignored in the target, so that shapes
    and the number of calls stay the same at every step and on every rank. So where `valid` is given,
    `segmentation_loss` must leave ignored voxels out of every sum and mean, also where all of them are:
    nnU-Net's `DC_and_CE_loss(..., ignore_label=ignore_label)`, which a data set without ignore label needs as well
    (take a number that is no label), or `DC_and_BCE_loss(..., use_ignore_label=True)` for regions.
    (With the ignore channel nnU-Net adds up the regions' cross-entropies, without it averages them: where the data set
    has no ignore label, `weight_ce=1 / regions` keeps the balance of its Dice and cross-entropy.)

    Args:
        segmentation_loss: (logits, target) -> scalar; applies softmax (regions: sigmoid) itself.
        weights: of thick, thin and features. A term with weight 0 is not computed, and what it alone needs may be None.
            The attribute may be set anew between steps (ramp-up).
        beta: sharpening of the thin term; 1 is the paper's loss.
        regions: the logits are regions (sigmoid), not exclusive labels (softmax).
        ignore_label: marks ignored voxels in label targets; regions mark them in a last channel.
        output_weights: with deep supervision, the weight of each output in L1 and L2; outputs with weight 0 are left
            out. None: all alike, sum 1. A single output always has weight 1.
        thick_on_thin_grid: the thick image was shown to the network on the thin grid, each slab's average repeated;
            its logits and features have S slices then and are averaged over the slabs (the logits with beta = 1).

    Raises:
        InputError: weights, beta or tensors do not fit.
    """

    def __init__(
        self,
        segmentation_loss: Callable[[Tensor, Tensor], Tensor],
        *,
        weights: Sequence[float] = (0.1, 1.0, 0.1),
        beta: float = 4.0,
        regions: bool = False,
        ignore_label: int | None = None,
        output_weights: Sequence[float] | None = None,
        thick_on_thin_grid: bool = False,
    ):
        super().__init__()
        if len(weights) != len(TERMS) or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            remedy = "give the weights of the terms " + ", ".join(TERMS)
            raise InputError(f"weights {tuple(weights)}", "three numbers of 0 or more, not all 0", remedy)
        if not 0 < beta < math.inf:
            raise InputError(f"beta {beta}", "a number above 0", "choose beta 1 (as published) or above, such as 4")
        if output_weights is not None and (
            not any(output_weights) or not all(0 <= w < math.inf for w in output_weights)
        ):
            got = f"output_weights {tuple(output_weights)}"
            raise InputError(got, "numbers of 0 or more, not all 0", "give one weight per output, finest first")
        self.segmentation_loss = segmentation_loss
        self.weights = tuple(weights)
        self.beta = beta
        self.regions = regions
        self.ignore_label = ignore_label
        self.output_weights = None if output_weights is None else tuple(float(weight) for weight in output_weights)
        self.thick_on_thin_grid = thick_on_thin_grid

    def forward(
        self,
        *,
        target: Outputs | None = None,
        slabs: Outputs | None = None,
        valid: Outputs | None = None,
        thick_logits: Outputs | None = None,
        thin_logits: Outputs | None = None,
        thin_features: Tensor | None = None,
        thick_features: Tensor | None = None,
        thick_target: Outputs | None = None,
        feature_slabs: Tensor | None = None,
        feature_valid: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint loss, and the unweighted terms that were computed, detached, by the names of `TERMS`.

        The first five are lists of one tensor per output with deep supervision; features are the finest output's.

        Args:
            target: y at the slabs, (B, 1 or regions (+ 1), T, Y, X).
            slabs: P, (B, T, S), of each sample, on any device (on the CPU nothing waits for the GPU); rows of zeros
                for padding.
            valid: (B, T) bool, slabs that count; None if all do.
            thick_logits: f(P x), (B, C, T, Y, X).
            thin_logits: f(x), (B, C, S, Y, X).
            thin_features: F(x), (B, D, S', Y', X').
            thick_features: F(P x), (B, D, T', Y', X').
            feature_slabs: P of the feature map's own slices, (B, T', S').
            feature_valid: (B, T') bool; None if all count.
            thick_target: y of L1 where the coarser of the thick image's outputs have fewer slices than slabs; what
                does not count is marked as ignored in it. By default `target` and `valid`.
        """
        weights = dict(zip(TERMS, self.weights, strict=True))
        terms: dict[str, Tensor] = {}
        if weights["thick"]:
            matrix = outputs("slabs", slabs) if self.thick_on_thin_grid else None
            truth = (target, valid) if thick_target is None else (thick_target, None)
            terms["thick"] = self.segmentation(outputs("thick_logits", thick_logits), *truth, matrix, beta=1.0)
        if weights["thin"]:
            matrix = outputs("slabs", slabs)
            terms["thin"] = self.segmentation(
                outputs("thin_logits", thin_logits), target, valid, matrix, beta=self.beta
            )
        if weights["features"]:
            of_slabs = finest("feature_slabs", feature_slabs)
            averaged = slab_features(finest("thin_features", thin_features), of_slabs)
            thick = finest("thick_features", thick_features)
            thick = slab_features(thick, of_slabs) if self.thick_on_thin_grid else thick
            terms["features"] = feature_distance(averaged, thick, feature_valid)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}

    def segmentation(
        self,
        logits: Sequence[Tensor],
        target: Outputs | None,
        valid: Outputs | None,
        slabs: Sequence[Tensor] | None,
        *,
        beta: float,
    ) -> Tensor:
        """The segmentation loss, summed over the outputs by their weights; of averages where `slabs` is given."""
        given = {"target": outputs("target", target)}
        if valid is not None:
            given["valid"] = outputs("valid", valid)
        if slabs is not None:
            given["slabs"] = slabs
        weights = self.output_weights if len(logits) > 1 and self.output_weights else (1 / len(logits),) * len(logits)
        for name, items in {**given, "output_weights": weights}.items():
            if len(items) != len(logits):
                got = f"{len(items)} of {name} for {len(logits)} outputs"
                raise InputError(got, "one per output", f"check {name} against the network's deep supervision")
        terms = []
        for i, weight in enumerate(weights):
            if weight == 0:
                continue
            prediction, truth = logits[i], given["target"][i]
            if slabs is not None:
                prediction = slab_logits(prediction, slabs[i], beta=beta, regions=self.regions)
            if valid is not None:
                regions = prediction.shape[1] if self.regions else None
                truth = mark_ignored(truth, given["valid"][i], ignore_label=self.ignore_label, regions=regions)
            terms.append(weight * self.segmentation_loss(prediction, truth))
        return torch.stack(terms).sum()
