"""Mel front end: parity with transformers' filter bank and spectrogram, lengths, options."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers.audio_utils import mel_filter_bank, spectrogram

from encyclo.nn.part import materialise
from encyclo.tokens.mel import LogMel, hertz_to_mel, magnitude_spectrogram, mel_filters, mel_to_hertz


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("area", [True, False])
def test_filters_equal_transformers(scale: str, area: bool) -> None:
    ours = mel_filters(16000, 512, 40, low=20.0, high=7600.0, scale=scale, area=area)
    theirs = mel_filter_bank(257, 40, 20.0, 7600.0, 16000, norm="slaney" if area else None, mel_scale=scale)
    np.testing.assert_allclose(ours.numpy(), theirs.T, atol=1e-6)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_scales_are_inverted(scale: str) -> None:
    hertz = torch.linspace(0, 8000, 50, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hertz(hertz_to_mel(hertz, scale), scale), hertz)


def test_log_mel_equals_transformers() -> None:
    wave = (0.1 * torch.randn(4000)).numpy()
    front = LogMel.Config(rate=8000, n_fft=512, hop=128, bands=40, padding="centre").build()
    theirs = spectrogram(
        wave,
        np.hanning(513)[:-1],
        512,
        128,
        power=1.0,
        mel_filters=mel_filter_bank(257, 40, 0, 4000, 8000, norm="slaney", mel_scale="slaney"),
        mel_floor=1e-5,
        log_mel="log",
    )
    np.testing.assert_allclose(front(torch.from_numpy(wave)).numpy(), theirs, atol=2e-4)


@pytest.mark.parametrize(("n_fft", "hop"), [(1024, 240), (512, 120), (256, 60), (800, 200)])
def test_same_padding_gives_one_frame_per_hop(n_fft: int, hop: int) -> None:
    wave = torch.randn(2, 3, 50 * hop)
    front = LogMel.Config(n_fft=n_fft, hop=hop, bands=8).build()
    assert front(wave).shape == (2, 3, 8, 50)
    assert front(wave[..., : hop + 3]).isfinite().all()  # shorter than the reflection: zeros


def test_padding_reflects_half_the_overlap() -> None:
    wave = torch.randn(1, 600)
    window = torch.hann_window(256)
    whole = magnitude_spectrogram(wave, 256, 64, window)
    inner = magnitude_spectrogram(wave, 256, 64, window, padding="none")
    padded = torch.nn.functional.pad(wave, (96, 96), mode="reflect")
    torch.testing.assert_close(whole, magnitude_spectrogram(padded, 256, 64, window, padding="none"))
    assert inner.shape[-1] == (600 - 256) // 64 + 1


def test_options() -> None:
    wave = 0.1 * torch.randn(2000)
    magnitude = LogMel.Config(bands=10, log="none").build()(wave)
    torch.testing.assert_close(LogMel.Config(bands=10).build()(wave), magnitude.clamp(min=1e-5).log())
    torch.testing.assert_close(LogMel.Config(bands=10, log="log10").build()(wave), magnitude.clamp(min=1e-5).log10())
    assert float(LogMel.Config(bands=10).build()(torch.zeros(2000)).max()) <= np.log(1e-3)
    with pytest.raises(ValidationError, match="longer than n_fft"):
        LogMel.Config(n_fft=256, window=512)


def test_buffers_return_after_meta_and_are_not_saved() -> None:
    with torch.device("meta"):
        front = LogMel.Config(bands=10).build()
    made, plain = materialise(front), LogMel.Config(bands=10).build()
    wave = torch.randn(2000)
    assert isinstance(made, LogMel)
    assert torch.equal(made(wave), plain(wave))
    assert not made.state_dict()


def test_stays_fp32_under_autocast() -> None:
    front = LogMel.Config(bands=10).build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert front(torch.randn(2000).bfloat16()).dtype == torch.float32
