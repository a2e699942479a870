"""Distances between two sets of features: Fréchet and kernel. The features are part of the metric's name."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(ours: Float[Tensor, "n d"], real: Float[Tensor, "m d"]) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017), in float64.

    With fewer samples than dimensions the covariance is singular and the value is biased upwards: compare only equal n.
    """
    a, b = ours.double(), real.double()
    difference = a.mean(0) - b.mean(0)
    first, second = torch.cov(a.T), torch.cov(b.T)
    # tr((S1 S2)^(1/2)) is the sum of the roots of the eigenvalues of S1 S2, which are real and not negative
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    return float(difference.dot(difference) + first.trace() + second.trace() - 2 * roots)


def kernel_distance(ours: Float[Tensor, "n d"], real: Float[Tensor, "m d"], *, degree: int = 3) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^degree (KID, Bińkowski et al. 2018)."""
    a, b = ours.double(), real.double()
    n, m, width = a.shape[0], b.shape[0], a.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / width + 1) ** degree

    aa, bb, ab = kernel(a, a), kernel(b, b), kernel(a, b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * ab.mean())
