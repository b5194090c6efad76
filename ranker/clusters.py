"""The lists of an inverted file: vectors that lie together, by k-means (faiss, johnson2019billion).

Which list a vector belongs to is a matter of distance, so that lists stay of like size; which list a query looks into
first is a matter of the inner product it can expect there. Axes: N vectors, L lists, X coordinates.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

#: vectors a list that k-means looks at; more changed neither its recall nor the lists' sizes
SAMPLE = 64
ROUNDS = 10
CHUNK = 65_536
#: so far beyond a list's mean its vectors are looked for
DEVIATIONS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """A catalogue cut into lists.

    Attributes:
        order_N: the vectors' numbers, list by list.
        starts: L + 1 places into `order_N`.
        centres_LX: the lists' means.
        reach_L: root mean square distance of a list's vectors from its mean.
    """

    order_N: NDArray[np.int64]
    starts: NDArray[np.int64]
    centres_LX: NDArray[np.float32]
    reach_L: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.reach_L)

    def promise(self, query_X: NDArray[np.float32]) -> NDArray[np.float32]:
        """What inner product the query may find in each list: hardly any vector gives more.

        That is what the mean gives, and DEVIATIONS standard deviations more, as if the list were round.
        """
        spread = DEVIATIONS * (float(query_X @ query_X) / max(len(query_X), 1)) ** 0.5
        found: NDArray[np.float32] = self.centres_LX @ query_X + self.reach_L * np.float32(spread)
        return found


def one_list(vectors_NX: NDArray[np.float32]) -> Lists:
    """All in one list, which every query reads."""
    count, width = vectors_NX.shape
    return Lists(np.arange(count), np.array([0, count]), np.zeros((1, width), np.float32), np.zeros(1, np.float32))


def clustered(vectors_NX: NDArray[np.float32], *, lists: int | None = None, seed: int = 0) -> Lists:
    """About 2 sqrt(N) lists of vectors that lie together; the same seed gives the same lists.

    Source: the coarse quantiser of an inverted file (johnson2019billion, section 3). Differs: assignment by distance
    though the search is by inner product, and the vectors are kept whole.
    """
    count = len(vectors_NX)
    lists = min(count, lists or max(1, round(2 * count**0.5)))
    draw = np.random.default_rng(seed)
    learned_from = vectors_NX
    if count > SAMPLE * lists:
        learned_from = vectors_NX[np.sort(draw.choice(count, SAMPLE * lists, replace=False))]
    means = faiss.Kmeans(vectors_NX.shape[1], lists, niter=ROUNDS, seed=seed, min_points_per_centroid=1)
    means.cp.max_points_per_centroid = SAMPLE
    means.train(np.ascontiguousarray(learned_from, np.float32))
    nearest = faiss.IndexFlatL2(vectors_NX.shape[1])
    centres_LX = np.ascontiguousarray(means.centroids, np.float32)
    nearest.add(centres_LX)
    chunks = [nearest.search(vectors_NX[at : at + CHUNK], 1)[1][:, 0] for at in range(0, count, CHUNK)]
    list_N = np.concatenate(chunks)
    order_N = np.argsort(list_N, kind="stable")
    sizes_L = np.bincount(list_N, minlength=lists)
    starts = np.concatenate([[0], np.cumsum(sizes_L)])
    apart_N = np.concatenate(
        [
            np.square(vectors_NX[at : at + CHUNK] - centres_LX[list_N[at : at + CHUNK]]).sum(1)
            for at in range(0, count, CHUNK)
        ]
    )
    reach_L = np.sqrt(np.bincount(list_N, apart_N, minlength=lists) / np.maximum(sizes_L, 1)).astype(np.float32)
    return Lists(order_N, starts, centres_LX, reach_L)
