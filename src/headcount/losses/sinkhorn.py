"""Entropic optimal transport between annotated points and a map of blocks, by a fixed number of Sinkhorn iterations.

Solves the transport problem inside DM-Count's loss (arXiv:2009.13077, section 3) with the iteration of
arXiv:1306.0895 (algorithm 1):

    minimize <P, C> - regularization * entropy(P)  over plans P >= 0 with row sums a and column sums b,
    C_ij = squared distance of point i and the center of block j,  a_i = 1 / n,  b = normalized prediction.

Published numbers rest on this iteration as it stands after 100 steps, far from converged and in single precision.
It offers no converged solution, and nothing differentiates through it: the loss needs the potentials only.
"""

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-16
"""Added to each divisor of the iteration. Where the kernel vanishes it decides the result, so it is part of it."""

SMALLEST_KERNEL = 2.0**-120
"""Kernel entries below this are left out: with scalings of at most 1 / EPSILON they change no divisor visibly."""

KERNEL_SCALE = 2.0**60
"""The kernel is stored times this, which keeps it and its products with the scalings out of the denormal numbers:
a CPU multiplies those a hundred times slower."""

POINTS_AT_ONCE = {"cpu": (128, 1024), "cuda": (65536, 65536)}
"""Bounds of the points that share a kernel, by device type. Between them it is twice the points of the fullest image:
more would save calls, fewer would save memory."""

VECTOR_PRODUCT_ON_CPU = sys.platform == "linux" and torch.backends.mkl.is_available()
"""Whether torch can multiply a sparse matrix and a vector here; a matrix of one column takes twice as long."""

CHECK_EVERY = 10
"""Iterations between looks at the error."""

STOP_BELOW = 1e-9
"""The iteration of an image ends when the squared error of its column sums is at most this."""


@dataclass(frozen=True)
class TransportSolution:
    """What the loss and the records need of the plans of a batch; an image without points has zeros."""

    potentials: Float[Tensor, "batch rows cols"]
    """Dual variable of each block (beta), squared pixels."""
    costs: Float[Tensor, " batch"]
    """Transport cost <P, C> of each image, squared pixels, without the entropy."""


@dataclass(frozen=True)
class TruncatedSinkhorn:
    """The released iteration, on one sparse kernel for the points of several images.

    With a regularization of 10 squared pixels the kernel vanishes in single precision beyond some 30 pixels: a point
    reaches about 40 blocks of 8 pixels, however large the image. Only those are stored, and nothing is padded.
    """

    # Released code: a dense kernel for each image, with squares expanded to x^2 - 2 x c + c^2; here: a sparse one of
    # direct differences, because it is many times faster and loses no digits. It agrees with the released code in
    # float64 to 1e-6 of the gradient, nearer than the released code in float32 does.
    # Released code: goes back one iteration where it meets NaN; here: not, because sums with EPSILON cannot be 0.

    regularization: float
    """Entropic regularization, squared pixels."""
    iterations: int
    """Most iterations of an image."""

    @torch.no_grad()
    def __call__(
        self, points: list[Float[Tensor, "_ 2"]], blocks: Float[Tensor, "batch rows cols"], *, block_size: int
    ) -> TransportSolution:
        """Transport the points of each image to its blocks.

        Args:
            points: (x, y) of the heads of each image, in pixels of the input; may be empty.
            blocks: share of each block, summing to 1 in each image (or to 0, where nothing is predicted).
            block_size: side of a block in pixels.
        """
        lengths = torch.tensor([len(p) for p in points], device=blocks.device)
        # A block that no point reaches receives nothing: its v is b / EPSILON from the first iteration on.
        v = (blocks / EPSILON).flatten()
        costs = blocks.new_zeros(len(blocks))
        with one_thread():
            for images in _chunks([len(p) for p in points], *POINTS_AT_ONCE[blocks.device.type]):
                chunk = torch.cat([points[i].to(blocks) for i in images])
                chosen = torch.tensor(images, device=blocks.device)
                image = torch.repeat_interleave(chosen, lengths[chosen], output_size=len(chunk))
                pairs = _pairs(chunk, image, blocks.shape, block_size=block_size, regularization=self.regularization)
                a = 1 / lengths[image].to(blocks)
                costs.index_add_(0, image, self._solve(pairs, a=a, blocks=blocks, v_everywhere=v))
        potentials = v.add_(EPSILON).log_().mul_(self.regularization).view_as(blocks)
        return TransportSolution(potentials.masked_fill_((lengths == 0)[:, None, None], 0), costs)

    def _solve(
        self,
        pairs: "_Pairs",
        *,
        a: Float[Tensor, " n"],
        blocks: Float[Tensor, "batch rows cols"],
        v_everywhere: Float[Tensor, " blocks"],
    ) -> Float[Tensor, " n"]:
        """Set v where a point reaches, for some images at once; return the transport cost of each point."""
        reached, to_points, to_blocks = _kernel(pairs, self.regularization)
        image = reached // blocks[0].numel()
        b = blocks.flatten()[reached]
        # What the error owes to the blocks out of reach, by image: the sum of b^2 there.
        unreached = torch.linalg.vector_norm(v_everywhere.index_fill_(0, reached, 0).view(len(blocks), -1), dim=1)
        unreached = (unreached * EPSILON).square()

        # The scale of the kernel cancels where it multiplies the marginals and EPSILON, too.
        scaled_a, scaled_b, epsilon = KERNEL_SCALE * a, KERNEL_SCALE * b, KERNEL_SCALE * EPSILON
        epsilon_a, epsilon_b = torch.full_like(a, epsilon), torch.full_like(b, epsilon)
        u, v = a, torch.zeros_like(b)
        running, some_done = torch.ones_like(b, dtype=torch.bool), False
        for i in range(self.iterations):
            received = _add_product(epsilon_b, to_blocks, u)
            if i and i % CHECK_EVERY == 0:
                errors = (v * (received - epsilon) / KERNEL_SCALE - b).square()
                running &= (unreached.index_add(0, image, errors) > STOP_BELOW)[image]
                some_done = b.is_cuda or not bool(running.all())  # no device sync: a GPU is not asked
            # An image that is done keeps its v, and so its u, while others go on.
            v = torch.where(running, scaled_b / received, v) if some_done else scaled_b / received
            u = scaled_a / _add_product(epsilon_a, to_points, v)

        # The plan is diag(u) K diag(v); its product with C, summed over the blocks.
        weighted = _sparse(pairs.starts, to_points.col_indices(), to_points.values() * pairs.cost, columns=len(reached))
        v_everywhere[reached] = v
        return u * _add_product(torch.zeros_like(a), weighted, v) / KERNEL_SCALE


@dataclass(frozen=True)
class _Pairs:
    """The points and blocks whose kernel does not vanish, ordered by point."""

    starts: Int[Tensor, " starts"]
    """First pair of each point, and the number of pairs."""
    block: Int[Tensor, " pairs"]
    """Index into all blocks of the batch."""
    cost: Float[Tensor, " pairs"]
    """Squared distance, pixels."""


def _pairs(
    points: Float[Tensor, "n 2"], image: Int[Tensor, " n"], shape: torch.Size, *, block_size: int, regularization: float
) -> _Pairs:
    """Pairs of ``points``, each in its ``image``, with the blocks of images of ``shape`` (batch, rows, cols)."""
    _, rows, cols = shape
    radius = math.sqrt(-math.log(SMALLEST_KERNEL) * regularization)
    col, dx2 = _near_blocks(points[:, 0], count=cols, block_size=block_size, radius=radius)
    row, dy2 = _near_blocks(points[:, 1], count=rows, block_size=block_size, radius=radius)
    row = image.int()[:, None] * rows + row
    cost = (dy2[:, :, None] + dx2[:, None, :]).flatten(1)
    near = cost <= radius**2
    kept = near.flatten().nonzero().squeeze(1)  # device sync: the number of pairs
    block = (row[:, :, None] * cols + col[:, None, :]).flatten()
    return _Pairs(_starts(near.sum(1)), block=block.index_select(0, kept), cost=cost.flatten().index_select(0, kept))


def _near_blocks(
    x: Float[Tensor, " n"], *, count: int, block_size: int, radius: float
) -> tuple[Int[Tensor, "n near"], Float[Tensor, "n near"]]:
    """Along one axis of ``count`` blocks: those with centers within ``radius`` of each x, and squared distances.

    Every x gets as many blocks, all of them on the axis; some may lie farther than ``radius``.
    """
    near = min(int(2 * radius / block_size) + 1, count)
    first = torch.ceil((x - radius) / block_size - 0.5).clamp(0, count - near).int()
    index = first[:, None] + torch.arange(near, dtype=torch.int32, device=x.device)
    return index, (block_size * (index + 0.5) - x[:, None]).square()


def _kernel(pairs: _Pairs, regularization: float) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel as two sparse matrices.

    Returns:
        The blocks that occur in ``pairs``, increasing; exp(-C / regularization) times ``KERNEL_SCALE``, points x these
        blocks; its transpose, stored as well since only products by rows are fast.
    """
    kernel = torch.exp(pairs.cost / -regularization).mul_(KERNEL_SCALE)
    by_block, order = pairs.block.sort()
    reached, rank, sizes = torch.unique_consecutive(by_block, return_inverse=True, return_counts=True)
    column = torch.empty_like(pairs.block).scatter_(0, order, rank.int())
    del by_block, rank  # the most memory is in use below
    point = torch.repeat_interleave(pairs.starts.diff(), output_size=len(kernel)).int().index_select(0, order)
    to_points = _sparse(pairs.starts, column, kernel, columns=len(reached))
    to_blocks = _sparse(_starts(sizes), point, kernel.index_select(0, order), columns=len(pairs.starts) - 1)
    return reached.long(), to_points, to_blocks


def _starts(sizes: Int[Tensor, " rows"]) -> Int[Tensor, " starts"]:
    """Where each of consecutive runs of ``sizes`` starts, and where the last one ends."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()


def _sparse(starts: Int[Tensor, " starts"], column: Int[Tensor, " _"], value: Tensor, *, columns: int) -> Tensor:
    """Matrix whose row i has the ``value`` and ``column`` from ``starts[i]`` to ``starts[i + 1]``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return torch.sparse_csr_tensor(starts, column, value, (len(starts) - 1, columns), check_invariants=False)


def _add_product(offset: Float[Tensor, " m"], matrix: Tensor, vector: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """``offset`` + sparse ``matrix`` times ``vector``."""
    if vector.is_cuda or VECTOR_PRODUCT_ON_CPU:
        return torch.addmv(offset, matrix, vector)
    return torch.addmm(offset[:, None], matrix, vector[:, None]).squeeze(1)


def _chunks(lengths: list[int], at_least: int, at_most: int) -> Iterator[list[int]]:
    """Indices of the images that have points, in runs within ``POINTS_AT_ONCE``; a larger image stands alone."""
    limit = min(max(2 * max(lengths, default=0), at_least), at_most)
    chunk: list[int] = []
    total = 0
    for i, length in enumerate(lengths):
        if chunk and total + length > limit:
            yield chunk
            chunk, total = [], 0
        if length:
            chunk.append(i)
            total += length
    if chunk:
        yield chunk


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one CPU thread meanwhile.

    An operation here takes microseconds, in which several threads gain little; and where other processes want the
    processors too, as loading workers do, they wait for each other some milliseconds at each of a thousand operations.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
