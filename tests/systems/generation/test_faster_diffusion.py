from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from encyclo import data, verbs
from encyclo.errors import InputError
from encyclo.experiment import Preset
from encyclo.metrics.cost import flops
from encyclo.metrics.unet_halves import half_macs
from encyclo.nn.part import parameter_count
from encyclo.sampling.encoder_propagation import EncoderPropagation, Propagation, key_steps
from encyclo.system import open_system
from encyclo.systems.generation.faster_diffusion import FasterDiffusion, FasterPipeline, experiment
from encyclo.training import Trainer
from encyclo.training.denoising import fold, unfold
from systems.contract import SystemContract


class TestContract(SystemContract):
    slug = "faster-diffusion"
    published = {"faster": 859_520_000}
    verbs = {
        "generate": ["count=2", "label=3", "keys=uniform:2", "mode=serial", "sampler=dpm++"],
        "inspect": ["count=2", "budget=0.9"],
    }
    bad = [
        ("generate", ["keys=5"], "lacks step 0"),
        ("generate", ["keys=slow"], "none of"),
        ("generate", ["label=cat"], "classes"),
        ("generate", ["count=0"], "at least one"),
        ("generate", ["steps=0"], "at least one step"),
        ("generate", ["mode=quick"], "mode"),
        ("generate", ["alpha=-1"], "alpha"),
        ("generate", ["sampler=euler"], "none of ddim"),
        ("generate", ["prompt=a lamp"], "base="),
        ("generate", ["{missing}"], "no input"),
        ("inspect", ["budget=2"], "no share"),
        ("inspect", ["budget=0.2"], "decoders alone"),
    ]

    def counted(self, system: Any) -> int:
        return parameter_count(system.unet)


@pytest.fixture(scope="module")
def system() -> FasterDiffusion:
    torch.manual_seed(0)
    config = next(iter(experiment(Preset.SMOKE).systems.values()))
    return config.build().eval()


def test_folding_loses_nothing() -> None:
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(unfold(fold(images, 2), 2), images)


def test_the_calls_made_account_for_all_operations(system: FasterDiffusion) -> None:
    keys = Propagation(keys=(0, 2, 5), mode="serial", alpha=0.0)
    noise, labels = system.noise_and_labels(1, seed=0)
    counts = system.draw(noise, labels, keys)[1]
    # beside the two halves only the scheduler's arithmetic runs, which the counter does not see
    counted = system.call_macs().sampling(counts.encoder_calls, counts.decoded)
    assert system.counted_macs(keys) == pytest.approx(counted, rel=1e-3)


def test_proposed_keys_respect_the_budget(system: FasterDiffusion, tmp_path: Path) -> None:
    halves = system.call_macs()
    for budget in (0.85, 0.95):
        told = system.inspect(budget=budget, count=2, out=tmp_path / "page.html").report["proposed_keys"]
        keys = key_steps(told, 10)
        assert keys[0] == 0
        assert halves.sampling(len(keys), 10) <= budget * halves.sampling(10, 10)
    with pytest.raises(InputError, match="decoders alone"):
        system.inspect(budget=0.1, count=2)


def test_an_arm_that_keeps_all_keys_is_full_sampling(system: FasterDiffusion) -> None:
    noise, labels = system.noise_and_labels(3, seed=1)
    full = system.draw(noise, labels, None, steps=4)[0]
    for sampler in ("ddim", "dpm++"):
        plain = system.denoise(noise, labels, system.config.noise.sampler(sampler), 4)
        kept = system.draw(noise, labels, Propagation(keys="all", alpha=0.0), steps=4, sampler=sampler)[0]
        torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(system.draw(noise, labels, None, steps=4, together=2)[0], full, rtol=1e-4, atol=1e-4)


def test_published_macs_of_stable_diffusion() -> None:
    """401.6 G multiply-accumulates a call, of which 32.5 % in the half that is skipped: 26.7 % of 50 steps."""
    config = experiment(Preset.PAPER).systems["faster"]
    with torch.device("meta"):
        unet, latent = config.unet.build(size=64, channels=4, classes=0), torch.empty(1, 4, 64, 64)
        told = {"encoder_hidden_states": torch.empty(1, 77, 768)}
    halves = half_macs(unet, latent, told)
    assert halves.encoder == pytest.approx(130.8e9, rel=0.002)
    assert halves.decoder == pytest.approx(270.9e9, rel=0.002)
    scheduler, counted = DDIMScheduler(), dict[str, float]()
    for name, keys in (("full", "all"), ("faster", "paper")):
        scheduler.set_timesteps(50)
        with EncoderPropagation(unet, scheduler, Propagation(keys=keys)) as running, torch.no_grad():
            steps = scheduler.timesteps if keys == "paper" else scheduler.timesteps[:1]

            def run(steps: torch.Tensor = steps) -> None:
                for t in steps:
                    unet(latent, t, **told)

            counted[name] = flops(run) / 2 * (50 / len(steps))
    assert (running.counts.encoder_calls, running.counts.decoder_calls, running.counts.decoded) == (9, 9, 50)
    assert 1 - counted["faster"] / counted["full"] == pytest.approx(0.267, abs=0.001)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional pipeline as people have it in a folder."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("pipeline")
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


def test_a_pipeline_of_ones_own(pipeline: Path, tmp_path: Path) -> None:
    config = experiment(Preset.SMOKE).systems["faster"].override([f"base={pipeline}"])
    made = config.build()
    splits = data.load("digits", "image")
    made.fit(splits, Trainer(None, progress=False))
    measured = made.evaluate(splits)
    assert (measured["full_encoder_calls"], measured["faster_encoder_calls"]) == (10, 5)
    assert 0 < measured["macs_saved"] < 50
    opened = open_system(made.save_pretrained(tmp_path / "run"))
    assert isinstance(opened, FasterPipeline)
    drawn = verbs.call(opened, "generate", [], ["count=3", "keys=uniform:2", "alpha=0", "seed=4"])[0]
    assert drawn.report["encoder_calls"] == 5
    assert drawn.report["largest_batch"] == 6
    plain = verbs.call(opened, "generate", [], ["count=3", "speedup=false", "seed=4"])[0]
    direct = DDIMPipeline.from_pretrained(pipeline)(
        batch_size=3, num_inference_steps=10, generator=torch.Generator().manual_seed(4), output_type="np"
    ).images
    for image, wanted in zip(plain.value, direct, strict=True):
        assert torch.equal(image.pixels, (torch.from_numpy(wanted).permute(2, 0, 1) * 255).round().byte())
    page = verbs.call(opened, "inspect", [], ["count=2", "budget=0.9"], tmp_path / "page.html")[0]
    assert "decoder 2" in page.value.read_text(encoding="utf-8")
    for words, message in (
        (["prompt=a lamp"], "takes no prompt"),
        (["label=3"], "own scheduler"),
        (["keys=4"], "lacks"),
    ):
        with pytest.raises(InputError, match=message):
            verbs.call(opened, "generate", [], words)


def test_bases_that_are_no_pipelines(tmp_path: Path) -> None:
    splits = data.load("digits", "image")
    (tmp_path / "model_index.json").write_text("{}")
    for base, message in (
        (str(tmp_path / "none"), "there is no folder"),
        (str(tmp_path.parent), "holds no diffusers pipeline"),
        (str(tmp_path), "does not open"),
    ):
        with pytest.raises(InputError, match=message):
            experiment(Preset.SMOKE).systems["faster"].override([f"base={base}"]).build().fit(
                splits, Trainer(None, progress=False)
            )


def test_unlabelled_pictures_are_told_to_be_unconditional(tmp_path: Path) -> None:
    from encyclo.data.images import write_image

    for i in range(20):
        write_image(torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8), tmp_path / f"{i}.png")
    config = next(iter(experiment(Preset.SMOKE).systems.values()))
    with pytest.raises(InputError, match="classes=0"):
        config.build().fit(data.load(str(tmp_path), "image"), Trainer(None, progress=False))
