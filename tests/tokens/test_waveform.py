"""Segments, padding and pieces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encyclo.data.audio import Audio, encode_audio
from encyclo.tokens.waveform import RandomSegments, decoded, pad_to_multiple, pieces


def ramp(samples: int, channels: int = 1) -> bytes:
    wave = torch.linspace(-0.9, 0.9, samples).expand(channels, -1) * torch.tensor([[1.0], [-1.0]])[:channels]
    return encode_audio(Audio(wave, 8000), ".wav")


def test_segments_are_cut_out_of_the_recordings_by_the_given_generator() -> None:
    rows = {"audio": [ramp(1000), ramp(1000), ramp(50)]}
    cut = RandomSegments(8000, 100, generator=torch.Generator().manual_seed(1))
    one = cut(rows)
    assert one.shape == (3, 100)
    assert torch.equal(one, RandomSegments(8000, 100, generator=torch.Generator().manual_seed(1))(rows))
    assert not torch.equal(one, cut(rows))
    torch.testing.assert_close(one[0].diff(), torch.full((99,), 1.8 / 999), atol=1e-4, rtol=0)
    assert (one[2, 50:] == 0).all()
    assert one[2, 0] == pytest.approx(-0.9, abs=1e-3)


def test_of_several_channels_one_is_drawn() -> None:
    cut = RandomSegments(8000, 100, generator=torch.Generator().manual_seed(0))
    slopes = {int(cut({"audio": [ramp(1000, 2)]})[0].diff().mean().sign()) for _ in range(20)}
    assert slopes == {-1, 1}


def test_decoded_waves_are_kept_and_cut_alike() -> None:
    class Rows(list):  # type: ignore[type-arg]
        pass

    rows = Rows([{"audio": ramp(1000)}, {"audio": ramp(400)}])
    waves = decoded(rows, 4000, fingerprint="a")
    assert [w.shape for w in waves] == [(1, 500), (1, 200)]
    assert decoded(rows, 4000, fingerprint="a") is waves
    assert decoded(rows, 8000, fingerprint="a") is not waves
    cut = RandomSegments(4000, 100, generator=torch.Generator())
    assert cut(waves).shape == (2, 100)
    stream = iter(rows)
    assert decoded(stream, 4000, fingerprint="a") is stream


def test_padding_adds_zeros_behind_and_at_least_one_frame() -> None:
    assert pad_to_multiple(torch.ones(2, 7), 5).tolist() == [[1.0] * 7 + [0.0] * 3] * 2
    assert pad_to_multiple(torch.ones(1, 10), 5).shape == (1, 10)
    assert pad_to_multiple(torch.ones(1, 0), 5).shape == (1, 5)


@given(st.integers(1, 100), st.integers(1, 30), st.integers(0, 40))
def test_pieces_tile_the_whole_and_read_their_context(length: int, size: int, context: int) -> None:
    cut = list(pieces(length, size, context))
    assert [i for p in cut for i in range(p.begin, p.end)] == list(range(length))
    for p in cut:
        assert p.low == max(0, p.begin - context)
        assert p.high == min(length, p.end + context)
