"""How well codebooks are used, and what their codes cost in bits."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["code_counts", "entropy_bits", "perplexity", "used_share"]


def code_counts(codes: Int64[Tensor, "n books"], size: int) -> Int64[Tensor, "books size"]:
    """How often each code of each codebook was chosen."""
    books = codes.shape[-1]
    flat = codes.reshape(-1, books) + torch.arange(books, device=codes.device) * size
    return torch.bincount(flat.reshape(-1), minlength=books * size).reshape(books, size)


def entropy_bits(counts: Int64[Tensor, "*b size"]) -> Float[Tensor, "*b"]:
    """Entropy of the codes' frequencies in bits: the mean length that an ideal coder with these tables reaches."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return -(share * share.clamp(min=1e-300).log2()).sum(-1).float()


def perplexity(counts: Int64[Tensor, "*b size"]) -> Float[Tensor, "*b"]:
    """2 ** entropy: the number of codes that, used equally often, would have that entropy; `size` at best."""
    return 2.0 ** entropy_bits(counts)


def used_share(counts: Int64[Tensor, "*b size"]) -> Float[Tensor, "*b"]:
    """Share of the codes that were chosen at all."""
    return (counts > 0).float().mean(-1)
