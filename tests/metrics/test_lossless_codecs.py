"""Lengths of established lossless codecs."""

import io
import lzma

import pytest
import torch
from PIL import Image

from encyclo.metrics.lossless_codecs import codec_arms, codec_results, codecs

IMAGES = (torch.arange(6 * 9 * 7).view(6, 1, 9, 7) % 50).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_codec_gives_the_images_back_in_both_packings(channels):
    images = IMAGES.expand(-1, channels, -1, -1).contiguous()
    found = codec_results(images)  # verifies by decoding
    assert {"png", "webp", "xz"} <= set(found)
    assert set(found) == {*codecs(), "xz", "bz2", "zlib"}
    for result in found.values():
        assert result.each_bits % 8 == result.sheet_bits % 8 == 0
        assert 0 < result.sheet_bits < result.each_bits


def test_sizes_are_those_of_the_files():
    found = codec_results(IMAGES, only=("png", "xz"))
    total = 0
    for image in IMAGES:
        out = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(out, "PNG", optimize=True)
        total += 8 * len(out.getvalue())
    assert found["png"].each_bits == total
    raw = IMAGES.numpy().tobytes()
    assert found["xz"].sheet_bits == 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def test_the_best_codec_is_the_better_packing_of_the_best():
    arms = codec_arms(IMAGES, only=("png", "xz"), prefix="x ")
    assert set(arms) == {"x png", "x xz", "x best codec"}
    best = min(
        min(a["file_bits_per_dimension"], a["each_file_bits_per_dimension"]) for n, a in arms.items() if "best" not in n
    )
    assert arms["x best codec"]["bits_per_dimension"] == best
