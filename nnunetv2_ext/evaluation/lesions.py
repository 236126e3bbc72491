"""Components of two masks, matched one to one: which lesions are found, and which findings are right."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from nnunetv2_ext.geometry.boxes import components


class Matches(NamedTuple):
    """How many components there are, and how many pairs of them."""

    reference: int
    prediction: int
    pairs: int


def match_components(reference: np.ndarray, prediction: np.ndarray, *, connectivity: int, iou: float) -> Matches:
    """Match the components of two masks: as many pairs as there can be, each component in one at most.

    Args:
        reference: (Z, Y, X) of bool; best cut to what both masks occupy.
        prediction: likewise.
        connectivity: components touch by faces (6), edges too (18) or corners too (26).
        iou: the least intersection over union of a pair; at 0 one common voxel is enough.
    """
    ones, first = components(reference, connectivity)
    others, second = components(prediction, connectivity)
    both = reference & prediction
    shape = (first + 1, second + 1)
    # counts of equal pairs are summed up
    common = sparse.coo_array((np.ones(np.count_nonzero(both), np.int64), (ones[both], others[both])), shape).tocsr()
    of_pair = common.tocoo()
    union = np.bincount(ones[reference])[of_pair.row] + np.bincount(others[prediction])[of_pair.col] - of_pair.data
    enough = of_pair.data / union >= iou
    edges = (np.ones(np.count_nonzero(enough), bool), (of_pair.row[enough], of_pair.col[enough]))
    matched = sparse.csgraph.maximum_bipartite_matching(sparse.csr_array(edges, shape), perm_type="column")
    return Matches(first, second, int(np.count_nonzero(matched >= 0)))
