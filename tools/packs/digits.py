"""Makes the pack `digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels."""

import io

import numpy as np
import pyarrow as pa
from _lib import fixed_splits, wheel, write_pack
from PIL import Image

VERSION = "1.9.1"


def main() -> None:
    rows = np.loadtxt(
        wheel("scikit-learn", VERSION) / "sklearn" / "datasets" / "data" / "digits.csv.gz",
        delimiter=",",
        dtype=np.uint8,
    )
    assert rows.shape == (1797, 65)
    assert rows[:, :-1].max() == 16
    # Equal pictures would stand in two splits otherwise.
    content = [row[:-1].tobytes().hex() for row in rows]
    splits = fixed_splits(content, 0.1, 0.1)
    tables = {}
    for split in ("train", "validation", "test"):
        chosen = [row for row, key in enumerate(content) if splits[key] == split]
        images = []
        for row in chosen:
            stream = io.BytesIO()
            Image.fromarray(rows[row, :-1].reshape(8, 8)).save(stream, "PNG", optimize=True)
            images.append(stream.getvalue())
        labels = [str(rows[row, -1]) for row in chosen]
        tables[split] = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.string())})
    write_pack(
        "digits",
        views=("image",),
        tables={(): tables},
        hub_licence="cc-by-4.0",
        tasks=("image-classification",),
        title="Optical digits, 8x8",
        description="Handwritten digits, 8x8, grey, as PNG files whose values are exactly the original counts 0..16"
        " (each"
        " counts the inked pixels of a 4x4 block): divide by 16, not by 255. The label is the digit.",
        source="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits (its test set)",
        package=f"PyPI wheel scikit-learn {VERSION} (sklearn/datasets/data/digits.csv.gz)",
        licence="CC-BY-4.0",
        licence_url="https://creativecommons.org/licenses/by/4.0/",
        attribution="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning"
        " Repository, 1998; copy of scikit-learn",
        peak=16,
        notes=("values run from 0 to 16, not to 255: divide by 16",),
    )


if __name__ == "__main__":
    main()
