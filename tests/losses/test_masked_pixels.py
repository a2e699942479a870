import torch

from encyclo.losses.masked_pixels import masked_pixel_loss, patch_targets


def test_only_hidden_patches_count() -> None:
    target = torch.zeros(1, 3, 2)
    predicted = torch.tensor([[[1.0, 1.0], [5.0, 5.0], [3.0, 1.0]]])
    hidden = torch.tensor([[True, False, True]])
    torch.testing.assert_close(masked_pixel_loss(predicted, target, hidden), torch.tensor((1.0 + 5.0) / 2))


def test_normalised_targets_have_mean_zero_and_variance_one() -> None:
    made = patch_targets(torch.rand(2, 3, 8, 8), 4, normalise=True)
    torch.testing.assert_close(made.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.var(-1), torch.ones(2, 4), atol=1e-3, rtol=0)
    blank = patch_targets(torch.full((1, 1, 4, 4), 0.3), 2, normalise=True)
    torch.testing.assert_close(blank, torch.zeros(1, 4, 4), atol=1e-3, rtol=0)
