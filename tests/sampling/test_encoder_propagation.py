from typing import Literal

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from encyclo.errors import InputError
from encyclo.nn.split_unet import SplitUNet
from encyclo.sampling import encoder_propagation
from encyclo.sampling.diffusion import NoiseSchedule, sample
from encyclo.sampling.encoder_propagation import (
    PAPER_50,
    EncoderPropagation,
    Propagation,
    accelerate_sampling,
    key_steps,
)


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


def test_published_key_sets() -> None:
    assert key_steps("paper", 50) == PAPER_50
    assert key_steps("paper", 20) == (0, 1, 2, 3, 5, 10, 15)
    assert len(key_steps("if-stage-1", 100)) == 40
    assert len(key_steps("if-stage-2", 50)) == 40
    assert key_steps("if-stage-3", 75) == (0, 2, 5, 9, 14, 20, 27, 35, 44, 54, 65)
    assert key_steps("uniform:4", 10) == (0, 4, 8)
    assert key_steps("0,3", 10) == (0, 3)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ((1, 2), "lacks step 0"),
        ((0, 50), "outside"),
        ((0, 3, 3), "twice"),
        ("uniform:0", "at least 1"),
        ("fastest", "none of"),
    ],
)
def test_bad_key_sets(keys: str | tuple[int, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        key_steps(keys, 50)


def run(unet: UNet2DModel, scheduler: object, config: Propagation, steps: int = 12) -> torch.Tensor:
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with EncoderPropagation(unet, scheduler, config):
        return sample(unet, scheduler, noise, steps=steps)


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler()])
def test_all_keys_without_injection_is_plain_sampling(unet: UNet2DModel, scheduler: object) -> None:
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = sample(unet, scheduler, noise, steps=12)
    torch.testing.assert_close(run(unet, scheduler, Propagation(keys="all", alpha=0, mode="serial")), plain)
    torch.testing.assert_close(run(unet, scheduler, Propagation(keys="all", alpha=0, mode="parallel")), plain)
    assert not torch.allclose(run(unet, scheduler, Propagation(keys=(0, 4), alpha=0)), plain)


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler()])
def test_parallel_and_chunked_equal_serial(unet: UNet2DModel, scheduler: object) -> None:
    serial = run(unet, scheduler, Propagation(keys=(0, 1, 5), mode="serial"))
    torch.testing.assert_close(run(unet, scheduler, Propagation(keys=(0, 1, 5))), serial, rtol=1e-4, atol=1e-4)
    chunked = run(unet, scheduler, Propagation(keys=(0, 1, 5), max_batch=6))
    torch.testing.assert_close(chunked, serial, rtol=1e-4, atol=1e-4)


def test_counts_are_exact(unet: UNet2DModel) -> None:
    scheduler, noise = DDIMScheduler(), torch.randn(2, 1, 8, 8)
    with EncoderPropagation(unet, scheduler, Propagation(keys="paper")) as running:
        sample(unet, scheduler, noise, steps=50)
    assert running.counts.encoder_calls == 9
    assert running.counts.decoded == 50
    assert running.counts.decoder_calls == 9
    assert running.counts.largest_batch == 15 * 2


def test_injection_adds_the_first_latent_at_late_steps_only(unet: UNet2DModel) -> None:
    scheduler = DDIMScheduler()
    seen: list[tuple[int, torch.Tensor]] = []
    original = DDIMScheduler.step

    def spy(self: DDIMScheduler, output: torch.Tensor, time: object, latent: torch.Tensor, **more: object) -> object:
        seen.append((int(time), latent))  # type: ignore[call-overload]
        return original(self, output, time, latent, **more)

    scheduler.step = spy.__get__(scheduler)
    noise = torch.randn(1, 1, 8, 8)
    with EncoderPropagation(unet, scheduler, Propagation(keys="all", mode="serial", alpha=0.5, tau=0.5)):
        scheduler.set_timesteps(4)
        latent = noise
        for time in scheduler.timesteps:
            before = latent
            latent = scheduler.step(torch.zeros_like(latent), time, latent, return_dict=False)[0]
            expected = before + 0.5 * noise if int(time) < 500 else before
            torch.testing.assert_close(seen[-1][1], expected)


def test_it_works_inside_a_pipeline_and_is_undone(unet: UNet2DModel) -> None:
    pipe = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        made = pipe(num_inference_steps=10, generator=torch.Generator().manual_seed(0), output_type="np").images
        return torch.from_numpy(made)

    plain = draw()
    with accelerate_sampling(pipe, keys="uniform:2", alpha=0.0) as running:
        first, second = draw(), draw()
    assert running.counts.encoder_calls == 10
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, plain)
    torch.testing.assert_close(draw(), plain)
    with pytest.raises(InputError, match="no UNet"):
        accelerate_sampling(object())


def test_reusing_the_decoder_runs_the_encoder_at_every_step(unet: UNet2DModel) -> None:
    scheduler = DDIMScheduler()
    with EncoderPropagation(unet, scheduler, Propagation(keys=(0, 5), reuse="decoder")) as running:
        sample(unet, scheduler, torch.randn(1, 1, 8, 8), steps=10)
    assert (running.counts.encoder_calls, running.counts.decoded) == (10, 2)


def test_on_a_cpu_the_parallel_batch_stays_small(unet: UNet2DModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature maps beyond a size are slower than two of half the size; the numbers are those of serial decoding."""
    scheduler = DDIMScheduler()
    keys = Propagation(keys=(0, 10))
    serial = run(unet, scheduler, keys.replace(mode="serial"))
    one = SplitUNet(unet).encode(torch.randn(3, 1, 8, 8), 500).largest
    assert one > 0
    monkeypatch.setattr(encoder_propagation, "_CPU_BYTES", 2 * one)
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with EncoderPropagation(unet, scheduler, keys) as running:
        made = sample(unet, scheduler, noise, steps=12)
    assert running.counts.largest_batch == 2 * 3
    assert running.counts.decoded == 12
    torch.testing.assert_close(made, serial, rtol=1e-4, atol=1e-4)
    with EncoderPropagation(unet, scheduler, keys.replace(max_batch=9)) as running:
        sample(unet, scheduler, noise, steps=12)
    assert running.counts.largest_batch == 9, "a limit that was asked for counts"


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_samplers_start_where_there_is_only_noise(name: Literal["ddim", "dpm++"]) -> None:
    scheduler = NoiseSchedule(train_steps=1000).sampler(name)
    scheduler.set_timesteps(50)
    assert int(scheduler.timesteps[0]) == 999
