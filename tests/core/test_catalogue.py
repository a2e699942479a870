import json
import subprocess
import sys

import pytest

from encyclo import catalogue
from encyclo.errors import InputError


def test_every_file_has_a_card_of_its_own_name_and_wing() -> None:
    cards = catalogue.cards()
    assert cards
    for slug, card in cards.items():
        path = catalogue.source(slug)
        assert path.is_file()
        assert path.parent.name == card.wing


def test_an_unknown_slug_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'hnerv'"):
        catalogue.card("hnrv")


def test_listing_loads_no_heavy_module() -> None:
    code = (
        "import sys; from encyclo.cli import run; status = run(['list', '--json'])\n"
        "heavy = [m for m in ('torch', 'numpy', 'transformers', 'datasets', 'accelerate') if m in sys.modules]\n"
        "print(heavy, status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("[] 0")
    assert {card["slug"] for card in json.loads(done.stdout)} == set(catalogue.cards())


def test_importing_the_package_loads_almost_nothing() -> None:
    code = "import sys, encyclo; print([m for m in ('torch', 'typer', 'rich', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
