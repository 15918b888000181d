"""`vla data info` of a store of visual questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vla.datasets.vqa import Split, VqaStore

SPLITS: tuple[Split, ...] = ("train", "held-out")


def describe_vqa(store: VqaStore) -> Iterator[str]:
    """The lines of a summary: items, images, splits, sources, and the number of questions of each kind."""
    kinds = {split: Counter(question.kind for question in store.questions(split)) for split in SPLITS}
    total = kinds["train"] + kinds["held-out"]
    yield f"{store.path}: {len(store)} items with {total.total()} questions"
    yield "  " + ", ".join(f"{split}: {len(store.split(split))} items" for split in kinds)
    size = sum(store.folder.sizes().values())
    cameras = ", ".join(store.cameras)
    most = "up to " if store.smaller else ""
    yield f"  {size / 1e6:.1f} MB; images {most}{store.width}x{store.height} as {store.codec} from {cameras}"
    for source, count in store.sources.most_common():
        yield f"  {count} items from {source or 'an unnamed source'}"
    yield f"    {'questions':24}{'train':>10}{'held-out':>10}"
    for kind, _ in total.most_common():
        yield f"    {kind:24}{kinds['train'][kind]:>10}{kinds['held-out'][kind]:>10}"
