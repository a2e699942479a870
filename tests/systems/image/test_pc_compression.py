"""The codec as a user meets it: files that decode anywhere, exact answers, and every refusal in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from tests.systems.contract import SystemContract

from encyclo import cli
from encyclo.data.images import write_image
from encyclo.errors import InputError
from encyclo.nn.chow_liu import Tree
from encyclo.nn.integer_flow import FactorisedFlow
from encyclo.systems.image.pc_compression import IDF, ChowLiu, PCCompression, natural_crops
from encyclo.tokens.container import pack, unpack

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 17, (5, 1, 8, 8), generator=GENERATOR).to(torch.uint8)


class TestContract(SystemContract):
    slug = "pc-compression"
    published = {"pc-16": 3_411_728, "pc-24": 5_267_928, "pc-32": 7_224_352}
    verbs = {
        "compress": ["{folder}", "{one}"],
        "decompress": ["{packed}"],
        "likelihood": ["{array}"],
        "marginal": ["{one}", "observed=0,0,8,4"],
        "sample": ["count=3", "seed=5"],
        "inpaint": ["{one}", "hidden=right", "fill=mean"],
        "inspect": [],
    }
    bad = [
        ("compress", ["{colour}"], "colour 8x8"),
        ("compress", ["{large}"], "grey 9x9, the model knows grey 8x8"),
        ("compress", ["{white}"], "value 255"),
        ("compress", ["{alpha}"], "transparency"),
        ("compress", ["{floats}"], "float64"),
        ("compress", ["{text}"], "no picture"),
        ("decompress", ["{text}"], "no file that"),
        ("decompress", ["{packed_elsewhere}"], "this is model"),
        ("decompress", ["{empty}"], "empty"),
        ("marginal", ["{one}", "observed=5,5,9,9"], "does not lie in"),
        ("marginal", ["{one}", "observed=middle"], "no region"),
        ("sample", ["count=0"], "at least one"),
        ("inpaint", ["{one}", "fill=median"], "fill"),
    ]

    def files(self, folder):
        (folder / "pictures").mkdir()
        for i, image in enumerate(IMAGES):
            write_image(image, folder / "pictures" / f"p{i}.png")
        write_image(IMAGES[0], folder / "one.png")
        np.save(folder / "array.npy", IMAGES[:, 0].numpy())
        np.save(folder / "floats.npy", IMAGES[:, 0].double().numpy())
        write_image(torch.randint(0, 16, (3, 8, 8)).to(torch.uint8), folder / "colour.png")
        write_image(torch.zeros(1, 9, 9, dtype=torch.uint8), folder / "large.png")
        write_image(torch.full((1, 8, 8), 255, dtype=torch.uint8), folder / "white.png")
        Pillow.new("RGBA", (8, 8), (1, 2, 3, 99)).save(folder / "alpha.png")
        (folder / "text.txt").write_text("no picture at all, nor a file of ours")
        (folder / "elsewhere.pc").write_bytes(small(seed=3).encode_images(IMAGES))
        return {
            "folder": folder / "pictures",
            "one": folder / "one.png",
            "array": folder / "array.npy",
            "floats": folder / "floats.npy",
            "colour": folder / "colour.png",
            "large": folder / "large.png",
            "white": folder / "white.png",
            "alpha": folder / "alpha.png",
            "text": folder / "text.txt",
            "packed": folder / "packed.pc",
            "packed_elsewhere": folder / "elsewhere.pc",
        }

    @pytest.fixture(scope="class")
    def given(self, finished, tmp_path_factory):
        from encyclo.system import open_system

        folder = tmp_path_factory.mktemp("pc-files")
        (folder / "empty").write_bytes(b"")
        found = {"missing": folder / "missing.bin", "empty": folder / "empty", **self.files(folder)}
        found["packed"].write_bytes(open_system(finished.run).encode_images(IMAGES, names=["a.png"] * 5))
        return found


FLOW = {"levels": 1, "rounds": 1, "translation": {"width": 8}}


def small(seed=0, shape=(1, 8, 8), values=17, latents=3, flow=None):
    """A codec with random tables."""
    system = PCCompression.Config(shape=shape, values=values, flow=flow).replace(circuit={"latents": latents}).build()
    generator = torch.Generator().manual_seed(seed)
    d = shape[0] * shape[1] * shape[2]
    parents = [-1] + [int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, d)]
    system._build(Tree(np.array(parents)), values)
    with torch.no_grad():
        for p in (system.model.prior, system.model.transition, system.model.emission):
            p.copy_(torch.rand(p.shape, generator=generator) ** 2 + 1e-3)
            p /= p.sum(-1, keepdim=True)
        for p in system.flow.parameters() if flow else ():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return system


@pytest.mark.parametrize("streams", ["one", "each"])
@pytest.mark.parametrize(("shape", "flow"), [((1, 8, 8), None), ((3, 4, 5), None), ((3, 4, 6), FLOW)])
def test_round_trip(streams, shape, flow):
    system = small(shape=shape, flow=flow)
    images = torch.randint(0, 17, (7, *shape), generator=GENERATOR).to(torch.uint8)
    blob = system.encode_images(images, streams=streams)
    assert torch.equal(system.decode_images(blob), images)
    assert unpack(blob).header["n"] == 7
    empty = system.encode_images(images[:0], streams=streams)
    assert system.decode_images(empty).shape == (0, *shape)
    assert len(empty) < 150


@pytest.mark.parametrize("flow", [None, FLOW])
def test_a_fresh_process_with_other_threads_decodes_the_same(tmp_path, flow):
    system = small(flow=flow)
    system.save_pretrained(tmp_path / "run")
    (tmp_path / "x.pc").write_bytes(system.encode_images(IMAGES))
    program = (
        "import torch; torch.set_num_threads(2); import encyclo, pathlib; s = encyclo.open('run');"
        "s.decompress(pathlib.Path('x.pc').read_bytes(), out=pathlib.Path('x.npy'))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)
    assert np.array_equal(np.load(tmp_path / "x.npy"), IMAGES.numpy())


def test_a_flow_changes_what_is_coded_and_what_can_be_asked():
    system = small(flow=FLOW)
    rows = IMAGES.flatten(1)
    assert not torch.equal(system.codes(rows), rows)
    theory = system.likelihood([IMAGES]).value.sum().item() * 64
    one = 8 * len(unpack(system.encode_images(IMAGES)).sections["payload"])
    assert theory - 1 <= one <= theory + 64
    drawn = system.sample(count=3).value
    assert [tuple(image.pixels.shape) for image in drawn] == [(1, 8, 8)] * 3
    for verb in (system.marginal, system.inpaint):
        with pytest.raises(InputError, match="stands on a flow's latents"):
            verb([IMAGES])
    text = system.inspect().report
    assert system.inspect().value["model"] == system.digest != system.coder.digest, text
    other = small(flow=FLOW)
    with torch.no_grad():
        other.flow.translations[0].layers[0].bias += 0.5
    with pytest.raises(InputError, match=system.digest):
        other.decode_images(system.encode_images(IMAGES))


def test_a_flow_needs_even_sides_and_takes_no_shift():
    with pytest.raises(ValueError, match="give one of the two"):
        PCCompression.Config(flow=FLOW, shift=1)
    with pytest.raises(ValueError, match="multiples of 2"):
        PCCompression.Config(flow=FLOW, shape=(1, 7, 8), values=17).build()


def test_the_circuit_stands_on_the_rival_s_flow(tmp_path):
    from encyclo.data.crops import picture_splits
    from encyclo.training import Trainer, TrainingConfig

    short = TrainingConfig(steps=2, batch_size=8)
    pictures = torch.randint(0, 256, (24, 3, 8, 8), generator=GENERATOR).to(torch.uint8)
    data = picture_splits("noise", pictures[:16], pictures[16:20], pictures[20:])
    rival = IDF.Config(density=FactorisedFlow.Config(flow=FLOW), training=short).build()
    rival.fit(data, Trainer(None, progress=False))
    em = {"training": short.replace(optimiser={"kind": "sgd", "lr": 0.5}), "full_batch": short.replace(steps=1)}
    config = PCCompression.Config(flow=FLOW, flow_training=short, **em).replace(circuit={"latents": 2})
    given, alone = config.build(), config.build()
    given.start_from(rival.density)
    given.fit(data, Trainer(None, progress=False))
    alone.fit(data, Trainer(None, progress=False))  # trains the same flow itself
    rows = pictures.flatten(1)
    assert torch.equal(given.codes(rows), rival.density.flow.encode(rows))
    assert torch.equal(alone.codes(rows), given.codes(rows))
    assert given.digest == alone.digest
    opened = PCCompression.from_pretrained(given.save_pretrained(tmp_path))
    assert torch.equal(opened.decode_images(given.encode_images(pictures)), pictures)
    again = IDF.from_pretrained(rival.save_pretrained(tmp_path / "rival"))
    assert again.evaluate(data) == rival.evaluate(data)
    assert given.evaluate(data)["exact_images"] == 1


def test_natural_crops_share_no_scene():
    data = natural_crops()
    assert len(data.train) > 2000
    assert min(len(data.validation), len(data.test)) > 200
    assert not set(data.test["image"]) & set(data.train["image"])


def test_files_keep_their_names(tmp_path):
    system = small()
    for name in ("b.png", "a.png"):
        write_image(IMAGES[0], tmp_path / name)
    blob = system.compress([tmp_path / "b.png", tmp_path / "a.png", IMAGES[1]]).value
    out = system.decompress(blob, out=tmp_path / "back").value
    assert sorted(f.name for f in out.iterdir()) == ["00002.png", "a.png", "b.png"]
    assert np.array_equal(np.asarray(Pillow.open(out / "00002.png")), IMAGES[1, 0].numpy())


def test_a_file_where_the_folder_should_be_is_told_in_one_line(tmp_path, capsys):
    system = small()
    system.save_pretrained(tmp_path / "run")
    (tmp_path / "x.pc").write_bytes(system.encode_images(IMAGES))
    (tmp_path / "there").write_text("mine")
    out = str(tmp_path / "there")
    assert cli.run(["decompress", str(tmp_path / "run"), str(tmp_path / "x.pc"), "--out", out]) == 2
    told = capsys.readouterr().err.strip()
    assert out in told
    assert "\n" not in told
    assert (tmp_path / "there").read_text() == "mine"


def test_names_cannot_leave_the_folder(tmp_path):
    system = small()
    blob = system.encode_images(IMAGES[:4], names=["../../x.png", "/etc/y.png", "..", "a\0b.png"])
    system.decompress(blob, out=tmp_path / "in" / "back")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    assert len(list((tmp_path / "in" / "back").iterdir())) == 4


def test_grey_pictures_stored_in_colour(tmp_path):
    system = small()
    write_image(IMAGES[0].expand(3, -1, -1), tmp_path / "rgb.png")
    result = system.compress([tmp_path / "rgb.png"])
    assert "grey" in result.notes[0]
    assert torch.equal(system.decode_images(result.value), IMAGES[:1])


def test_every_damage_is_told():
    system = small()
    blob = system.encode_images(IMAGES, streams="each")
    for i in range(0, 8 * len(blob), 5):
        changed = bytearray(blob)
        changed[i // 8] ^= 1 << i % 8
        with pytest.raises(InputError):
            system.decode_images(bytes(changed))
    for forged in ({"n": 6}, {"n": -1}, {"n": 1 << 60}, {"shape": [1, 8, 9]}, {"streams": "two"}, {"n": "5"}):
        file = unpack(blob)
        with pytest.raises(InputError):
            system.decode_images(pack("pc-compression", {**file.header, **forged}, file.sections))
    with pytest.raises(InputError, match=small(seed=1).coder.digest):
        small(seed=1).decode_images(blob)


def test_likelihood_is_the_code_length():
    system = small()
    theory = system.likelihood([IMAGES]).value.sum().item() * 64
    one, each = (8 * len(unpack(system.encode_images(IMAGES, streams=s)).sections["payload"]) for s in ("one", "each"))
    assert theory - 1 <= one <= theory + 64
    assert theory - 1 <= each <= theory + 5 * 48


def test_a_whole_marginal_is_the_likelihood_and_parts_add_up():
    system = small()
    whole = system.marginal([IMAGES], observed="0,0,8,8").value
    torch.testing.assert_close(whole, system.likelihood([IMAGES]).value * 64)
    assert (system.marginal([IMAGES], observed="top").value < whole).all()


def test_inpainting_keeps_what_is_seen(tmp_path):
    system = small()
    write_image(torch.eye(8).mul(255).to(torch.uint8)[None], tmp_path / "mask.png")
    for how in ("sample", "mean"):
        filled = system.inpaint([IMAGES], mask=tmp_path / "mask.png", fill=how).value
        off = ~torch.eye(8, dtype=torch.bool)
        assert all(torch.equal(f.pixels[0][off], i[0][off]) for f, i in zip(filled, IMAGES, strict=True))
    again = system.inpaint([IMAGES], hidden="left", seed=3).value
    assert all(
        torch.equal(a.pixels, b.pixels)
        for a, b in zip(again, system.inpaint([IMAGES], hidden="left", seed=3).value, strict=True)
    )


def test_inspect_writes_a_page(tmp_path):
    result = small().inspect(out=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert str(result.report["units_sweep"]) in text
    assert text.count("<figure>") == 2
    json.dumps(result.report)


def test_shifting_moves_images():
    system = PCCompression.Config(shape=(1, 8, 8), shift=2).build()
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, 4, 4] = 9
    many = system._shifted(image.flatten(1).expand(200, -1), torch.Generator().manual_seed(0)).view(-1, 8, 8)
    at = (many == 9).nonzero()
    assert len(at) == 200
    assert {tuple(p) for p in at[:, 1:].tolist()} == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_an_untrained_model_says_so():
    with pytest.raises(InputError, match="not trained"):
        PCCompression.Config().build().sample()


def test_rivals_open_again(tmp_path):
    system = ChowLiu.Config(shape=(1, 8, 8), values=17).build()
    opened = ChowLiu.from_pretrained(system.save_pretrained(tmp_path))
    assert opened.fingerprint() == system.fingerprint()
