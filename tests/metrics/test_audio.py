"""Audio metrics against closed forms and torchmetrics; voiced frames; codebook figures."""

import math
import sys
from collections.abc import Callable

import pytest
import torch

from encyclo.errors import InputError
from encyclo.metrics.audio import MelDistance, pesq, si_sdr, stft_distance, stoi, voiced_frames
from encyclo.metrics.codebook import code_counts, entropy_bits, perplexity, used_share


def vowel(rate: int = 8000, seconds: float = 1.0) -> torch.Tensor:
    time = torch.arange(int(rate * seconds)) / rate
    return sum((0.2 / h) * torch.sin(2 * torch.pi * 120 * h * time) for h in range(1, 12))  # type: ignore[return-value]


def test_si_sdr_is_the_known_ratio_and_ignores_scale() -> None:
    torch.manual_seed(0)
    s = torch.randn(3, 8000)
    s -= s.mean(-1, keepdim=True)
    noise = torch.randn(3, 8000)
    noise -= noise.mean(-1, keepdim=True)
    noise -= (noise * s).sum(-1, keepdim=True) / s.square().sum(-1, keepdim=True) * s
    noise *= s.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True) / 10
    torch.testing.assert_close(si_sdr(s, s + noise), torch.full((3,), 20.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(si_sdr(s, 3 * (s + noise)), torch.full((3,), 20.0), atol=1e-3, rtol=0)


def test_si_sdr_equals_torchmetrics() -> None:
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    real, fake = torch.randn(2, 4000), torch.randn(2, 4000)
    theirs = scale_invariant_signal_distortion_ratio(fake, real, zero_mean=True)
    torch.testing.assert_close(si_sdr(real, fake), theirs, atol=1e-3, rtol=1e-3)


def test_distances_are_zero_at_equality_and_know_a_gain() -> None:
    wave = 0.1 * torch.randn(8000)
    distance = MelDistance(8000)
    assert float(distance(wave, wave)) == float(stft_distance(wave, wave)) == 0
    assert float(distance(wave, wave / 2)) == pytest.approx(math.log(2), rel=1e-2)
    assert float(stft_distance(wave, wave / 2)) == pytest.approx(math.log(2), rel=1e-2)


def test_voiced_frames_find_the_vowel_between_silence_and_noise() -> None:
    torch.manual_seed(0)
    silence, noise = torch.zeros(8000), 0.1 * torch.randn(8000)
    voiced = voiced_frames(torch.cat([silence, vowel(), noise]), 8000)
    assert voiced.numel() == 300
    assert not voiced[:90].any()
    assert voiced[105:195].all()
    assert float(voiced[210:].float().mean()) < 0.2
    assert not voiced_frames(silence, 8000).any()


def test_chosen_frames_alone_count() -> None:
    wave = torch.cat([vowel(), vowel()])
    changed = torch.cat([vowel(), 0.5 * vowel()])
    frames = torch.zeros(200, dtype=torch.bool)
    frames[20:80] = True
    distance = MelDistance(8000)
    assert float(distance(wave, changed, frames)) == pytest.approx(0, abs=1e-6)
    assert float(distance(wave, changed, ~frames)) > 0.1
    assert math.isnan(float(distance(wave, changed, torch.zeros(200, dtype=torch.bool))))


def speech_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    """Two seconds of a vowel of changing loudness, and the same with noise, at 8 kHz."""
    torch.manual_seed(0)
    wave = vowel(8000, 2.0) * (torch.rand(40).repeat_interleave(400) + 0.1)
    return wave, wave + 0.2 * torch.randn_like(wave)


def test_stoi_ranks_a_clean_copy_above_a_noisy_one() -> None:
    wave, noisy = speech_and_noise()
    assert stoi(wave, wave, 8000) == pytest.approx(1, abs=1e-3)
    assert stoi(wave, noisy, 8000) < 0.99
    assert math.isnan(stoi(wave[:500], noisy[:500], 8000))  # too short to be judged


def test_pesq_ranks_a_clean_copy_above_a_noisy_one() -> None:
    pytest.importorskip("pesq", reason="pesq has no wheels, so no extra brings it")
    wave, noisy = speech_and_noise()
    assert pesq(wave, wave, 8000) > 4 > pesq(wave, noisy, 8000)
    assert math.isnan(pesq(torch.zeros(8000), torch.zeros(8000), 8000))


@pytest.mark.parametrize(
    ("package", "measure", "remedy"), [("pesq", pesq, "pip install pesq"), ("pystoi", stoi, "encyclo")]
)
def test_a_missing_package_is_named_with_its_remedy(
    package: str, measure: Callable[..., float], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what `import` takes for "not installed"
    wave, noisy = speech_and_noise()
    with pytest.raises(InputError, match=remedy) as caught:
        measure(wave, noisy, 8000)
    assert package in str(caught.value)
    assert "\n" not in str(caught.value)


def test_codebook_figures() -> None:
    codes = torch.stack([torch.arange(64) % 8, torch.zeros(64, dtype=torch.long)], -1)
    counts = code_counts(codes, 16)
    assert counts.sum(-1).tolist() == [64, 64]
    assert counts[1, 0] == 64
    torch.testing.assert_close(entropy_bits(counts), torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(perplexity(counts), torch.tensor([8.0, 1.0]))
    torch.testing.assert_close(used_share(counts), torch.tensor([0.5, 1 / 16]))
