import torch

from encyclo.data.augment import Augment, normalise


def test_normalising_by_channel() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    made = normalise(images, (0.5, 0.0, 0.1), (0.5, 1.0, 0.1))
    torch.testing.assert_close(made.flatten(), torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(normalise(images, (0.5,), (0.5,)).flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_nothing_asked_for_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(Augment()(images), images)


def test_a_flip_alone_is_a_flip() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(Augment(flip=1.0)(images), images.flip(-1))
    mixed = Augment(flip=0.5)(images.expand(4, 3, 8, 8), torch.Generator().manual_seed(0))
    assert all(torch.equal(m, i) or torch.equal(m, i.flip(-1)) for m, i in zip(mixed, images, strict=True))


def test_crops_keep_size_and_range_and_follow_the_generator() -> None:
    images = torch.randint(100, 120, (16, 1, 12, 12), dtype=torch.uint8)
    crop = Augment(scale=(0.1, 0.5), ratio=(3 / 4, 4 / 3), flip=0.5)
    first, again = (crop(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == images.shape
    assert int(first.min()) >= 100
    assert int(first.max()) < 120
    assert torch.equal(first, again)
    assert not torch.equal(first, images)


def test_a_crop_of_a_ramp_is_a_ramp_of_its_share() -> None:
    """A quarter of the area, square: half of each side, so the values span half the ramp."""
    ramp = (torch.arange(64) * 4).to(torch.uint8).expand(8, 1, 64, 64)
    made = Augment(scale=(0.25, 0.25))(ramp, torch.Generator().manual_seed(0)).float()
    span = made[..., -1] - made[..., 0]
    torch.testing.assert_close(span, torch.full_like(span, 4 * 63 / 2), atol=4, rtol=0)
