"""Several sources drawn from by weight while training reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seqtune.config.base import Spec


class SourceSpec(Spec):
    """Local files that are read as a stream."""

    path: str | tuple[str, ...]
    """Local file, folder, glob, or a list of them: jsonl, json, csv, parquet, arrow, txt (also .gz). Files of jsonl are
    read from the middle; of others what was read before is read again when a run is resumed."""
    weight: float = Field(1.0, gt=0)
    """Share of what is drawn, relative to the other sources."""
    format: Literal["text", "prompt_completion", "messages"] = "text"
    """What an example holds; `seqtune list formats` describes each."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Where the format's fields are found: `{prompt: question, completion: answer}`."""
    chat: bool = False
    """Render prompts and completions as user and assistant turns of the tokenizer's chat template."""
    text_by: Literal["paragraph", "line", "file"] = "paragraph"
    """What one example of a txt file is; paragraphs are set apart by blank lines."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the source at most; the others then share its weight. None sets no bound."""


class MixtureSpec(Spec):
    """Sources drawn from by weight and read as a stream: nothing is loaded whole, and training may begin at once."""

    name: Literal["mixture"]
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    """What is drawn from."""
    unit: Literal["tokens", "documents"] = "tokens"
    """What the weights are shares of."""
    stop: Literal["cycle", "first_exhausted", "all_exhausted"] = "cycle"
    """When the data ends: never (a source that ends begins again), when the first source ends, or when every source has
    ended once."""
    shuffle: int = Field(4096, ge=1)
    """Rows of a source that are read together and shuffled; 1 keeps the order of the files."""
    seed: int = Field(0, ge=0)
    """Seed of the shuffles."""
    on_error: Literal["error", "skip"] = "error"
    """What a bad row does: stop with its file and line, or be counted in the report and left out."""
    eval_path: str | tuple[str, ...] | None = None
    """Held-out examples, read as the first source is."""

    @property
    def format(self) -> Literal["text", "prompt_completion", "messages"]:
        """What a held-out example holds."""
        return self.sources[0].format

    @property
    def chat(self) -> bool:
        """Whether held-out prompts are rendered as chat turns."""
        return self.sources[0].chat

    @property
    def eval_size(self) -> int:
        """Nothing is held out of a stream."""
        return 0
