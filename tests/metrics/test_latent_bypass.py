import pytest
import torch

from encyclo.metrics.latent_bypass import bypass_metrics, bypass_page, bypass_sheet


def test_a_perfect_regressor_has_no_alignment_error() -> None:
    target = torch.randn(50, 4, 8)
    codes = torch.randint(0, 3, (50, 4))
    wrong = (codes + 1) % 3
    found = {
        "codes": codes,
        "blank": torch.zeros(50, 4, dtype=torch.bool),
        "regressed": codes,
        "bypassed": torch.where(torch.arange(50)[:, None] < 25, codes, wrong),
        "predicted": target,
        "target": target,
    }
    measured = bypass_metrics(found)
    assert measured["alignment_error"] == 0
    assert measured["token_accuracy"] == 100
    assert measured["bypass_accuracy"] == measured["bypass_share"] == 50
    mean = bypass_metrics({**found, "predicted": target.mean((0, 1)).expand_as(target)})
    assert mean["alignment_error"] == pytest.approx(1, rel=1e-5)


def test_blank_patches_are_counted_apart() -> None:
    codes = torch.tensor([[0, 0, 1], [0, 2, 2]])
    blank = codes == 0
    found = {
        "codes": codes,
        "blank": blank,
        "regressed": torch.zeros_like(codes),
        "bypassed": codes,
        "predicted": torch.randn(2, 3, 4),
        "target": torch.randn(2, 3, 4),
    }
    measured = bypass_metrics(found)
    assert measured["token_accuracy"] == measured["majority"] == pytest.approx(50)
    assert measured["token_accuracy_ink"] == 0
    assert measured["bypass_accuracy_ink"] == 100
    assert measured["majority_ink"] == pytest.approx(200 / 3)
    nothing = bypass_metrics({**found, "blank": torch.ones_like(blank)})
    assert "token_accuracy_ink" not in nothing, "there is nothing to count"


def test_the_page_holds_numbers_and_pictures() -> None:
    rows = torch.randint(0, 256, (3, 4, 1, 8, 8), dtype=torch.uint8)
    sheet = bypass_sheet(rows, "bypass", "caption <b>", side=16)
    text = bypass_page({"token_accuracy": 12.34567}, 3, [sheet])
    assert "12.35" in text
    assert "latent space?" in text
    assert "caption &lt;b&gt;" in text
    assert text.count("<figure>") == 1
