"""Search of a local corpus by BM25."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from seqtune.errors import SeqtuneError
from seqtune.rollout.tools import Answer

WORDS = r"(?u)\b\w+\b"
"""What a word is; one letter or digit is one."""


class Corpus:
    """`corpus(queries) -> answers`: the best passages, one a line, the best first; equally good ones as in the file.

    Args:
        path: jsonl (`text` and perhaps `title` on each line) or txt (a passage a paragraph).
        passages: Passages a result has at most.

    Raises:
        SeqtuneError: There is no such file, it has no passage, a line of it is no passage, or bm25s is not installed.
    """

    def __init__(self, path: str, *, passages: int) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise SeqtuneError(
                "the tool 'search' needs bm25s, which is not installed",
                "rollout.tools",
                "pip install 'seqtune[search]'",
            ) from error
        self.texts, self._passages = read(Path(path).expanduser()), passages
        self._split: Any = bm25s.tokenize
        words = self._words([text.lower() for text in self.texts])
        self._index = bm25s.BM25()
        self._index.index(words, show_progress=False)

    def _words(self, texts: list[str]) -> list[list[str]]:
        found: list[list[str]] = self._split(
            texts, token_pattern=WORDS, stopwords=[], return_ids=False, show_progress=False
        )
        return found

    def __call__(self, queries: list[str]) -> list[Answer]:
        return [self._answer(query) for query in queries]

    def _answer(self, query: str) -> Answer:
        [words] = self._words([query.lower()])
        if not words:
            return Answer("error: the query has no word", failed=True)
        scores = self._index.get_scores(words)
        best = [n for n in np.argsort(-scores, kind="stable")[: self._passages] if scores[n] > 0]
        return Answer("\n".join(self.texts[n] for n in best) or "nothing found")


def read(path: Path) -> list[str]:
    """The passages of a file, each as one line.

    Raises:
        SeqtuneError: There is no such file, it has no passage, or a line of it is no passage.
    """
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SeqtuneError(
            f"the corpus cannot be read: {error}", f"{path}", "rollout.tools.search.path=FILE"
        ) from error
    if path.suffix == ".jsonl":
        lines = enumerate(whole.split("\n"), start=1)  # `splitlines` would also cut at U+2028 inside a text
        found = [_passage(line, path, n) for n, line in lines if line.strip()]
    else:
        found = [" ".join(part.split()) for part in whole.split("\n\n") if part.strip()]
    if not found:
        raise SeqtuneError("the corpus has no passage", f"{path}", "a line of jsonl or a paragraph of txt is one")
    return found


def _passage(line: str, path: Path, number: int) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SeqtuneError(f"not JSON: {error}", f"{path}:{number}") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise SeqtuneError(
            "a passage has a field 'text'",
            f"{path}:{number}",
            '{"title": "a title if you like", "text": "the passage"}',
        )
    title = row.get("title")
    return " ".join((f"{title}: {text}" if title else text).split())
