"""Optimal-transport problems with known answers, and the iteration written out on a dense kernel."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Problem:
    """One image, and what any solver of its transport problem must say."""

    points: Tensor
    blocks: Tensor
    block_size: int
    regularization: float
    cost: float
    """<P, C>, squared pixels."""
    potentials: Tensor | None = None
    """Up to a constant; None where blocks out of reach leave them undefined."""


def one_point() -> Problem:
    """One point must send each block its share: P = b, and b_j = u exp((beta_j - C_j) / reg)."""
    blocks = torch.tensor([[0.1, 0.2, 0.3], [0.05, 0.25, 0.1]], dtype=torch.float64)
    x, y, reg = 13.0, 6.5, 20.0
    cost = (y - torch.tensor([4.0, 12.0])).square()[:, None] + (x - torch.tensor([4.0, 12.0, 20.0])).square()
    return Problem(
        points=torch.tensor([[x, y]], dtype=torch.float64),
        blocks=blocks,
        block_size=8,
        regularization=reg,
        cost=float((blocks * cost).sum()),
        potentials=cost + reg * blocks.log(),
    )


def shifted_lattice(*, dx: float, dy: float) -> Problem:
    """Points ``(dx, dy)`` off the centers of blocks 64 px apart, which hold all the mass: each goes to its own."""
    blocks = torch.zeros(20, 28, dtype=torch.float64)
    rows, cols = torch.meshgrid(torch.tensor([2, 10, 18]), torch.tensor([1, 9, 17, 25]), indexing="ij")
    blocks[rows, cols] = 1 / 12
    centers = torch.stack([cols, rows], dim=-1).reshape(-1, 2) * 8 + 4.0
    return Problem(
        points=centers + torch.tensor([dx, dy], dtype=torch.float64),
        blocks=blocks,
        block_size=8,
        regularization=10.0,
        cost=dx**2 + dy**2,
    )


def symmetric_pair(*, block_size: int = 8, regularization: float = 64.0) -> Problem:
    """Two points on the centers of two neighbors of equal mass: P is proportional to exp(-C / reg)."""
    squared = float(block_size**2)
    k = math.exp(-squared / regularization)
    return Problem(
        points=torch.tensor([[0.5, 0.5], [1.5, 0.5]], dtype=torch.float64) * block_size,
        blocks=torch.full((1, 2), 0.5, dtype=torch.float64),
        block_size=block_size,
        regularization=regularization,
        cost=squared * k / (1 + k),
        potentials=torch.zeros(1, 2, dtype=torch.float64),
    )


KNOWN: dict[str, Callable[[], Problem]] = {
    "one point": one_point,
    "on the centers": lambda: shifted_lattice(dx=0, dy=0),
    "off the centers": lambda: shifted_lattice(dx=3, dy=-2),
    "symmetric pair": symmetric_pair,
    "symmetric pair of large blocks": lambda: symmetric_pair(block_size=16, regularization=100),
}


def crowd(n: int, rows: int, cols: int, *, seed: int, block_size: int = 8) -> tuple[Tensor, Tensor]:
    """``n`` points anywhere in an image, and shares of its blocks that have little to do with them; float64."""
    random = np.random.default_rng(seed)
    points = random.uniform(0, 1, (n, 2)) * (cols * block_size, rows * block_size)
    blocks = random.gamma(0.3, size=(rows, cols)) + 1e-3
    return torch.from_numpy(points), torch.from_numpy(blocks / blocks.sum())


def squared_distances(points: np.ndarray, rows: int, cols: int, block_size: int) -> np.ndarray:
    """(n, rows * cols), from each point to each center of a block."""
    row, col = np.divmod(np.arange(rows * cols), cols)
    centers = np.stack([col, row], axis=1) * block_size + block_size / 2
    return np.square(points[:, None] - centers[None]).sum(-1)


def dense_iteration(
    points: Tensor, blocks: Tensor, *, block_size: int, regularization: float, iterations: int, stop: float = 1e-9
) -> tuple[np.ndarray, float, int]:
    """The released iteration in float64 on the whole kernel: potentials, cost and the iterations made."""
    b = blocks.double().numpy().ravel()
    cost = squared_distances(points.double().numpy(), *blocks.shape, block_size)
    kernel = np.exp(-cost / regularization)
    a = u = np.full(len(points), 1 / len(points))
    done = 0
    while done < iterations:
        v = b / (u @ kernel + 1e-16)
        u = a / (kernel @ v + 1e-16)
        done += 1
        if done % 10 == 0 and np.square(v * (u @ kernel) - b).sum() <= stop:
            break
    potentials = regularization * np.log(v + 1e-16).reshape(blocks.shape)
    return potentials, float(u @ (kernel * cost) @ v), done
