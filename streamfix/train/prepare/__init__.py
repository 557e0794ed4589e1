"""`prepare_faces`: photos and videos become folders of aligned faces that the trainers read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamfix.errors import InputError
from streamfix.faces.detect import load_detector
from streamfix.train.prepare.choose import decide
from streamfix.train.prepare.index import write_index
from streamfix.train.prepare.options import Options
from streamfix.train.prepare.scan import find_sources, scan
from streamfix.train.prepare.store import Record, Store

__all__ = ["Options", "Progress", "Summary", "prepare_faces"]


@dataclass(slots=True)
class Summary:
    """What a folder of faces holds. known: sources that an earlier run had done already. dropped: by reason.

    by_embedding: whether people were told apart, not files. nearest: see choose.nearest.
    """

    sources: int = 0
    known: int = 0
    unreadable: int = 0
    frames: int = 0
    equal: int = 0
    found: int = 0
    train: int = 0
    val: int = 0
    people: int = 0
    by_embedding: bool = False
    nearest: float | None = None
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        """Faces in train and val."""
        return self.train + self.val


Progress = Callable[[int, int, Record], None]
"""Called with sources done, sources in all, and what is known of the one at work."""


def prepare_faces(
    inputs: Sequence[Path], out: Path, options: Options | None = None, *, progress: Progress | None = None
) -> Summary:
    """Make `out`/train and `out`/val of the faces in photos and videos, with index.csv and contact sheets.

    inputs: files, and folders with all below them. A further run looks only at what is new or has changed, adds to what is there,
    and leaves out what was deleted from the folders by hand. Raises InputError where there is nothing to read or no face is
    good enough, UsageError where `out` belongs to something else or was chosen by other settings, OutputError.
    """
    options = options or Options()
    options.check()
    sources = find_sources(list(inputs), out)
    detector = load_detector(options.detector, embedding=options.embedding, embedding_norm=options.embedding_norm)
    store = Store(out, options.settings(detector.name))
    known = 0
    for number, path in enumerate(sources):
        record = store.record(path)
        known += record is not None
        if record is None:
            record = scan(
                path,
                detector,
                store,
                options,
                lambda r, n=number: progress and progress(n, len(sources), r),  # type: ignore[misc]
            )
        if progress is not None:
            progress(number + 1, len(sources), record)
    summary = _settle(store, options, known)
    if not summary.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary.dropped.most_common())
        raise InputError(
            f"none of {summary.found} faces is kept ({reasons}); see dropped.png in {out}, and loosen what is too strict"
            if summary.found
            else f"no face was found in {summary.sources} files, of which {summary.unreadable} cannot be read"
        )
    return summary


def _settle(store: Store, options: Options, known: int) -> Summary:
    """Decide about the faces of all runs, put their pictures where they belong, and write index and sheets."""
    records, lying = store.records(), store.pictures()
    verdict = decide(records, lying, same=options.same, val=options.val)
    for name, place in lying.items():
        store.move(name, place, verdict.places.get(name, "spare"))
    write_index(store.root, records, verdict)
    placed = Counter(verdict.places.values())
    return Summary(
        sources=len(records),
        known=known,
        unreadable=sum(bool(r.error) for r in records),
        frames=sum(r.frames for r in records),
        equal=sum(r.equal for r in records),
        found=sum(len(r.faces) for r in records),
        train=placed["train"],
        val=placed["val"],
        people=len(set(verdict.identities.values())),
        by_embedding=verdict.by_embedding,
        nearest=verdict.nearest,
        dropped=Counter(filter(None, (verdict.reason(f) for r in records for f in r.faces))),
    )
