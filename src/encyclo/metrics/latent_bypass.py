"""Whether latents that were predicted for hidden patches live in the space of the encoder that is to be matched.

Two ways lead to the code of a hidden patch: from the predicted latent, and from the encoder's own latent of the patch
(latent bypass; CAE, arXiv 2202.03026, section 4.4), which the decoder was never trained on.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import UInt8
from torch import Tensor

from encyclo import page
from encyclo.picture import Picture, grid

__all__ = ["HEADLINES", "bypass_metrics", "bypass_page", "bypass_sheet"]

HEADLINES = ("token_accuracy", "bypass_accuracy", "majority", "alignment_error")
"""The numbers that are said in passing."""

_MEANING = {
    "token_accuracy": "right codes for hidden patches through the regressor, %",
    "bypass_accuracy": "right codes from the encoder's own latents of the hidden patches (latent bypass), %",
    "majority": "right codes when always naming the most frequent one, %",
    "token_accuracy_ink": "through the regressor, patches that are not blank, %",
    "bypass_accuracy_ink": "latent bypass, patches that are not blank, %",
    "majority_ink": "most frequent code, patches that are not blank, %",
    "bypass_share": "latent bypass as a share of the regressor's path, %",
    "alignment_error": "squared error of the predicted latents over the latents' variance",
    "latent_std": "standard deviation of the latents (0 would be collapse)",
}
_ROWS = ("picture", "visible to the encoder", "hidden patches through the regressor", "latent bypass")


def bypass_metrics(found: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers out of codes and latents of n images with m hidden patches each.

    Args:
        found: codes [n, m]: the true ones. blank [n, m]: True where all pixels of a patch are alike. regressed,
            bypassed [n, m]: codes named by either way. predicted, target [n, m, d]: the regressor's latents and the
            encoder's.

    Returns:
        Accuracies in percent, over all hidden patches and over those that are not blank (`_ink`), with the rate of the
        most frequent code. `alignment_error`: mean squared error over the latents' variance (1: no better than their
        mean, whatever their scale). `latent_std`: their deviation (0: collapsed).
    """
    codes, ink = found["codes"], ~found["blank"]
    target = found["target"].float().flatten(0, 1)
    variance = float(target.var(0, correction=0).mean())
    error = float((found["predicted"].float() - found["target"].float()).square().mean())
    regressed, bypassed = (found[name] == codes for name in ("regressed", "bypassed"))
    metrics = {
        "token_accuracy": regressed,
        "bypass_accuracy": bypassed,
        "majority": codes == codes.flatten().mode().values,
    }
    if bool(ink.any()):
        metrics["token_accuracy_ink"] = regressed[ink]
        metrics["bypass_accuracy_ink"] = bypassed[ink]
        metrics["majority_ink"] = codes[ink] == codes[ink].mode().values
    numbers = {name: 100 * float(hits.double().mean()) for name, hits in metrics.items()}
    numbers["bypass_share"] = 100 * numbers["bypass_accuracy"] / max(numbers["token_accuracy"], 1e-9)
    return {**numbers, "alignment_error": error / max(variance, 1e-12), "latent_std": variance**0.5}


def bypass_sheet(
    rows: UInt8[Tensor, "n 4 c h w"], name: str, caption: str = "", *, side: int = 64, docs: bool = False
) -> Picture:
    """Pictures side by side: whole, what the encoder sees, hidden patches by either way; each about `side` pixels."""
    scale = max(1, side // rows.shape[-1])
    return grid({label: rows[:, i] for i, label in enumerate(_ROWS)}, name, caption, scale=scale, docs=docs)


def bypass_page(measured: Mapping[str, float], count: int, pictures: Sequence[Picture]) -> str:
    """The numbers, what they mean, and pictures, as one HTML page; measured on `count` pictures."""
    rows: list[dict[str, object]] = [{"measured": _MEANING[name], "": value} for name, value in measured.items()]
    body = (
        f"<p>Measured on {count} pictures. The third row of the sheet goes from visible patches through the regressor"
        " to the decoder. The fourth gives the decoder the encoder's own latents of the hidden patches: it can only"
        f" look right if the regressor predicts in that very space.</p>{page.table(rows)}"
    )
    return page.page("Do predictions live in the encoder's latent space?", body + "".join(map(page.figure, pictures)))
