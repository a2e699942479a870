from pathlib import Path
from typing import Any

import pytest
import torch

from encyclo.experiment import Preset
from encyclo.nn.part import parameter_count
from encyclo.sampling.encoder_propagation import Propagation
from encyclo.systems.generation.faster_diffusion import FasterDiffusion, experiment
from encyclo.training.denoising import fold, unfold
from systems.contract import SystemContract


class TestContract(SystemContract):
    slug = "faster-diffusion"
    published = {"faster": 859_520_000}
    verbs = {"generate": ["count=2", "label=3", "keys=uniform:2"], "inspect": ["count=2", "budget=0.9"]}
    bad = [
        ("generate", ["keys=5"], "lacks step 0"),
        ("generate", ["keys=slow"], "none of"),
        ("generate", ["label=cat"], "classes"),
        ("generate", ["count=0"], "at least one"),
        ("generate", ["{missing}"], "no input"),
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
    assert system.counted_macs(keys) == pytest.approx(system.macs(counts), rel=1e-3)


def test_proposed_keys_respect_the_budget(system: FasterDiffusion) -> None:
    changes = system.feature_changes(2)
    encoder, decoder = system.call_macs()
    for budget in (0.85, 0.95):
        keys = system.propose_keys(changes, budget)
        assert keys[0] == 0
        assert len(keys) * encoder + 10 * decoder <= budget * 10 * (encoder + decoder)


def test_unlabelled_pictures_are_told_to_be_unconditional(tmp_path: Path) -> None:
    from encyclo import data
    from encyclo.data.images import write_image
    from encyclo.errors import InputError
    from encyclo.training import Trainer

    for i in range(20):
        write_image(torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8), tmp_path / f"{i}.png")
    config = next(iter(experiment(Preset.SMOKE).systems.values()))
    with pytest.raises(InputError, match="classes=0"):
        config.build().fit(data.load(str(tmp_path), "image"), Trainer(None, progress=False))
