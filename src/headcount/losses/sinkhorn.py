"""Entropic optimal transport between annotated points and a map of blocks, by a fixed number of Sinkhorn iterations.

Solves the transport problem inside DM-Count's loss (arXiv:2009.13077, section 3) with the iteration of
arXiv:1306.0895 (algorithm 1):

    minimize <P, C> - regularization * entropy(P)  over plans P >= 0 with row sums a and column sums b,
    C_ij = squared distance between point i and the center of block j,  a_i = 1 / n,  b = normalized prediction.

Published results depend on the state of this iteration after 100 steps, far from convergence and in single precision.
This module does not iterate to convergence (see ``stable``), and no gradient flows through it: the loss needs only the
potentials.
"""

import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-16
"""Added to each divisor of the iteration. Where the kernel underflows, this value determines the result, so it is part
of the method."""

MIN_KERNEL = 2.0**-120
"""Smaller kernel entries are omitted: scalings are at most 1 / EPSILON, so they change no divisor noticeably."""

KERNEL_SCALE = 2.0**60
"""Factor applied to the stored kernel, so that neither its entries nor their products with the scalings are denormal
numbers, which a CPU multiplies a hundred times more slowly."""

POINTS_AT_ONCE = {"cpu": (128, 1024), "cuda": (65536, 65536)}
"""Minimum and maximum number of points per kernel, by device type. Between these bounds the number is twice the points
of the most crowded image: more points mean fewer calls, fewer points mean less memory."""

READS_SIZES = {"cpu": True, "cuda": False}
"""Whether values are read to find out how much there is to compute, by device type. On a GPU, the host would wait for
them (a device sync); there, each point is paired with the same number of blocks, and the entries of those too far away
are 0."""

VECTOR_PRODUCT_ON_CPU = sys.platform == "linux" and torch.backends.mkl.is_available()
"""Whether torch can multiply a sparse matrix by a vector on this CPU; a one-column matrix takes twice as long."""

CHECK_EVERY = 10
"""Iterations between convergence checks."""

STOP_BELOW = 1e-9
"""An image is finished when the squared error of its column sums is at most this value."""


@dataclass(frozen=True)
class TransportSolution:
    """Dual potentials and costs of a batch's transport plans; zeros for an image without points."""

    potentials: Float[Tensor, "batch rows cols"]
    """Dual variable of each block (beta), in squared pixels."""
    costs: Float[Tensor, " batch"]
    """Transport cost <P, C> per image, in squared pixels, without the entropy term."""


@dataclass(frozen=True)
class TruncatedSinkhorn:
    """The released iteration, with one sparse kernel for the points of several images.

    With a regularization of 10 squared pixels the kernel underflows in single precision beyond about 30 pixels: a point
    reaches about 40 blocks of 8 pixels, whatever the size of the image. Only these entries are stored, without padding.
    """

    # Released code: a dense kernel per image, with squares expanded to x^2 - 2 x c + c^2; here: a sparse kernel of
    # direct differences, because it is many times faster and does not lose digits to cancellation. Its gradient agrees
    # with the released code run in float64 to 1e-6, which is closer than the released code run in float32.
    # Released code: returns to the previous iteration when it meets NaN; here: no such step, because sums that include
    # EPSILON cannot be 0.

    regularization: float
    """Entropic regularization, in squared pixels."""
    iterations: int
    """Maximum number of iterations per image."""

    @torch.no_grad()
    def __call__(
        self, points: list[Float[Tensor, "_ 2"]], blocks: Float[Tensor, "batch rows cols"], *, block_size: int
    ) -> TransportSolution:
        """Transport the points of each image to its blocks.

        Args:
            points: (x, y) of the heads of each image, in pixels of the input image; may be empty.
            blocks: share of each block; sums to 1 per image, or to 0 where the predicted count is 0.
            block_size: side of a block, in pixels.

        Returns:
            Potentials and costs of each image; not converged, see the module docstring.
        """
        lengths = from_host([len(p) for p in points], blocks.device)
        # A block that no point reaches receives no mass: its v is b / EPSILON from the first iteration on.
        v = (blocks / EPSILON).flatten()
        costs = blocks.new_zeros(len(blocks))
        for images in _chunks([len(p) for p in points], *POINTS_AT_ONCE[blocks.device.type]):
            chunk = torch.cat([points[i].to(blocks) for i in images])
            chosen = from_host(images, blocks.device)
            image = torch.repeat_interleave(chosen, lengths[chosen], output_size=len(chunk))
            pairs = _pairs(chunk, image, blocks.shape, block_size=block_size, regularization=self.regularization)
            a = 1 / lengths[image].to(blocks)
            among = range(images[0] * blocks[0].numel(), (images[-1] + 1) * blocks[0].numel())
            costs.index_add_(0, image, self._solve(pairs, a=a, blocks=blocks, among=among, v_everywhere=v))
        potentials = v.add_(EPSILON).log_().mul_(self.regularization).view_as(blocks)
        return TransportSolution(potentials.masked_fill_((lengths == 0)[:, None, None], 0), costs)

    def _solve(
        self,
        pairs: "_Pairs",
        *,
        a: Float[Tensor, " n"],
        blocks: Float[Tensor, "batch rows cols"],
        among: range,
        v_everywhere: Float[Tensor, " blocks"],
    ) -> Float[Tensor, " n"]:
        """Solve for several images at once and write ``v_everywhere`` in place where a point reaches a block.

        Args:
            among: indices of the blocks of these images.

        Returns:
            Transport cost of each point, in squared pixels.
        """
        reads_sizes = READS_SIZES[blocks.device.type]
        reached, to_points, to_blocks = _kernel(pairs, self.regularization, among=None if reads_sizes else among)
        image = reached // blocks[0].numel()
        b = blocks.flatten()[reached]
        # Contribution of the blocks that no point reaches to the error of each image: the sum of b^2 over them.
        unreached = torch.linalg.vector_norm(v_everywhere.index_fill_(0, reached, 0).view(len(blocks), -1), dim=1)
        unreached = (unreached * EPSILON).square()

        # The scale of the kernel cancels because the marginals and EPSILON are multiplied by it as well.
        scaled_a, scaled_b, epsilon = KERNEL_SCALE * a, KERNEL_SCALE * b, KERNEL_SCALE * EPSILON
        epsilon_a, epsilon_b = torch.full_like(a, epsilon), torch.full_like(b, epsilon)
        u, v = a, torch.zeros_like(b)
        running, some_done = torch.ones_like(b, dtype=torch.bool), False
        for i in range(self.iterations):
            received = _add_product(epsilon_b, to_blocks, u)
            if i and i % CHECK_EVERY == 0:
                errors = (v * (received - epsilon) / KERNEL_SCALE - b).square()
                running &= (unreached.index_add(0, image, errors) > STOP_BELOW)[image]
                some_done = not reads_sizes or not bool(running.all())
            # A finished image keeps its v, and therefore its u, while the others continue.
            v = torch.where(running, scaled_b / received, v) if some_done else scaled_b / received
            u = scaled_a / _add_product(epsilon_a, to_points, v)

        # The plan is diag(u) K diag(v); its elementwise product with C is summed over the blocks.
        weighted = _sparse(pairs.starts, to_points.col_indices(), to_points.values() * pairs.cost, columns=len(reached))
        v_everywhere[reached] = v
        return u * _add_product(torch.zeros_like(a), weighted, v) / KERNEL_SCALE


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a point and a block whose kernel entry is stored, ordered by point; no pair occurs twice."""

    starts: Int[Tensor, " starts"]
    """Index of the first pair of each point, followed by the number of pairs."""
    block: Int[Tensor, " pairs"]
    """Index into all blocks of the batch."""
    cost: Float[Tensor, " pairs"]
    """Squared distance, in squared pixels."""


def _pairs(
    points: Float[Tensor, "n 2"], image: Int[Tensor, " n"], shape: torch.Size, *, block_size: int, regularization: float
) -> _Pairs:
    """Pair each of ``points`` (of image number ``image``) with the near blocks; ``shape`` is (batch, rows, cols)."""
    _, rows, cols = shape
    radius = math.sqrt(-math.log(MIN_KERNEL) * regularization)
    col, dx2 = _near_blocks(points[:, 0], count=cols, block_size=block_size, radius=radius)
    row, dy2 = _near_blocks(points[:, 1], count=rows, block_size=block_size, radius=radius)
    row = image.int()[:, None] * rows + row
    cost = (dy2[:, :, None] + dx2[:, None, :]).flatten(1)
    block = (row[:, :, None] * cols + col[:, None, :]).flatten()
    if not READS_SIZES[points.device.type]:
        starts = cost.size(1) * torch.arange(len(points) + 1, dtype=torch.int32, device=points.device)
        return _Pairs(starts, block=block, cost=cost.flatten())
    near = cost <= radius**2
    kept = near.flatten().nonzero().squeeze(1)
    return _Pairs(_starts(near.sum(1)), block=block.index_select(0, kept), cost=cost.flatten().index_select(0, kept))


def _near_blocks(
    x: Float[Tensor, " n"], *, count: int, block_size: int, radius: float
) -> tuple[Int[Tensor, "n near"], Float[Tensor, "n near"]]:
    """Blocks whose centers lie within ``radius`` of each x, along one axis of ``count`` blocks.

    Every x has the same number of blocks, all of them inside the axis; some may lie farther away than ``radius``.

    Returns:
        Index of each block, and its squared distance in squared pixels.
    """
    near = min(int(2 * radius / block_size) + 1, count)
    first = torch.ceil((x - radius) / block_size - 0.5).clamp(0, count - near).int()
    index = first[:, None] + torch.arange(near, dtype=torch.int32, device=x.device)
    return index, (block_size * (index + 0.5) - x[:, None]).square()


def _kernel(pairs: _Pairs, regularization: float, *, among: range | None) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel as two sparse matrices.

    Args:
        among: the blocks that form the columns, whether they occur in ``pairs`` or not; None for those that occur.

    Returns:
        The blocks that form the columns, in increasing order; the matrix exp(-C / regularization) * ``KERNEL_SCALE``,
        points x these blocks; and its transpose, stored as well because only row-wise products are fast.
    """
    kernel = torch.exp(pairs.cost / -regularization).mul_(KERNEL_SCALE)
    by_block, order = pairs.block.sort()
    if among is None:
        reached, rank, sizes = torch.unique_consecutive(by_block, return_inverse=True, return_counts=True)
        column = torch.empty_like(pairs.block).scatter_(0, order, rank.int())
        starts = _starts(sizes)
        del rank
    else:
        functional.threshold(kernel, MIN_KERNEL * KERNEL_SCALE, 0, inplace=True)
        bounds = torch.arange(among.start, among.stop + 1, dtype=by_block.dtype, device=by_block.device)
        reached, column = bounds[:-1], pairs.block - among.start
        starts = torch.searchsorted(by_block, bounds, out_int32=True)
    del by_block  # peak memory use is below
    point = torch.repeat_interleave(pairs.starts.diff(), output_size=len(kernel)).int().index_select(0, order)
    to_points = _sparse(pairs.starts, column, kernel, columns=len(reached))
    to_blocks = _sparse(starts, point, kernel.index_select(0, order), columns=len(pairs.starts) - 1)
    return reached.long(), to_points, to_blocks


def from_host(values: list[int], device: torch.device) -> Int64[Tensor, " n"]:
    """Numbers of the host on a device; no device sync, because the copy is from page-locked memory."""
    return torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _starts(sizes: Int[Tensor, " rows"]) -> Int[Tensor, " starts"]:
    """Start of each of consecutive runs of lengths ``sizes``, followed by the end of the last one."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()


def _sparse(starts: Int[Tensor, " starts"], column: Int[Tensor, " _"], value: Tensor, *, columns: int) -> Tensor:
    """Sparse matrix whose row i holds the entries ``starts[i]`` to ``starts[i + 1]`` of ``value`` and ``column``."""
    with warnings.catch_warnings():
        for known in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled"):
            warnings.filterwarnings("ignore", message=known, category=UserWarning)
        return torch.sparse_csr_tensor(starts, column, value, (len(starts) - 1, columns), check_invariants=False)


def _add_product(offset: Float[Tensor, " m"], matrix: Tensor, vector: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """``offset`` + sparse ``matrix`` times ``vector``."""
    if vector.is_cuda or VECTOR_PRODUCT_ON_CPU:
        return torch.addmv(offset, matrix, vector)
    return torch.addmm(offset[:, None], matrix, vector[:, None]).squeeze(1)


def _chunks(lengths: list[int], at_least: int, at_most: int) -> Iterator[list[int]]:
    """Group the indices of images with points, within ``POINTS_AT_ONCE`` points per group; a larger image is alone."""
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
