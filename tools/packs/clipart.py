"""Makes the pack `clipart`: the Open Clip Art Library at 64x64, from the Debian package openclipart-png."""

import hashlib
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
from _lib import deb, fixed_splits, write_pack
from PIL import Image

VERSION = "1:0.18+dfsg-19"
SIZE = 64
MOST_POINTS = 70  # shapes/stars holds 1,375 stars of up to 100 points, which at this size are all but the same ring
STEP = 4  # values are rounded to multiples of this: lossless files would take 11 MB, rounded ones under 9

# File names end in the author's name, cut off at 22 to 24 letters; these occur often enough to be known for names.
AUTHORS = [
    "architetto_francesco_rollandin",
    "nicu_buculei",
    "benji_park",
    "gerald_g.",
    "linda_kim",
    "juliane_krug",
    "yves_guillou",
    "jon_phillips",
    "jarno_vasamaa",
    "dan_gerhards",
    "dave_pena",
    "jean-victor_balin",
    "lumen_design_studio",
    "mimooh",
    "mateya_01",
    "peterm",
    "fudriot_omic.ch",
    "frouke",
    "toh_yen_cheng",
    "stefan_bazelkov",
    "leif_lodahl",
    "mauro_olivo",
    "aj_ashton",
    "jonathan_dietrich",
    "nathan_eady",
    "christoph_brill",
    "susan_park",
    "enrique_meza_c",
    "sergio_luiz_araujo",
    "roman_bertle",
    "martin_boyer",
    "steren_giannini",
    "sauvetage_yves",
    "gabrielle_nowicki",
    "jonadab_the_unsightly",
]


def caption(stem: str) -> str:
    """The words of a file's name, without its number and, where it is known for one, its author."""
    name = re.sub(r"_+\d{0,2}[a-z]?$", "", stem)
    for author in AUTHORS:
        shortest = len(author) if len(name) < 19 else min(3, len(author))
        for length in range(len(author), shortest - 1, -1):
            if name.lower().endswith("_" + author[:length]) and len(name) > length + 2:
                name = name[: -length - 1]
                break
        else:
            continue
        break
    return " ".join(re.split(r"[_\-\s]+", name)).strip() or stem


def many_pointed(path: Path) -> bool:
    """Whether the picture is one of the stars with so many points that one cannot be told from the next."""
    found = re.match(r"star_(\d+)pt\d+step$", path.stem)
    return found is not None and int(found.group(1)) > MOST_POINTS


def picture(path: Path) -> Image.Image:
    """The picture at 64x64: shrunk to fit (never enlarged), centred on white, values rounded."""
    with Image.open(path) as file:
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or 0):
            raise ValueError("larger than Pillow's limit")
        image = file.convert("RGBA")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    canvas = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 255))
    canvas.alpha_composite(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    values = np.asarray(canvas.convert("RGB"), dtype=np.int16)
    rounded = np.minimum((values + STEP // 2) // STEP * STEP, 255)  # 254 and 255 become 256, which is white
    return Image.fromarray(rounded.astype(np.uint8))


def main() -> None:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # they are left out by `picture`
    root = deb("openclipart-png", VERSION) / "usr" / "share" / "openclipart" / "png"
    every = [path for path in sorted(root.rglob("*.png")) if not path.is_symlink()]
    files = [path for path in every if not many_pointed(path)]
    rows: list[tuple[bytes, str, str, str]] = []
    seen: set[str] = set()
    too_large = blank = copies = 0
    for path in files:
        try:
            image = picture(path)
        except (ValueError, Image.DecompressionBombError):
            too_large += 1
            continue
        pixels = image.tobytes()
        digest = hashlib.sha256(pixels).hexdigest()
        if len(set(pixels)) == 1:
            blank += 1
            continue
        if digest in seen:
            copies += 1
            continue
        seen.add(digest)
        stream = io.BytesIO()
        image.save(stream, "WEBP", lossless=True, quality=100, method=6)
        name = path.relative_to(root)
        rows.append((stream.getvalue(), name.parts[0], caption(path.stem), name.as_posix()))
    splits = fixed_splits(row[3] for row in rows)
    types = (("image", pa.binary()), ("label", pa.string()), ("caption", pa.string()), ("name", pa.string()))
    tables = {
        split: pa.table(
            {
                column: pa.array([row[index] for row in rows if splits[row[3]] == split], type)
                for index, (column, type) in enumerate(types)
            }
        )
        for split in ("train", "validation", "test")
    }
    write_pack(
        "clipart",
        views=("image",),
        tables={(): tables},
        hub_licence="cc0-1.0",
        tasks=("unconditional-image-generation", "text-to-image", "image-classification"),
        languages=("en",),
        title="Open Clip Art, 64x64",
        description="Drawings of the Open Clip Art Library 0.18, shrunk to fit 64x64 with their aspect kept (small"
        " ones are"
        " not enlarged), centred on white, as lossless WebP. The label is the library's top folder, the caption the"
        " words"
        " of the file's name, the name its path in the library.",
        source="https://openclipart.org/ (release 0.18, 2005)",
        package=f"Debian openclipart-png {VERSION}",
        licence="public domain (Creative Commons Public Domain Dedication)",
        licence_url="https://creativecommons.org/publicdomain/zero/1.0/",
        attribution="The authors of the Open Clip Art Library; their names end many of the file names",
        notes=(
            f"values are rounded to multiples of {STEP} (white stays 255): at most 2 of 255 away from the picture",
            f"of {len(every)} files, {copies} were left out as pixel-for-pixel copies, {blank} as blank, {too_large} as"
            f" larger than Pillow's limit of 89 million pixels and {len(every) - len(files)} as stars of more than"
            f" {MOST_POINTS} points, which all look alike",
            "labels are far from balanced (computer, shapes and signs_and_symbols are over half), and shapes/stars"
            " holds"
            " hundreds of polygons that differ by a step",
            "captions are words of file names: some are Italian, some keep an author's name or end in the middle of"
            " a word",
            "the dedication in the package is the older Public Domain Dedication; CC0 is its successor's name on the"
            " hub",
        ),
    )


if __name__ == "__main__":
    main()
