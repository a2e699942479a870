"""What every neural audio codec of the library offers: waves to codes and back, files, metrics, views of codebooks.

A system of the audio wing derives from `AudioCodec`, gives encoder, quantiser and decoder, and has these verbs.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from encyclo.config import Config
from encyclo.data import Splits
from encyclo.data.atomic import atomic_path
from encyclo.data.audio import MAX_SAMPLES, Audio, encode_audio, probe_audio, read_audio, resample, stream_audio
from encyclo.errors import InputError
from encyclo.metrics.audio import MelDistance, pesq, si_sdr, stft_distance, stoi, voiced_frames
from encyclo.metrics.codebook import code_counts, entropy_bits, perplexity, used_share
from encyclo.nn.vector_quantize import NoQuantize, Quantized
from encyclo.system import System, SystemConfig
from encyclo.systems.audio_pictures import codebook_page, codebook_picture, spectrograms
from encyclo.tokens import container
from encyclo.tokens.entropy import RangeReader, RangeWriter
from encyclo.tokens.waveform import pad_to_multiple, pieces
from encyclo.verbs import Result

__all__ = ["AudioCodec", "AudioCodecConfig", "Evaluation"]

_CONTEXT_SECONDS = 1.0
"""Overlap on either side where half the codec sees its whole input (group norm, LSTM): no overlap is exact then."""
_LONGEST_PIECE = 20.0
"""Seconds that are encoded or decoded at a time."""
_BLOCK_SECONDS = 10.0
"""Of a file that are read at a time."""
_ROWS = 1 << 22
"""Probabilities held at a time while codes are written or read."""


class Evaluation(Config):
    """What `evaluate` measures on."""

    files: int | None = Field(None, ge=1, description="of the test split, spread evenly over it; None: all")
    unseen_files: int | None = Field(None, ge=1, description="of the languages that were left out of training")
    pesq: bool = Field(False, description="PESQ too (needs the package pesq)")


class AudioCodecConfig(SystemConfig):
    """What all codecs have."""

    rate: int = Field(24000, ge=1, description="samples a second that the codec works at")
    dim: int = Field(512, ge=1, description="channels of the latent frames")
    evaluation: Evaluation = Evaluation()


class AudioCodec(System):
    """Encoder, quantiser and decoder over waves of one rate, one channel at a time, in frames of `hop` samples.

    A subclass gives `encoder` and `decoder` (modules with `hop`, `context`: [b, 1, n] -> [b, d, t] -> [b, 1, n]) and
    `quantizer` (of `encyclo.nn.vector_quantize`), then calls `make_tables`.
    """

    reads = "audio"
    Config = AudioCodecConfig
    config: Any
    encoder: Any
    quantizer: Any
    decoder: Any
    counts: Int64[Tensor, "books size"]
    energy: Float[Tensor, "levels_and_one groups"]

    def make_tables(self) -> None:
        """Add what a survey of training data fills: how often each code is chosen, what energy each level leaves."""
        books, size, levels, groups = 0, 1, 0, 1
        if not isinstance(self.quantizer, NoQuantize):
            books, size = self.quantizer.books, self.config.quantizer.codebooks.size
            levels, groups = self.config.quantizer.levels, self.config.quantizer.groups
        self.register_buffer("counts", torch.zeros(books, size, dtype=torch.long))
        self.register_buffer("energy", torch.zeros(levels + 1, groups))

    def init_own(self) -> None:
        self.counts.zero_()
        self.energy.zero_()

    # -- figures ---------------------------------------------------------------------------------------------------

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return int(self.encoder.hop)

    @property
    def books(self) -> int:
        """Codes of a frame."""
        return int(self.counts.shape[0])

    @property
    def size(self) -> int:
        """Codes to choose from in each codebook."""
        return int(self.counts.shape[1])

    @property
    def bits_per_second(self) -> float:
        """Of one channel, every code written with log2(size) bits."""
        return float(self.config.rate / self.hop * self.books * math.log2(self.size))

    # -- waves and codes -------------------------------------------------------------------------------------------

    def forward(
        self, wave: Float[Tensor, "b 1 n"], *, levels: int | None = None, learn: bool | None = None
    ) -> tuple[Float[Tensor, "b 1 n"], Quantized]:
        """The wave as the decoder makes it from quantised frames; n must be a multiple of the hop."""
        quantized = self.quantizer(self.encoder(wave).transpose(1, 2), levels=levels, learn=learn)
        return self.decoder(quantized.values.transpose(1, 2)), quantized

    @torch.inference_mode()
    def codes(self, wave: Float[Tensor, "c n"]) -> Int64[Tensor, "c t books"]:
        """Codes of each channel, t = ceil(n / hop); the end is padded with zeros to a whole frame.

        Longer waves than 20 s are worked through in overlapping pieces, which gives the codes of the whole wave where
        the encoder's `context` is finite; a group norm takes its statistics over each piece.
        """
        return self._codes_of([wave])[0]

    @torch.inference_mode()
    def _codes_of(self, blocks: Iterable[Float[Tensor, "c _"]]) -> tuple[Int64[Tensor, "c t books"], int]:
        """Codes of a wave that comes in blocks, and its length in samples; at most a piece and a block are held."""
        self._needs_codebooks()
        size, context, hop = self._frames(_LONGEST_PIECE), self._context(self.encoder), self.hop
        found: list[Tensor] = []
        begin = first = total = 0  # frames: where the next piece begins, where what is held begins; samples

        def code(held: Float[Tensor, "c _"], end: int, high: int) -> None:
            low = max(0, begin - context)
            part = held[:, None, (low - first) * hop : (high - first) * hop].to(self.device)
            z = self.encoder(part).transpose(1, 2)
            found.append(self.quantizer(z[:, begin - low : end - low], learn=False).codes.cpu())

        held: Tensor | None = None
        for block in blocks:
            held = block if held is None else torch.cat([held, block], 1)
            total += block.shape[1]
            while (begin + size + context - first) * hop <= held.shape[1]:
                code(held, begin + size, begin + size + context)
                begin += size
                fresh = max(0, begin - context)
                held, first = held[:, (fresh - first) * hop :], fresh
        assert held is not None
        frames = max(1, -(-total // hop))
        held = pad_to_multiple(held, hop)
        while begin < frames:
            end = min(frames, begin + size)
            code(held, end, min(frames, end + context))
            begin = end
        return torch.cat(found, 1), total

    @torch.inference_mode()
    def wave(self, codes: Int64[Tensor, "c t books"]) -> Float[Tensor, "c n"]:
        """The waves that codes stand for, n = t * hop; codes of the first levels alone give a coarser wave."""
        self._needs_codebooks()
        size, context = self._frames(_LONGEST_PIECE), self._context(self.decoder)
        parts = [
            self._decoded(codes[:, p.low : p.high], p.begin - p.low, p.end - p.begin)
            for p in pieces(codes.shape[1], size, context)
        ]
        return torch.cat(parts, 1)

    def _decoded(self, codes: Int64[Tensor, "c t books"], skip: int, keep: int) -> Float[Tensor, "c n"]:
        """The wave of `keep` frames after the first `skip`."""
        z = self.quantizer.decode(codes.to(self.device)).transpose(1, 2)
        made = self.decoder(z)[:, 0, skip * self.hop : (skip + keep) * self.hop]
        wave: Tensor = made.float().cpu()
        return wave

    def _frames(self, seconds: float) -> int:
        return max(1, round(float(seconds * self.config.rate / self.hop)))

    def _context(self, half: Any) -> int:
        return self._frames(_CONTEXT_SECONDS) if half.context is None else int(half.context)

    def _needs_codebooks(self) -> None:
        if not self.books:
            raise InputError("this run is a continuous autoencoder, it has no codebooks: train one with quantizer.kind")

    def _prepared(self, audio: Audio) -> tuple[Float[Tensor, "c n"], list[str]]:
        """Samples at the codec's rate, and what was lost on the way.

        Raises:
            InputError: no samples, or some that are not finite.
        """
        if audio.samples.numel() == 0:
            raise InputError(f"'{audio.name}' has no samples: give another recording")
        _refuse_not_finite(audio)
        made = resample(audio, self.config.rate)
        return made.samples.float(), self._notes(made, made.samples.shape[1])

    def _prepared_blocks(self, path: Path, notes: list[str]) -> Iterator[Float[Tensor, "c _"]]:
        """As `_prepared`, block by block; `notes` is filled when the file has been read."""
        block, length = None, 0
        for block in stream_audio(path, self.config.rate, seconds=_BLOCK_SECONDS):
            _refuse_not_finite(block)
            length += block.samples.shape[1]
            yield block.samples
        if block is not None:
            notes += self._notes(block, length)

    def _notes(self, audio: Audio, length: int) -> list[str]:
        """What happens to a recording of so many samples."""
        notes, channels = list(audio.notes), audio.samples.shape[0]
        if channels > 1:
            notes.append(f"{audio.name}: {channels} channels, each coded on its own")
        if self.encoder.context is None and length > _LONGEST_PIECE * self.config.rate:
            notes.append(
                f"{audio.name}: {length / self.config.rate:.0f} s, encoded in pieces of {_LONGEST_PIECE:.0f} s with"
                f" {_CONTEXT_SECONDS:.0f} s overlap (the encoder's statistics are those of each piece)"
            )
        return notes

    # -- verbs: tokens ---------------------------------------------------------------------------------------------

    def encode(self, audio: Audio) -> Result:
        """Turn a recording into tokens: JSON of `codes` [channel][frame][codebook], rate, length, mark of the model."""
        wave, notes = self._prepared(audio)
        codes = self.codes(wave)
        value = {
            "system": self.card.slug,
            "model": self.fingerprint()[:16],
            "rate": self.config.rate,
            "length": wave.shape[1],
            "codebooks": self.books,
            "size": self.size,
            "codes": codes,
        }
        report = {"frames": codes.shape[1], "channels": codes.shape[0], "bits_per_second": self.bits_per_second}
        return Result(value, report, notes)

    def decode(self, tokens: str | Mapping[str, Any]) -> Result:
        """Turn tokens (the file that `encode` wrote, or its content) back into a recording.

        Raises:
            InputError: no such file, tokens of another model, or codes that do not exist in it.
        """
        held = tokens if isinstance(tokens, Mapping) else _parsed(tokens)
        missing = [name for name in ("system", "model", "length", "codes") if name not in held]
        if missing:
            raise InputError(f"the token file lacks '{missing[0]}': give one that `encyclo encode` wrote")
        self._check_model(str(held["system"]), str(held["model"]))
        codes = self._checked(held["codes"])
        length = held["length"]
        if not isinstance(length, int) or not (codes.shape[1] - 1) * self.hop < length <= codes.shape[1] * self.hop:
            raise InputError(f"length={length} does not fit {codes.shape[1]} frames of {self.hop} samples")
        return Result(Audio(self.wave(codes)[:, :length], self.config.rate, "decoded"))

    def _check_model(self, system: str, mark: str) -> None:
        own = self.fingerprint()[:16]
        if system != self.card.slug or mark != own:
            raise InputError(
                f"made by model {mark} of '{system}', this run is {own} of '{self.card.slug}': use its run"
            )

    def _checked(self, given: Any) -> Int64[Tensor, "c t books"]:
        try:
            codes = torch.as_tensor(given)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise InputError("codes: not a table [channel][frame][codebook] of whole numbers") from None
        if codes.dim() != 3 or 0 in codes.shape or codes.is_floating_point() or codes.dtype == torch.bool:
            raise InputError("codes: not a table [channel][frame][codebook] of whole numbers")
        if codes.shape[2] != self.books:
            raise InputError(f"codes: {codes.shape[2]} codebooks, this model has {self.books}")
        wrong = codes[(codes < 0) | (codes >= self.size)]
        if wrong.numel():
            raise InputError(f"codes: {int(wrong[0])} is outside 0..{self.size - 1}")
        return codes.long()

    # -- verbs: files ----------------------------------------------------------------------------------------------

    def compress(
        self, audio: Path | Audio, *, coder: Literal["range", "raw"] = "range", piece_seconds: float = 10.0
    ) -> Result:
        """Write a recording as one file of sections that can be decoded one after the other.

        Args:
            audio: any rate and number of channels. A file is read and coded block by block: whatever its length, less
                than a minute of it is in memory.
            coder: range coding with the frequencies of the training data, or log2(size) bits a code.
            piece_seconds: of one section.
        """
        if piece_seconds <= 0:
            raise InputError(f"piece_seconds={piece_seconds}: give a time above 0")
        if isinstance(audio, Audio):
            rate = audio.rate
            wave, notes = self._prepared(audio)
            codes, samples = self._codes_of([wave])
        else:
            _, rate = probe_audio(audio)
            notes = list[str]()
            codes, samples = self._codes_of(self._prepared_blocks(audio, notes))
        channels = codes.shape[0]
        if samples * channels > MAX_SAMPLES:
            raise InputError(
                f"{channels} x {samples} samples are more than the limit of {MAX_SAMPLES}: cut it into pieces"
            )
        frames = max(self._frames(piece_seconds), -(-codes.shape[1] // (container.MOST_SECTIONS - 1)))
        header = {
            "model": self.fingerprint()[:16],
            "rate": rate,
            "samples": samples,
            "channels": channels,
            "frames": frames,
            "coder": coder,
        }
        sections = {
            str(i): self._written(codes[:, p.begin : p.end], coder)
            for i, p in enumerate(pieces(codes.shape[1], frames, 0))
        }
        blob = container.pack(self.card.slug, header, sections)
        seconds, coded = samples / self.config.rate, sum(map(len, sections.values()))
        report = {
            "bytes": len(blob),
            "bits_per_second": 8 * len(blob) / seconds,
            "bits_per_second_of_codes": 8 * coded / seconds,
            "bits_per_second_of_raw_codes": codes.numel() * math.log2(self.size) / seconds,
            "times_smaller_than_16_bit": 2 * channels * seconds * rate / len(blob),
        }
        return Result(blob, report, notes)

    def decompress(self, blob: bytes) -> Result:
        """Restore what `compress` wrote, at the codec's rate.

        Raises:
            InputError: a file by another system or model, or a damaged one.
        """
        made = list(self.decompress_pieces(blob))
        whole = Audio(torch.cat([piece.samples for piece in made], 1), self.config.rate, "decompressed")
        source = int(container.unpack(blob).header["rate"])
        notes = (
            [f"the recording was at {source} Hz; it comes back at {self.config.rate} Hz"]
            if source != whole.rate
            else []
        )
        return Result(whole, {"seconds": whole.seconds, "channels": whole.samples.shape[0]}, notes)

    def decompress_pieces(self, blob: bytes) -> Iterator[Audio]:
        """As `decompress`, section by section, for playing while decoding: each needs its neighbours' codes alone."""
        held = container.unpack(blob, system=self.card.slug)
        samples, channels, size, coder = self._header(held.header)
        frames = -(-samples // self.hop)
        context = self._context(self.decoder)
        cut = list(pieces(frames, size, context))
        if len(cut) != len(held.sections):
            raise InputError(f"{len(held.sections)} sections where {len(cut)} are needed: the file is damaged")
        known: dict[int, Int64[Tensor, "_ _ _"]] = {}
        for i, p in enumerate(cut):
            wanted = range(p.low // size, (p.high - 1) // size + 1)
            for j in wanted:
                if j not in known:
                    known[j] = self._read(held.sections.get(str(j), b""), channels, cut[j].end - cut[j].begin, coder)
            known = {j: known[j] for j in wanted}
            codes = torch.cat(list(known.values()), 1)[:, p.low - wanted.start * size :][:, : p.high - p.low]
            with torch.inference_mode():
                made = self._decoded(codes, p.begin - p.low, p.end - p.begin)
            keep = min(p.end * self.hop, samples) - p.begin * self.hop
            yield Audio(made[:, :keep].clone(), self.config.rate, f"piece {i}")

    def _header(self, header: Mapping[str, Any]) -> tuple[int, int, int, str]:
        names = ("samples", "channels", "frames", "rate")
        values = [header.get(name) for name in names]
        if not all(isinstance(v, int) and v > 0 for v in values) or header.get("coder") not in ("range", "raw"):
            raise InputError("the file's header is malformed: it was not written by `encyclo compress`")
        self._check_model(self.card.slug, str(header.get("model")))
        samples, channels, frames, _ = (int(header[name]) for name in names)
        if samples * channels > MAX_SAMPLES:
            raise InputError(f"the file claims {channels} x {samples} samples, the limit is {MAX_SAMPLES}")
        return samples, channels, frames, str(header["coder"])

    def _tables(self) -> Float[np.ndarray, "books size"]:
        """Probabilities of the codes: their counts in the training data, each once more than seen."""
        counts = self.counts.cpu().numpy().astype(np.float64) + 1
        tables: Float[np.ndarray, "books size"] = counts / counts.sum(-1, keepdims=True)
        return tables

    def _written(self, codes: Int64[Tensor, "c t books"], coder: str) -> bytes:
        flat = codes.reshape(-1).numpy().astype(np.int32)
        if coder == "raw":
            width = max(1, (self.size - 1).bit_length())
            return np.packbits((flat[:, None] >> np.arange(width - 1, -1, -1)) & 1).tobytes()
        tables, writer = self._tables(), RangeWriter()
        for start, stop in self._blocks(flat.size):
            writer.put(flat[start:stop], tables[np.arange(start, stop) % self.books])
        return writer.finish()

    def _read(self, payload: bytes, channels: int, frames: int, coder: str) -> Int64[Tensor, "c t books"]:
        count = channels * frames * self.books
        if coder == "raw":
            width = max(1, (self.size - 1).bit_length())
            if len(payload) != -(-count * width // 8):
                raise InputError(f"a section has {len(payload)} bytes where {-(-count * width // 8)} are needed")
            bits = np.unpackbits(np.frombuffer(payload, np.uint8))[: count * width].reshape(count, width)
            flat = bits.astype(np.int64) @ (1 << np.arange(width - 1, -1, -1))
        else:
            if 64 * (len(payload) + 8) * 8 < count:  # no code can be so cheap: the counts bound the probabilities
                raise InputError(f"a section has {len(payload)} bytes for {count} codes: the file is damaged")
            tables, reader = self._tables(), RangeReader(payload)
            parts = [reader.take(tables[np.arange(start, stop) % self.books]) for start, stop in self._blocks(count)]
            reader.finish()
            flat = np.concatenate(parts)
        return self._checked(flat.astype(np.int64).reshape(channels, frames, self.books))

    def _blocks(self, count: int) -> Iterator[tuple[int, int]]:
        step = max(1, _ROWS // self.size)
        return ((start, min(count, start + step)) for start in range(0, count, step))

    # -- verbs: looking --------------------------------------------------------------------------------------------

    def reconstruct(self, audio: Audio, *, out: Path | None = None) -> Result:
        """Code and decode a recording, and say how near the result is.

        Args:
            audio: any rate and number of channels.
            out: a folder for original.wav (at the codec's rate), reconstruction.wav, spectrograms.png and metrics.json;
                without it the reconstruction alone is the result.
        """
        wave, notes = self._prepared(audio)
        made = self.wave(self.codes(wave))[:, : wave.shape[1]]
        rows = [self._compared(wave[c], made[c]) for c in range(wave.shape[0])]
        metrics = {name: value for name in rows[0] if not math.isnan(value := _mean([row[name] for row in rows]))}
        metrics["bits_per_second"] = self.bits_per_second * wave.shape[0]
        if out is None:
            return Result(Audio(made, self.config.rate, audio.name), metrics, notes)
        if out.exists() and not out.is_dir():
            raise InputError(f"'{out}' is a file: give a folder")
        shown = {"original": wave[0], "reconstruction": made[0]}
        picture = spectrograms(shown, self.config.rate, "spectrograms", "", kind="png")
        files = {
            "original.wav": encode_audio(Audio(wave, self.config.rate), ".wav"),
            "reconstruction.wav": encode_audio(Audio(made, self.config.rate), ".wav"),
            "spectrograms.png": picture.content,
            "metrics.json": json.dumps(metrics, indent=1).encode() + b"\n",
        }
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_path(out / name) as temporary:
                temporary.write_bytes(content)
        return Result(out, metrics, notes)

    def _compared(self, real: Float[Tensor, " n"], fake: Float[Tensor, " n"]) -> dict[str, float]:
        """Distances of one pair, `nan` where one cannot be had."""
        rate, distance = self.config.rate, MelDistance(self.config.rate)
        voiced = voiced_frames(real, rate)
        values = {
            "mel_distance": float(distance(real, fake)),
            "mel_distance_voiced": float(distance(real, fake, voiced)) if voiced.any() else math.nan,
            "stft_distance": float(stft_distance(real, fake)),
            "si_sdr": float(si_sdr(real, fake)),
            "stoi": stoi(real, fake, rate),
        }
        if self.config.evaluation.pesq:
            values["pesq"] = pesq(real, fake, rate)
        return values

    def inspect(self, audio: Sequence[Audio] = (), *, out: Path | None = None) -> Result:
        """Use of every codebook, energy that each level and group explains, bit rate with and without entropy coding.

        Args:
            audio: measured on these recordings; without any, on what was seen of the training data.
            out: an HTML page (or .json); without it the rows are the result.
        """
        self._needs_codebooks()
        counts, energy, notes = self.counts.cpu(), self.energy.cpu(), list[str]()
        source = "the training data"
        if audio:
            waves = []
            for item in audio:
                wave, said = self._prepared(item)
                waves += list(wave)
                notes += said
            counts, energy = self._surveyed(waves)
            source = f"{len(audio)} recording{'s' if len(audio) > 1 else ''}"
        if not int(counts.sum()):
            raise InputError("this run has not surveyed any data: give recordings to inspect it on")
        rows = self._rows(counts, energy)
        report = self._rates(counts) | {"measured_on": source}
        if out is None:
            return Result(rows, report, notes)
        if out.suffix == ".json":
            content = json.dumps({"codebooks": rows, **report}, indent=1).encode() + b"\n"
        else:
            content = codebook_page(self.card.title, rows, report, codebook_picture(counts, energy)).encode()
        with atomic_path(out) as temporary:
            temporary.write_bytes(content)
        return Result(out, report, notes)

    def _rows(
        self, counts: Int64[Tensor, "books size"], energy: Float[Tensor, "levels_and_one groups"]
    ) -> list[dict[str, Any]]:
        groups = energy.shape[1]
        total = energy[0].sum().clamp(min=1e-12)
        return [
            {
                "level": book // groups + 1,
                "group": book % groups + 1,
                "perplexity": float(perplexity(counts[book])),
                "dead_codes": int((counts[book] == 0).sum()),
                "bits": float(entropy_bits(counts[book])),
                "energy_explained": float(
                    (energy[book // groups, book % groups] - energy[book // groups + 1, book % groups]) / total
                ),
            }
            for book in range(counts.shape[0])
        ]

    def _rates(self, counts: Int64[Tensor, "books size"]) -> dict[str, Any]:
        frames = self.config.rate / self.hop
        return {
            "frames_per_second": frames,
            "bits_per_second": self.bits_per_second,
            "bits_per_second_entropy_coded": frames * float(entropy_bits(counts).sum()),
        }

    # -- surveying and evaluating ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def _surveyed(
        self, waves: Sequence[Float[Tensor, " _"]]
    ) -> tuple[Int64[Tensor, "books size"], Float[Tensor, "levels_and_one groups"]]:
        """Counts of the codes, and mean energy of each group before the first and after each level."""
        groups = self.energy.shape[1]
        counts = torch.zeros_like(self.counts, device="cpu")
        left, frames = torch.zeros(self.energy.shape, dtype=torch.float64), 0
        for wave in waves:
            z = self.encoder(pad_to_multiple(wave, self.hop).to(self.device)[None, None])[0].t()
            made = self.quantizer(z, learn=False)
            counts += code_counts(made.codes, self.size).cpu()
            residuals = torch.cat([z[None], z[None] - self.quantizer.decode_levels(made.codes)])
            left += residuals.reshape(*residuals.shape[:-1], groups, -1).square().sum((1, 3)).double().cpu()
            frames += z.shape[0]
        return counts, (left / max(frames, 1)).float()

    def survey(self, data: Splits, files: int) -> None:
        """Fill the tables that entropy coding and `inspect` use, from at most `files` of the training recordings."""
        if not self.books:
            return
        counts, energy = self._surveyed([_mono(row, self.config.rate) for row in _spread(data.train, files)])
        self.counts.copy_(counts)
        self.energy.copy_(energy)

    @torch.inference_mode()
    def evaluate(self, data: Splits) -> dict[str, float]:
        """Means over test recordings; `unseen_` those of languages that the training data do not hold."""
        test = data.test
        known = set(_languages(data.train))
        names = _languages(test) if known else []
        seen, unseen = test, None
        if known and set(names) - known:
            seen = test.select([i for i, name in enumerate(names) if name in known])
            unseen = test.select([i for i, name in enumerate(names) if name not in known])
        settings = self.config.evaluation
        metrics = self._measured(_spread(seen, settings.files))
        if unseen is not None:
            metrics |= {f"unseen_{k}": v for k, v in self._measured(_spread(unseen, settings.unseen_files)).items()}
        quantizer = self.quantizer
        if self.books:
            metrics |= {
                "bits_per_second": self.bits_per_second,
                "table_parameters": float(quantizer.table_parameters),
                "search_macs": float(quantizer.search_macs),
                "sequential_steps": float(quantizer.sequential_steps),
            }
        return metrics

    def _measured(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        if not rows:
            raise InputError("the data set has no test recordings: give a larger one")
        found: list[dict[str, float]] = []
        counts = torch.zeros_like(self.counts, device="cpu")
        error = spread = 0.0
        for row in rows:
            wave = _mono(row, self.config.rate)
            z = self.encoder(pad_to_multiple(wave, self.hop).to(self.device)[None, None]).transpose(1, 2)
            made = self.quantizer(z, learn=False)
            fake = self.decoder(made.values.transpose(1, 2))[0, 0, : wave.numel()].float().cpu()
            found.append(self._compared(wave, fake))
            error += float((z - made.values).square().sum())
            spread += float((z - z.mean((0, 1))).square().sum())
            if self.books:
                counts += code_counts(made.codes[0], self.size).cpu()
        metrics = {name: _mean([row[name] for row in found]) for name in found[0]}
        if self.books:
            metrics |= {
                "latent_error": error / max(spread, 1e-12),
                "perplexity": float(perplexity(counts).mean()),
                "perplexity_least": float(perplexity(counts).min()),
                "codes_used": float(used_share(counts).mean()),
                "bits_per_second_coded": self._rates(counts)["bits_per_second_entropy_coded"],
            }
        return metrics


def _refuse_not_finite(audio: Audio) -> None:
    bad = int((~torch.isfinite(audio.samples)).sum())
    if bad:
        raise InputError(f"'{audio.name}' has {bad} samples that are not finite (NaN or infinite): repair it first")


def _parsed(text: str) -> dict[str, Any]:
    try:
        held = json.loads(text)
    except json.JSONDecodeError:
        raise InputError("this is no token file: give the JSON that `encyclo encode` wrote") from None
    if not isinstance(held, dict):
        raise InputError("this is no token file: give the JSON that `encyclo encode` wrote")
    return held


def _mean(values: Sequence[float]) -> float:
    """Mean of what could be measured."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _spread(rows: Any, count: int | None) -> list[Mapping[str, Any]]:
    """At most `count` rows, spread evenly (of a stream the first ones)."""
    if not hasattr(rows, "__len__"):
        return list(islice(rows, count if count is not None else 1000))
    total = len(rows)
    if count is None or count >= total:
        return [rows[i] for i in range(total)]
    return [rows[int((i + 0.5) * total / count)] for i in range(count)]


def _languages(rows: Any) -> list[str]:
    """The column `language`, or nothing where there is none."""
    if not hasattr(rows, "column_names") or "language" not in (rows.column_names or []) or not hasattr(rows, "__len__"):
        return []
    return [str(name) for name in rows["language"]]


def _mono(row: Mapping[str, Any], rate: int) -> Float[Tensor, " n"]:
    """First channel of a row's recording at `rate`."""
    return read_audio(row["audio"], rate).samples[0]
