"""Makes the pack `prompts`: telephone prompts with transcripts in five languages, from the Debian packages
asterisk-core-sounds-LANGUAGE, -g722 (16 kHz) and, to check that they are the same recordings, -wav (8 kHz)."""

import gzip
import io
import re
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from _lib import deb, fixed_splits, write_pack

from encyclo.data.audio import read_audio

VERSION = "1.6.1-1"
LANGUAGES = ("en", "es", "fr", "it", "ru")
RATE = 16_000
BITS_PER_SECOND = 20_000
LONGEST = 15.0  # seconds


def transcripts(language: str) -> dict[str, str]:
    """Name -> what is said; without tones and silence, whose descriptions stand in brackets."""
    package = f"asterisk-core-sounds-{language}"
    path = deb(package, VERSION) / "usr" / "share" / "doc" / package / f"core-sounds-{language}.txt.gz"
    text = gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    found = dict(re.findall(r"^([^;:\s][^:\n]*):[ \t]*(\S.*?)\s*$", text, re.MULTILINE))
    return {name: " ".join(said.split()) for name, said in found.items() if not re.fullmatch(r"[\[(<].*[\])>]", said)}


def recordings(language: str, form: str) -> dict[str, Path]:
    """Name -> file."""
    root = deb(f"asterisk-core-sounds-{language}-{form}", VERSION) / "usr" / "share" / "asterisk" / "sounds"
    voice = next(root.iterdir())
    return {path.relative_to(voice).with_suffix("").as_posix(): path for path in voice.rglob(f"*.{form}")}


def loudness(samples: np.ndarray, rate: int) -> np.ndarray:
    """Log energy in frames of 20 ms: alike for one recording at two rates, whatever filters it went through."""
    step = rate // 50
    frames = samples[: len(samples) // step * step].reshape(-1, step)
    return np.log(np.square(frames).mean(axis=1) + 1e-6)


def opus(samples: np.ndarray) -> bytes:
    """The recording as an Ogg Opus file."""
    stream = io.BytesIO()
    # 'bitexact' leaves out the random serial number and the library's version: the same bytes at every run.
    with av.open(stream, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        options = {"application": "voip", "vbr": "on", "frame_duration": "20", "compression_level": "10"}
        track = container.add_stream("libopus", rate=RATE, options=options)
        track.layout = "mono"
        track.bit_rate = BITS_PER_SECOND
        values = (samples * 32767).round().clip(-32768, 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


def main() -> None:
    rows: list[tuple[bytes, str, str, str]] = []
    silent = long = 0
    seconds, long_seconds = 0.0, 0.0
    alike: list[float] = []
    for language in LANGUAGES:
        said, narrow = transcripts(language), recordings(language, "wav")
        for name, path in sorted(recordings(language, "g722").items()):
            if name not in said or path.stat().st_size == 0:
                silent += 1
                continue
            samples = read_audio(path).samples[0].numpy()
            if len(samples) / RATE > LONGEST:
                long, long_seconds = long + 1, long_seconds + len(samples) / RATE
                continue
            first, second = loudness(read_audio(narrow[name]).samples[0].numpy(), 8000), loudness(samples, RATE)
            assert abs(len(first) - len(second)) <= 1, (language, name)
            length = min(len(first), len(second))
            if length >= 10:
                alike.append(float(np.corrcoef(first[:length], second[:length])[0, 1]))
            seconds += len(samples) / RATE
            rows.append((opus(samples), said[name], language, name))
    print(f"loudness of 8 and 16 kHz correlates: median {np.median(alike):.3f}, lowest {min(alike):.3f}")
    assert np.median(alike) > 0.95
    splits = fixed_splits((row[3] for row in rows), 0.1, 0.1)
    columns = (("audio", pa.binary()), ("text", pa.string()), ("language", pa.string()), ("name", pa.string()))
    tables = {
        split: pa.table(
            {
                column: pa.array([row[index] for row in rows if splits[row[3]] == split], type)
                for index, (column, type) in enumerate(columns)
            }
        )
        for split in ("train", "validation", "test")
    }
    write_pack(
        "prompts",
        views=("audio",),
        tables={(): tables},
        hub_licence="[cc-by-sa-3.0, cc-by-3.0]",
        tasks=("automatic-speech-recognition", "text-to-speech", "audio-classification"),
        languages=LANGUAGES,
        title="Telephone prompts in five languages",
        description=f"The core sounds of the telephone exchange Asterisk, {seconds / 60:.0f} minutes of speech in"
        " all, one voice for each language (English, Mexican Spanish, Canadian French, Italian, Russian), 16 kHz mono,"
        " with transcripts."
        " `name` is the prompt's name, the same in all languages, which stand in the same split; `language` lets one"
        " be held"
        " out.",
        source="https://downloads.asterisk.org/pub/telephony/sounds/",
        package=f"Debian asterisk-core-sounds-{{en,es,fr,it,ru}} and -g722 {VERSION}",
        licence="CC-BY-SA-3.0 (en, es, fr); CC-BY-3.0 (it, ru)",
        licence_url="https://creativecommons.org/licenses/by-sa/3.0/",
        attribution="en, es: (c) 2003-2010 Allison Smith (theivrvoice.com), contributions by Digium, Inc.; fr: (c)"
        " 2006-2008"
        " June Wallack (junewallack.com), translated by Clod Patry, Kristopher Lalletti and June Wallack,"
        " contributions by"
        " Digium, Unlimitel and BGM Informatique; it: (c) 2012 Carlo Flora (carloflora.com, segreterietelefoniche.it),"
        " translated by Silvia Petrin; ru: (c) 2010 Maxim Topal (ivrvoice.ru). Changed: decoded from G.722 and coded"
        " anew as"
        " Opus",
        notes=(
            f"Opus, wideband, {BITS_PER_SECOND // 1000} kbit/s, of recordings that were published as G.722: lossy"
            f" twice. 16 kHz"
            " FLAC would take about 160 MB; 16-20 kbit/s is what RFC 6716 (section 2.1.1) names for wideband speech",
            f"{long} recordings of more than {LONGEST:.0f} s ({long_seconds / 60:.0f} minutes) were left out for"
            f" their size, and"
            f" {silent} without transcript or without speech (tones, silence)",
            "transcripts are the publisher's: most Spanish ones lack their accents",
            f"checked against the 8 kHz files of the same names: equal lengths, loudness correlates"
            f" {np.median(alike):.2f}"
            f" (median), {min(alike):.2f} (lowest)",
        ),
    )


if __name__ == "__main__":
    main()
