"""Contrastive objectives: a query must score its own document above the others."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from encyclo.nn.part import Part, PartConfig

__all__ = ["InfoNCE", "info_nce", "same_text"]


def info_nce(
    scores: Float[Tensor, "n m"],
    *,
    temperature: float = 1.0,
    ignore: Bool[Tensor, "n m"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE (van den Oord et al. 2018, eq. 4): mean over i of -log e^{s_ii / tau} / sum_j e^{s_ij / tau}.

    Args:
        scores: similarity of query i and document j; the first n of the m documents are the queries' own, in order,
            the rest are hard negatives that every query sees.
        temperature: tau.
        ignore: pairs to leave out of the sum (another query's document that is right for this one too). The own
            document is never left out.
    """
    n = scores.shape[0]
    scaled = scores.float() / temperature
    if ignore is not None:
        others = ignore.clone()
        others[:, :n].fill_diagonal_(False)
        scaled = scaled.masked_fill(others, -torch.inf)
    return F.cross_entropy(scaled, torch.arange(n, device=scores.device))


def same_text(own: list[str], documents: list[str], *, device: torch.device | str = "cpu") -> Bool[Tensor, "n m"]:
    """Which documents are word for word a query's own one: false negatives of its batch, for `ignore`."""
    number: dict[str, int] = {}
    rows = torch.tensor([number.setdefault(text, len(number)) for text in own], device=device)
    columns = torch.tensor([number.setdefault(text, len(number)) for text in documents], device=device)
    return rows.unsqueeze(1) == columns


class InfoNCE(Part):
    """In-batch and hard negatives by dot product: s_ij = <q_i, d_j>."""

    class Config(PartConfig):
        """The one number of the objective."""

        temperature: float = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        query: Float[Tensor, "n v"],
        document: Float[Tensor, "n v"],
        negative: Float[Tensor, "r v"] | None = None,
        ignore: Bool[Tensor, "n m"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of n queries, their documents, and r further documents that are wrong for all."""
        every = document if negative is None else torch.cat((document, negative))
        return info_nce(query.float() @ every.float().T, temperature=self.config.temperature, ignore=ignore)
