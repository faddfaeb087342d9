"""A reward model: a sequence classifier with one output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from seqtune.errors import SeqtuneError

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter_config.json"


class RewardModel:
    """`reward(prompts, completions)`: the score a saved reward model gives prompt and completion, unbounded.

    Prompt and completion are tokenised one after the other and an end-of-sequence token follows, as a reward stage
    tokenises pairs of strings; the score is read at the last token. It depends on the row alone up to rounding.

    Args:
        path: Folder with the weights and tokenizer of a reward model (`checkpoints/<stage>/final` of a run), or the
            name of a sequence classifier on the hub.
        revision: Branch, tag or commit of a hub name; None is the default branch.
        batch_size: Rows scored together.
        max_length: Tokens of a row that are read; the beginning of a longer one is cut off. None cuts nothing.

    Raises:
        SeqtuneError: There is no such model, it is an adapter, has several outputs, or no causal model as its base.
    """

    def __init__(self, path: str, *, revision: str | None, batch_size: int, max_length: int | None) -> None:
        folder = Path(path).expanduser()
        if (folder / ADAPTER).is_file():
            raise SeqtuneError(
                f"'{path}' holds an adapter, not a whole reward model",
                where="reward.path",
                hint="train the reward model with peft=full, or merge the adapter into its base and save that",
            )
        name = str(folder) if folder.is_dir() else path
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
            model = AutoModelForSequenceClassification.from_pretrained(
                name, revision=revision or "main", use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise SeqtuneError(
                f"the reward model '{path}' is neither a folder with a sequence classifier nor reachable: "
                + str(error).split("\n")[0],
                where="reward.path",
                hint="give checkpoints/<stage>/final of a run whose objective is 'reward', or a hub name",
            ) from error
        if model.config.num_labels != 1:
            raise SeqtuneError(
                f"'{path}' has {model.config.num_labels} outputs; a reward model has one",
                where="reward.path",
                hint="a classifier is no reward model; give one with a single score",
            )
        if not hasattr(model, "score"):
            raise SeqtuneError(
                f"'{path}' is a {type(model).__name__}, which does not score the last token",
                where="reward.path",
                hint="give a classifier whose base is a causal language model",
            )
        self._device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._batch_size, self._max_length = batch_size, max_length

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float | None]:
        rows = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        found: list[float | None] = [None] * len(rows)
        for start in range(0, len(rows), self._batch_size):
            batch = order[start : start + self._batch_size]
            for row, value in zip(batch, self._scores([rows[row] for row in batch]).tolist(), strict=True):
                found[row] = value
        return found

    def _ids(self, prompt: str, completion: str) -> list[int]:
        head = self._tokenizer(prompt)["input_ids"]
        end = self._tokenizer.eos_token_id
        if head and head[-1] == end:
            head = head[:-1]
        ids = [
            *head,
            *self._tokenizer(completion, add_special_tokens=False)["input_ids"],
            *([end] if end is not None else []),
        ]
        return ids[-self._max_length :] if self._max_length else ids

    @torch.no_grad()
    def _scores(self, rows: list[list[int]]) -> Tensor:
        """[B] scores; padded on the right, read at the last token, in fp32."""
        longest = max(map(len, rows))
        pad = self._model.config.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=self._device)
        sizes = torch.tensor([len(row) for row in rows], device=self._device)
        mask = (torch.arange(longest, device=self._device) < sizes[:, None]).long()
        hidden = self._model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, L, H]
        last: Tensor = hidden[torch.arange(len(rows), device=self._device), sizes - 1]
        scores: Tensor = self._model.score(last).squeeze(-1).float()
        return scores
