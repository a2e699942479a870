"""Encoder propagation inside diffusers' own pipelines, with tiny random networks."""

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

import encyclo
from encyclo.errors import InputError
from encyclo.sampling.encoder_propagation import EncoderPropagation, Propagation, accelerate_sampling

STEPS = 10
KEYS = (0, 1, 4)


def network(**more: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**shape, **more}).eval()


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).eval()


def stable(scheduler: Any, kind: type = StableDiffusionPipeline, **more: Any) -> Any:
    made = kind(
        vae=autoencoder(),
        unet=more.pop("unet", None) or network(),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )
    made.set_progress_bar_config(disable=True)
    return made


def text(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 5, 12, generator=torch.Generator().manual_seed(seed))


def latents(pipe: Any, **more: Any) -> Tensor:
    """Guided sampling of two pictures, always from the same noise."""
    made: Tensor = pipe(
        prompt_embeds=text(1),
        negative_prompt_embeds=text(2),
        guidance_scale=3.0,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **more,
    ).images
    return made


SCHEDULERS = [DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler]


@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda k: str(k.__name__))
def test_guided_sampling_in_parallel_equals_serial(kind: Any) -> None:
    pipe = stable(kind())
    plain = latents(pipe)
    with encyclo.accelerate_sampling(pipe, keys="all", alpha=0.0):
        torch.testing.assert_close(latents(pipe), plain, rtol=1e-4, atol=1e-4)
    with accelerate_sampling(pipe, keys=KEYS, mode="serial") as running:
        serial = latents(pipe)
    calls = len(pipe.scheduler.timesteps)  # PNDM and Heun call the network more often than there are steps
    assert (running.counts.encoder_calls, running.counts.decoder_calls) == (3, calls)
    assert running.counts.largest_batch == 4, "guidance doubles the batch of two"
    for chosen in ({}, {"max_batch": 8}):
        with accelerate_sampling(pipe, keys=KEYS, **chosen) as running:
            torch.testing.assert_close(latents(pipe), serial, rtol=1e-4, atol=1e-4)
        assert running.counts.encoder_calls == 3
        assert running.counts.decoded == calls
        assert running.counts.largest_batch == min(4 * max(3, calls - 4), chosen.get("max_batch", 999))
    assert not torch.allclose(serial, plain, atol=1e-4), "keys left out must make a difference"
    torch.testing.assert_close(latents(pipe), plain, rtol=0, atol=0)  # and it is undone


def test_guidance_is_that_of_each_branch_alone() -> None:
    """Classifier-free guidance batches [without | with]: the accelerated noise of each half is what it is alone."""
    unet, scheduler = network(), DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(2, 4, 8, 8)
    both, words = torch.cat([noise, noise]), torch.cat([text(2), text(1)])

    def predicted(latent: Tensor, told: Tensor) -> list[Tensor]:
        with torch.no_grad(), EncoderPropagation(unet, scheduler, Propagation(keys=(0, 4))):
            return [unet(latent, t, encoder_hidden_states=told).sample for t in scheduler.timesteps[:4]]

    together, without, with_text = predicted(both, words), predicted(noise, text(2)), predicted(noise, text(1))
    for whole, a, b in zip(together, without, with_text, strict=True):
        torch.testing.assert_close(whole, torch.cat([a, b]), rtol=1e-4, atol=1e-5)


def test_sdxl_with_its_added_conditions() -> None:
    unet = network(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=36)
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(),
        unet=unet,
        scheduler=DDIMScheduler(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pooled = {"pooled_prompt_embeds": text(3)[:, 0], "negative_pooled_prompt_embeds": text(4)[:, 0]}
    plain = latents(pipe, **pooled)
    with accelerate_sampling(pipe, keys=KEYS, mode="serial"):
        serial = latents(pipe, **pooled)
    with accelerate_sampling(pipe, keys=KEYS) as running:
        torch.testing.assert_close(latents(pipe, **pooled), serial, rtol=1e-4, atol=1e-4)
    assert running.counts.encoder_calls == 3
    torch.testing.assert_close(latents(pipe, **pooled), plain, rtol=0, atol=0)


@pytest.mark.parametrize("nets", [1, 2])
def test_controlnets_run_at_key_steps_only(nets: int) -> None:
    unet = network()
    controls = [ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4,)) for _ in range(nets)]
    for control in controls:
        for parameter in control.parameters():
            nn.init.normal_(parameter, std=0.1)  # its output layers start at zero
        control.eval()
    pipe = stable(
        DDIMScheduler(), StableDiffusionControlNetPipeline, unet=unet, controlnet=controls[0] if nets == 1 else controls
    )
    edges = torch.rand(1, 3, 8, 8)
    told = {"image": edges if nets == 1 else [edges] * nets, "height": 8, "width": 8}
    if nets > 1:
        told["controlnet_conditioning_scale"] = [1.0] * nets
    plain = latents(pipe, **told)
    with accelerate_sampling(pipe, keys="all", alpha=0.0):
        torch.testing.assert_close(latents(pipe, **told), plain, rtol=1e-4, atol=1e-4)
    with accelerate_sampling(pipe, keys=KEYS, mode="serial") as running:
        serial = latents(pipe, **told)
    assert (running.counts.control_calls, running.counts.encoder_calls) == (3, 3)
    with accelerate_sampling(pipe, keys=KEYS) as running:
        parallel = latents(pipe, **told)
    torch.testing.assert_close(parallel, serial, rtol=1e-4, atol=1e-4)
    assert (running.counts.control_calls, running.counts.decoder_calls) == (3, 3)
    told["image"] = torch.zeros_like(edges) if nets == 1 else [torch.zeros_like(edges)] * nets
    with accelerate_sampling(pipe, keys=KEYS):
        assert not torch.allclose(latents(pipe, **told), parallel, atol=1e-3), "the control must reach the picture"
    torch.testing.assert_close(latents(pipe, **{**told, "image": [edges] * nets if nets > 1 else edges}), plain)


def test_image_to_image_starts_part_of_the_way() -> None:
    pipe = stable(DDIMScheduler(), StableDiffusionImg2ImgPipeline)
    told = {"image": torch.rand(1, 3, 8, 8), "strength": 0.75}  # begins at the fourth of ten steps
    plain = latents(pipe, **told)
    with accelerate_sampling(pipe, keys=(0, 5), mode="serial") as running:
        serial = latents(pipe, **told)
    assert running.counts.encoder_calls == 2
    with accelerate_sampling(pipe, keys=(0, 5)) as running:
        torch.testing.assert_close(latents(pipe, **told), serial, rtol=1e-4, atol=1e-4)
    assert running.counts.encoder_calls == 2
    torch.testing.assert_close(latents(pipe, **told), plain, rtol=0, atol=0)


def test_guidance_switched_off_half_way_encodes_anew() -> None:
    pipe = stable(DDIMScheduler())

    def stop(pipe: Any, step: int, time: Any, told: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 5:
            pipe._guidance_scale = 0.0
            told["prompt_embeds"] = told["prompt_embeds"].chunk(2)[1]
        return told

    told = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with accelerate_sampling(pipe, keys=KEYS, mode="serial") as running:
        serial = latents(pipe, **told)
    assert running.counts.encoder_calls == 4
    with accelerate_sampling(pipe, keys=KEYS):
        torch.testing.assert_close(latents(pipe, **told), serial, rtol=1e-4, atol=1e-4)


def test_two_calls_in_one_step_are_refused_and_a_second_run_is_not() -> None:
    unet, scheduler, noise = network(), DDIMScheduler(), torch.randn(1, 4, 8, 8)
    scheduler.set_timesteps(4)
    with torch.no_grad(), EncoderPropagation(unet, scheduler, Propagation(keys=(0, 2))) as running:
        for t in scheduler.timesteps[:3]:
            unet(noise, t, text(1, 1))
        for t in scheduler.timesteps:
            unet(noise, t, text(1, 1))
        assert running.counts.encoder_calls == 4
        scheduler.set_timesteps(4)
        unet(noise, scheduler.timesteps[0], text(1, 1))
        with pytest.raises(InputError, match="more than once"):
            unet(noise, scheduler.timesteps[0], text(2, 1))
        with pytest.raises(InputError, match="none of the scheduler's"):
            unet(noise, 3, text(2, 1))


def test_what_was_found_is_restored() -> None:
    """Hooks of accelerate (offloading) put a forward of their own on the network: it is used, and comes back."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Count(ModelHook):
        before = 0
        after = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.before += 1
            return args, kwargs

        def post_forward(self, module: nn.Module, output: Any) -> Any:
            self.after += 1
            return output

    pipe, hook = stable(DDIMScheduler()), Count()
    plain = latents(pipe)
    add_hook_to_module(pipe.unet, hook)
    hooked = pipe.unet.forward
    with accelerate_sampling(pipe, keys="all", alpha=0.0):
        torch.testing.assert_close(latents(pipe), plain, rtol=1e-4, atol=1e-4)
        with pytest.raises(InputError, match="already installed"):
            accelerate_sampling(pipe)
    assert (hook.before, hook.after) == (STEPS, STEPS)
    assert pipe.unet.forward == hooked
    torch.testing.assert_close(latents(pipe), plain)


def test_bad_settings_are_refused_before_sampling() -> None:
    pipe = stable(DDIMScheduler())
    for told, message in (
        ({"keys": (1, 2)}, "lacks step 0"),
        ({"keys": "fast"}, "none of"),
        ({"keys": (0, 0)}, "twice"),
    ):
        with pytest.raises(InputError, match=message):
            accelerate_sampling(pipe, **told)
    assert "forward" not in vars(pipe.unet)
    pipe.unet = nn.Linear(2, 2)
    with pytest.raises(InputError, match="has no 'conv_in'"):
        accelerate_sampling(pipe)
