"""Builds data/music: log-mel spectrograms of Bach's four-part chorales, each played by one of four instruments.

    pip install --no-deps -r experiments/requirements_music.txt
    apt-get install fluid-soundfont-gm                      # or FluidR3_GM.sf2 from elsewhere
    python -m experiments.datasets.build_music --sound-font /usr/share/sounds/sf2/FluidR3_GM.sf2 --out data/music

The scores come with music21. Every piece is played by one instrument, at one tempo and without repeats, and cut into clips
without overlap; every tenth piece of each instrument is held out as the test split. Writes one sheet of clips, in the order of
index.json, which tells for every piece its name, instrument, split, and number of clips. A piece that cannot be
read, and one whose notes another piece has too, is left out and named.
"""

import argparse
import dataclasses
import hashlib
import json
import warnings
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy.signal import resample_poly

from common.audio.spectrogram import Spectrogram
from common.errors import first_line
from common.runtime.files import ROOT

INSTRUMENTS = {"piano": 0, "church organ": 19, "string ensemble": 48, "nylon guitar": 24}  # General MIDI programs
QUARTERS_PER_MINUTE = 90
VELOCITY = 90
OVERSAMPLING = 2  # played at twice the rate and low-passed: the synthesiser does not filter what it interpolates
TEST_EVERY = 10
COLUMNS = 96
QUALITY = 80  # of WebP

Notes = list[tuple[float, float, int]]
"""(start in seconds, end in seconds, MIDI pitch) of each note."""


def read_notes(path: Path) -> Notes:
    """The notes of a score, tied ones as one."""
    from music21 import converter

    second = 60 / QUARTERS_PER_MINUTE
    with warnings.catch_warnings(action="ignore"):
        score = converter.parse(path)
        sounding = score.stripTies().flatten().notes
    notes = [
        (float(note.offset) * second, float(note.offset + note.quarterLength) * second, pitch.midi)
        for note in sounding
        for pitch in note.pitches
    ]
    if not notes:
        raise ValueError("it has no notes")
    return sorted(set(notes))


def play(notes: Notes, program: int, sound_font: Path, rate: int) -> np.ndarray:
    """Mono float32 samples from the first note to the end of the last. A new synthesiser every time: one that has played
    before plays the earlier piece on."""
    from tinysoundfont import Synth

    synth = Synth(gain=-12, samplerate=OVERSAMPLING * rate)
    synth.program_select(0, synth.sfload(str(sound_font)), 0, program)
    changes = sorted([(start, 1, pitch) for start, _, pitch in notes] + [(end, 0, pitch) for _, end, pitch in notes])
    chunks, now = [], 0
    for moment, starts, pitch in changes:  # at one moment the ends come first
        wanted = round(moment * OVERSAMPLING * rate) - now
        if wanted:
            chunks.append(np.frombuffer(synth.generate(wanted), np.float32).reshape(-1, 2).mean(1))
            now += wanted
        if starts:
            synth.noteon(0, pitch, VELOCITY)
        else:
            synth.noteoff(0, pitch)
    return resample_poly(np.concatenate(chunks), 1, OVERSAMPLING).astype(np.float32)


def read_pieces() -> tuple[list[tuple[str, Notes]], dict[str, str]]:
    """Name and notes of each chorale, and why the others were left out."""
    from music21 import corpus

    pieces, left_out, known = [], {}, {}
    for path in sorted(corpus.getComposer("bach")):
        if path.suffix == ".rntxt":  # an analysis in words, of a piece that is there as a score
            continue
        try:
            notes = read_notes(path)
        except Exception as error:  # music21 raises many kinds for a score that it cannot read
            left_out[path.name] = first_line(error)
            continue
        digest = hashlib.sha256(repr(notes).encode()).hexdigest()
        if digest in known:
            left_out[path.name] = f"the same notes as {known[digest]}"
            continue
        known[digest] = path.name
        pieces.append((path.name, notes))
    return pieces, left_out


def write_sheet(images: torch.Tensor, path: Path) -> None:
    """Images (count, 1, height, width), row by row, as one grey picture."""
    count, _, height, width = images.shape
    rows = -(-count // COLUMNS)
    sheet = torch.zeros(rows * COLUMNS, height, width, dtype=torch.uint8)
    sheet[:count] = images[:, 0]
    sheet = sheet.reshape(rows, COLUMNS, height, width).transpose(1, 2).reshape(rows * height, COLUMNS * width)
    Image.fromarray(sheet.numpy()).save(path, quality=QUALITY, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound-font", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"))
    parser.add_argument("--out", type=Path, default=Path("data/music"))
    arguments = parser.parse_args()
    if not arguments.sound_font.is_file():
        raise SystemExit(f"build_music: there is no {arguments.sound_font}; install fluid-soundfont-gm.")
    spectrogram: Spectrogram = hydra.utils.instantiate(OmegaConf.load(ROOT / "conf/teacher/small_uag.yaml").sound)
    pieces, left_out = read_pieces()
    images, entries = [], []
    for index, (name, notes) in enumerate(pieces):
        if name.endswith(".krn"):
            left_out[name] = "its encoder reserves the rights to derived formats"
            continue
        instrument = list(INSTRUMENTS)[index % len(INSTRUMENTS)]
        sound = play(notes, INSTRUMENTS[instrument], arguments.sound_font, spectrogram.sample_rate)
        clips = len(sound) // spectrogram.samples
        if not clips:
            left_out[name] = "shorter than a clip"
            continue
        cut = torch.from_numpy(sound[: clips * spectrogram.samples]).reshape(clips, spectrogram.samples)
        images.append(spectrogram.images(cut))
        split = "train" if (index // len(INSTRUMENTS) + 1) % TEST_EVERY else "test"
        entries.append({"piece": name, "instrument": instrument, "split": split, "clips": clips})
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_sheet(torch.cat(images), arguments.out / "clips.webp")
    document = {
        "columns": COLUMNS,
        "picture": "clips.webp",
        "spectrogram": dataclasses.asdict(spectrogram),
        "left_out": left_out,
        "entries": entries,
    }
    (arguments.out / "index.json").write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    for split in ("train", "test"):
        count = sum(entry["clips"] for entry in entries if entry["split"] == split)
        hours = count * spectrogram.samples / spectrogram.sample_rate / 3600
        print(f"{split}: {count} clips, {hours:.2f} h of {sum(entry['split'] == split for entry in entries)} pieces")
    print(f"{len(left_out)} pieces left out; {arguments.out}")


if __name__ == "__main__":
    main()
