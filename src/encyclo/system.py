"""What every published system is: built from a configuration, fitted, evaluated, saved, opened again."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encyclo import catalogue
from encyclo.card import Card
from encyclo.errors import InputError
from encyclo.nn.part import Part, PartConfig
from encyclo.training.config import TrainingConfig

if TYPE_CHECKING:
    from encyclo.data import Splits
    from encyclo.training import Trainer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

SystemT = TypeVar("SystemT", bound="System")


class SystemConfig(PartConfig):
    """Every number of a system, its parts and its training."""

    training: TrainingConfig = TrainingConfig(steps=1000)


class System(Part):
    """One published method, or a rival of one.

    A subclass gives `card`, a nested `Config(SystemConfig)`, `fit`, `evaluate` and its verbs: methods whose names
    stand in the card and whose annotations say what they take (see `encyclo.verbs`).
    """

    card: ClassVar[Card]
    Config: ClassVar[type[PartConfig]] = SystemConfig
    reads: ClassVar[str] = "text"
    """Kind of data that `fit` takes: text, image, audio, video, pair or table."""
    fits_each_input: ClassVar[bool] = False
    """True for codecs that are fitted to the very file they compress (`encyclo compress FILE --system SLUG`)."""

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__()
        self.config = config

    # -- learning ------------------------------------------------------------------------------------------------

    def start_from(self, prepared: Any) -> None:
        """Take what the experiment prepared once for all arms (a tokenizer, a pretrained half); default: refuse."""
        raise TypeError(f"{type(self).__name__} takes nothing prepared")

    def fit(self, data: "Splits", trainer: "Trainer") -> None:
        """Learn from `data.train`; each stage is one call of `trainer.fit`."""
        raise TypeError(f"{type(self).__name__} is not trained")

    def evaluate(self, data: "Splits") -> dict[str, float]:
        """Metrics on `data.test`, by name."""
        raise TypeError(f"{type(self).__name__} has no evaluation")

    @property
    def device(self) -> torch.device:
        """Where the parameters (or, without any, the buffers) are."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    # -- what is saved -------------------------------------------------------------------------------------------

    def saved_state(self) -> dict[str, Tensor]:
        """Tensors to save. A retrofit leaves out those of its base, which `config` names."""
        return dict(self.state_dict())

    def load_saved_state(self, state: dict[str, Tensor]) -> None:
        """Put saved tensors back, strictly. Override where shapes come from the data (embeddings per frame ...)."""
        self.load_state_dict(state, strict=True)

    def assets(self) -> dict[str, bytes]:
        """Further files by name (tokenizer.json, tables as JSON): everything `encode` needs beside the weights."""
        return {}

    def load_assets(self, assets: Mapping[str, bytes]) -> None:
        """Take back what `assets` gave; called before the weights are loaded."""

    def fingerprint(self) -> str:
        """SHA-256 (hex) of configuration and weights: tells whether two systems code alike."""
        digest = hashlib.sha256(self.config.model_dump_json(exclude={"training"}).encode())
        for name, tensor in sorted(self.saved_state().items()):
            digest.update(name.encode())
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path, *, results: Mapping[str, float] | None = None) -> Path:
        """Write config.json, model.safetensors, README.md and the assets; each file appears whole or not at all.

        Args:
            folder: made if missing; files of other names in it stay.
            results: metrics for the model card.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            # cloned, because safetensors refuses tensors that share storage (tied weights)
            state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.saved_state().items()}
            save_file(state, staged / WEIGHTS_FILE, metadata={"format": "pt"})
            assets = self.assets()
            for name, content in assets.items():
                (staged / name).write_bytes(content)
            (staged / CARD_FILE).write_text(_model_card(self, results or {}), encoding="utf-8")
            described = {
                "library_name": "encyclo",
                "encyclo_version": _version(),
                "system": self.card.slug,
                "class": type(self).__name__,
                "assets": sorted(assets),
                "config": self.config.model_dump(mode="json"),
            }
            (staged / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            for name in (WEIGHTS_FILE, *assets, CARD_FILE, CONFIG_FILE):  # config last: without it nothing loads
                _sync(staged / name)
                os.replace(staged / name, folder / name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return folder

    @classmethod
    def from_pretrained(cls: type[SystemT], source: str | Path, *, device: str | torch.device = "cpu") -> SystemT:
        """Open a saved system from a folder or a hub id; strict, safetensors only.

        Raises:
            InputError: where there is no such folder, it holds no system, or the system is of another class.
        """
        folder = _folder(source)
        described = _described(folder)
        kind = _saved_class(described, folder)
        if not issubclass(kind, cls):
            raise InputError(f"{folder} holds a {kind.__name__}, not a {cls.__name__}")
        try:
            config = kind.Config.model_validate(described["config"])
        except ValidationError as error:
            raise InputError(f"{folder / CONFIG_FILE} does not fit this version: {_first(error)}") from None
        with torch.no_grad():
            system = config.build()
            names = described.get("assets", [])
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise InputError(f"{folder} lacks {', '.join(missing)}: the saved system is incomplete")
            system.load_assets({name: (folder / name).read_bytes() for name in names})
            try:
                state = load_file(folder / WEIGHTS_FILE)
                system.load_saved_state(state)
            except (SafetensorError, OSError, RuntimeError, KeyError) as error:
                raise InputError(f"{folder / WEIGHTS_FILE} does not fit: {str(error).splitlines()[0]}") from None
        system.eval()
        opened: SystemT = system.to(device)
        return opened

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the saved system; returns the address of the commit."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with encyclo")
        return str(done)


def open_system(source: str | Path, *, device: str | torch.device = "cpu") -> System:
    """Open any saved system (a run folder or a hub id) without naming its class."""
    return System.from_pretrained(source, device=device)


def _folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder} is a file; a run is a folder made by `encyclo train`")
    text = str(source)
    if text.count("/") == 1 and not text.startswith((".", "/")) and not folder.parent.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "*.md", "*.txt"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(
                f"no folder and no reachable hub repository is called '{text}' ({type(error).__name__})"
            ) from None
    raise InputError(f"no run folder at '{text}'; `encyclo train SLUG --out DIR` makes one")


def _described(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no saved system ({CONFIG_FILE} is missing); was its training finished?")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path} is damaged") from None
    if not isinstance(described, dict) or described.get("library_name") != "encyclo":
        raise InputError(f"{path} was not written by encyclo")
    return described


def _saved_class(described: Mapping[str, Any], folder: Path) -> type[System]:
    known = catalogue.systems(str(described["system"]))
    name = str(described["class"])
    if name not in known:
        raise InputError(f"{folder}: '{described['system']}' has no class '{name}' in this version of encyclo")
    return known[name]


def _first(error: ValidationError) -> str:
    told = error.errors()[0]
    return f"{'.'.join(map(str, told['loc']))}: {told['msg']}"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _version() -> str:
    import encyclo

    return encyclo.__version__


def _model_card(system: System, results: Mapping[str, float]) -> str:
    card = system.card
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in results.items())
    table = f"\n## Measured\n\n| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    return (
        "---\n"
        "library_name: encyclo\n"
        f"tags:\n- encyclo\n- {card.slug}\n"
        "---\n\n"
        f"# {card.title}\n\n{card.summary}\n\n"
        f"Paper: {card.authors}, {card.year}, [arXiv {card.arxiv}]({card.url}).\n"
        f"Class `{type(system).__name__}` of system `{card.slug}`.\n\n"
        '```python\nimport encyclo\n\nsystem = encyclo.open("THIS_FOLDER")\n```\n'
        f"{table}"
    )
