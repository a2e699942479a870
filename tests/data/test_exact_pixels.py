"""Pictures exactly as their files hold them, or a reason why not."""

import numpy as np
import pytest
import torch
from PIL import Image

from encyclo.data.exact_pixels import exact_pixels, gather_pixels, plain_grey
from encyclo.errors import InputError

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
WHITE = Image.new("L", (3, 3), 255)
COLOUR = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_grey_and_colour(tmp_path, suffix):
    assert np.array_equal(exact_pixels(save(tmp_path / f"g.{suffix}", GREY))[0].numpy(), GREY)
    got = exact_pixels(save(tmp_path / f"c.{suffix}", COLOUR))
    assert np.array_equal(got.permute(1, 2, 0).numpy(), COLOUR)


def test_palettes_and_black_and_white(tmp_path):
    picture = Image.fromarray(COLOUR).quantize(8)
    picture.save(tmp_path / "p.png")
    assert np.array_equal(exact_pixels(tmp_path / "p.png").permute(1, 2, 0).numpy(), np.asarray(picture.convert("RGB")))
    Image.fromarray(GREY > 7).save(tmp_path / "b.png")
    assert np.array_equal(exact_pixels(tmp_path / "b.png")[0].numpy(), 255 * (GREY > 7))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.png", lambda p: Image.new("RGBA", (3, 3), (1, 1, 1, 9)).save(p), "transparency"),
        ("d.png", lambda p: Image.fromarray(GREY.astype(np.uint16)).save(p), "I;16"),
        ("m.tif", lambda p: Image.new("CMYK", (3, 3)).save(p), "CMYK"),
        ("f.gif", lambda p: Image.new("L", (3, 3)).save(p, save_all=True, append_images=[WHITE]), "2 frames"),
        ("t.png", lambda p: p.write_bytes(b"nothing"), "no picture"),
        ("e.png", lambda p: p.write_bytes(b""), "no picture"),
    ],
)  # fmt: skip
def test_what_could_not_come_back(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(InputError, match=message):
        exact_pixels(tmp_path / name)


def test_gathering(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "b.png", GREY)
    save(folder / "a.png", GREY[::-1].copy())
    (folder / "notes.txt").write_text("left out")
    np.save(tmp_path / "x.npy", GREY[None])
    pixels, names = gather_pixels([folder, tmp_path / "x.npy", torch.from_numpy(GREY)[None]])
    assert pixels.shape == (4, 1, 4, 5)
    assert names == ["a.png", "b.png", "", ""]
    assert np.array_equal(pixels[1, 0].numpy(), GREY)
    mixed, _ = gather_pixels([folder / "b.png", save(tmp_path / "c.png", COLOUR)])
    assert mixed.shape == (2, 3, 4, 5)
    assert torch.equal(plain_grey(mixed[:1]), torch.from_numpy(GREY)[None, None])
    np.save(tmp_path / "empty.npy", np.zeros((0, 4, 5), dtype=np.uint8))
    assert len(gather_pixels([tmp_path / "empty.npy"])[0]) == 0


def test_refusals(tmp_path):
    np.save(tmp_path / "f.npy", np.zeros((1, 4, 5)))
    np.save(tmp_path / "o.npy", np.zeros((1, 2, 4, 5), dtype=np.uint8))
    (tmp_path / "bad.npy").write_bytes(b"x")
    (tmp_path / "none").mkdir()
    small = torch.zeros(1, 2, 2, dtype=torch.uint8)
    for given, message in (
        ([tmp_path / "f.npy"], "float64"),
        ([tmp_path / "o.npy"], "shape"),
        ([tmp_path / "bad.npy"], "no array"),
        ([tmp_path / "none"], "no pictures"),
        ([], "no pictures are given"),
        ([small, torch.zeros(1, 3, 3, dtype=torch.uint8)], "differ in size"),
        ([small.float()], "float32"),
    ):
        with pytest.raises(InputError, match=message):
            gather_pixels(given)
