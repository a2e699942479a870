"""NeRV's code of a frame number against its equation."""

import math

import torch

from encyclo.nn.frame_code import FrameCode


def test_the_code_is_sines_then_cosines() -> None:
    code = FrameCode.Config(base=1.25, levels=3).build()
    t = 0.3
    angles = [1.25**i * math.pi * t for i in range(3)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert torch.allclose(code(torch.tensor([t], dtype=torch.float64))[0], torch.tensor(expected), atol=1e-6)


def test_time_0_and_the_length() -> None:
    code = FrameCode.Config().build()
    assert code.dim == 160
    assert torch.equal(code(torch.zeros(2)), torch.cat([torch.zeros(2, 80), torch.ones(2, 80)], dim=1))


def test_high_frequencies_keep_their_phase() -> None:
    code = FrameCode.Config(levels=80).build()
    times = torch.arange(132, dtype=torch.float64) / 132
    out = code(times)
    exact = torch.tensor([math.sin(math.fmod(1.25**79 * math.pi * float(t), 2 * math.pi)) for t in times])
    assert torch.allclose(out[:, 79], exact.float(), atol=1e-5)
    assert torch.allclose(out[:, :80] ** 2 + out[:, 80:] ** 2, torch.ones(132, 80), atol=1e-5)
