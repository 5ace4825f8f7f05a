"""Builds data/prompts: what a text-to-image teacher is asked to draw where a student is distilled on its own samples.

    python -m experiments.datasets.build_prompts --out data/prompts

general.txt: scenes put together from lists of things, places, light and styles, as people ask for them, no two alike. They are
for any model of photographs and paintings. emoji.txt: the captions of data/emoji that are trained on, for the shipped teacher.
"""

import argparse
import random
from pathlib import Path

from common.data.emoji import load_emoji
from common.runtime.files import write_text

COUNT = 4000
UNKNOWN = ("Flags", "People & Body", "Symbols")  # to the shipped teacher
BEINGS = """
an old fisherman|a young dancer|a street musician|a chef|a blacksmith|an astronaut|a violinist|a girl with a red scarf|a boy
with a kite|two friends|a family of four|a beekeeper|a potter|a mountaineer|a librarian|a nurse|a cyclist|a gardener|a knight|a
shepherd|a tabby cat|a border collie|a pair of horses|a red fox|a barn owl|a brown bear|a flock of geese|a humpback whale|a sea
turtle|an elephant with her calf|a snow leopard|a kingfisher|a hedgehog|a peacock|a school of small silver fish|a honey bee|a
green tree frog|a herd of reindeer|a sleepy kitten|a wet otter
"""
THINGS = """
a wooden rowing boat|a steam locomotive|a yellow taxi|a vintage motorcycle|a hot air balloon|a sailing ship|a bicycle with a
basket|a lighthouse|a stone bridge|a windmill|a glass greenhouse|a small chapel|a castle on a rock|a farmhouse|a row of narrow
houses|a modern concrete museum|a tea house|a market stall full of fruit|a bowl of ramen|a loaf of sourdough bread|a slice of
cherry pie|a cup of coffee|a plate of oysters|a chessboard|an open book|a brass telescope|a grand piano|a pocket watch|a pair of
leather boots|a bouquet of tulips|a bonsai tree|a sunflower|a field of lavender|an apple tree in blossom|a waterfall|a frozen
lake|a volcano|a chain of sand dunes|a spiral staircase|a neon sign
"""
DOING = """
in close-up|in the middle of the street|under a large tree|reflected in a puddle|seen from far above|seen from
below|half hidden by leaves|covered in snow|behind a window|in front of a painted wall|on a wooden table|at the edge of the
water|in the rain|surrounded by fog|beside a campfire|among wild flowers|in an empty room|on a rooftop|in a crowd
"""
PLACES = """
in a harbour town|in the old town of Lisbon|on a Norwegian fjord|in a bamboo forest|in the Scottish highlands|on a tropical
beach|in a desert canyon|in a big city|in a quiet suburb|in a Japanese garden|in the Alps|on a prairie|in a harvest field|in a
workshop|in a kitchen|in a library|at a railway station|at a night market|in a birch forest|on the surface of the moon
"""
LIGHT = """
at dawn|at noon|in the golden hour|at dusk|by moonlight|by candlelight|under a stormy sky|in soft overcast light|in hard
sunlight|with long shadows|lit from behind|under street lamps
"""
STYLES = """
photograph, 35 mm|photograph, shallow depth of field|macro photograph|black and white photograph|aerial photograph|long
exposure|oil painting|watercolour|charcoal drawing|pencil sketch|linocut print|Japanese woodblock print|poster of the 1930s|
pixel art|isometric illustration|children's book illustration|paper collage|stained glass|low poly 3D render|clay animation
"""


def listed(text: str) -> list[str]:
    """The entries of a list as it stands above."""
    return [entry.strip() for entry in " ".join(text.split()).split("|")]


def general_prompts(count: int) -> list[str]:
    """Prompts that differ from each other, the same at each call."""
    draw = random.Random(0)
    beings, things, doing, places, light, styles = map(listed, (BEINGS, THINGS, DOING, PLACES, LIGHT, STYLES))
    found: dict[str, None] = {}
    while len(found) < count:
        words = [draw.choice(beings if draw.random() < 0.5 else things)]
        words += [draw.choice(doing)] * (draw.random() < 0.6) + [draw.choice(places)] * (draw.random() < 0.7)
        prompt = " ".join(words) + (f" {draw.choice(light)}" if draw.random() < 0.5 else "")
        prompt += f", {draw.choice(styles)}" if draw.random() < 0.7 else ""
        found[prompt] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/prompts"))
    folder = parser.parse_args().out
    for name, prompts in {
        "general": general_prompts(COUNT),
        "emoji": load_emoji("data/emoji", "train", UNKNOWN).captions,
    }.items():
        write_text(folder / f"{name}.txt", "\n".join(prompts) + "\n")
        print(f"{folder / name}.txt: {len(prompts):,} prompts")


if __name__ == "__main__":
    main()
