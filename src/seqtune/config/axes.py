"""The axes every run has and no registry extends: model, data, rollout, train, eval."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from seqtune.config.mixture import MixtureSpec
from seqtune.config.rope import Rope
from seqtune.config.spec import Spec
from seqtune.config.tools import Tool

Format = Literal["text", "prompt_completion", "messages", "preference", "prompt_answer", "groups"]


class ModelSpec(Spec):
    """A Hugging Face causal language model and its tokenizer."""

    name: str = Field(min_length=1)
    """Hub name (`Qwen/Qwen3-4B`) or local folder."""
    revision: str | None = None
    """Hub branch, tag or commit; None takes the default branch."""
    tokenizer: str | None = None
    """Hub name or folder of the tokenizer; None takes the model's own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights. `auto`: bfloat16 on a GPU that has it, float32 otherwise."""
    attention: str = "auto"
    """Attention backend by name, or `auto` for the fastest that can run here; `seqtune doctor` lists them."""
    rope: Rope | None = None
    """Change of the rotary positions for a longer context; None leaves them as they are."""
    trust_remote_code: bool = False
    """Run Python code shipped with the model. Off unless set: it can do anything you can."""


class TinyModelSpec(Spec):
    """A Qwen3-architecture model with random weights and a byte-level tokenizer, made locally without a download."""

    name: Literal["tiny"]
    hidden_size: int = Field(128, ge=8, multiple_of=8)
    """Width of the residual stream."""
    layers: int = Field(4, ge=1)
    """Transformer blocks."""
    heads: int = Field(4, ge=1)
    """Query heads; `hidden_size` is a multiple of it."""
    kv_heads: int = Field(2, ge=1)
    """Key/value heads; `heads` is a multiple of it."""
    intermediate_size: int = Field(384, ge=8)
    """Width of the feed-forward layer."""
    max_positions: int = Field(4096, ge=16)
    """Longest sequence in tokens."""
    rope: Rope | None = None
    """Change of the rotary positions for a longer context; None leaves them as they are."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights. `auto`: bfloat16 on a GPU that has it, float32 otherwise."""
    attention: str = "auto"
    """Attention backend by name, or `auto` for the fastest that can run here; `seqtune doctor` lists them."""


class _DataSpec(Spec):
    eval_size: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0
    """Held-out examples: a count, or a fraction of all (split by `seed`). 0 holds nothing out."""
    seed: int = Field(0, ge=0)
    """Seed of the train/held-out split, of shuffling and of generated problems."""
    chat: bool = False
    """Render prompts (and completions) as user and assistant turns of the tokenizer's chat template."""
    pairs: Literal["best_worst", "all"] = "best_worst"
    """Pairs that groups of scored completions give objectives that learn from pairs: the best with the worst of each
    group, or every two with different scores."""


class DataSpec(_DataSpec):
    """Examples read from local files or the hub."""

    name: str | None = None
    """Dataset on the hub (`openai/gsm8k`, or `openai/gsm8k:main` with a configuration)."""
    path: str | tuple[str, ...] | None = None
    """Local file, folder of a saved dataset, glob, or a list of them: jsonl, json, csv, parquet, arrow, txt (also .gz).
    Read instead of `name` when both are given."""
    format: Format = "text"
    """What an example holds; `seqtune list formats` describes each."""
    columns: dict[str, str | tuple[str | float, ...]] = Field(default_factory=dict)
    """Where the format's fields are found: `{prompt: question, completion: answer}`; `a.b` is the field b of the object
    a. The lists of a group may be gathered: `{completions: [gold, model.text], scores: [1, model.right]}`, where a
    number stands for itself."""
    answer_pattern: str | None = None
    """Regular expression whose first group, searched in the answer column, is the answer (`#### (.+)` for GSM8K)."""
    split: str = "train"
    """Split of a hub or saved dataset."""
    text_by: Literal["paragraph", "line", "file"] = "paragraph"
    """What one example of a txt file is; paragraphs are set apart by blank lines."""
    eval_path: str | tuple[str, ...] | None = None
    """Held-out examples from their own file instead of `eval_size`."""
    limit: int | None = Field(None, ge=1)
    """Read at most this many examples."""
    on_error: Literal["error", "skip"] = "error"
    """What a bad row does: stop with its file and line, or be counted in the report and left out."""


class TemplateMathSpec(_DataSpec):
    """Word and arithmetic problems from parameterised templates, with worked steps and exact answers."""

    name: Literal["template_math"]
    format: Literal["prompt_completion", "preference", "groups"] = "prompt_completion"
    """`prompt_completion`: the worked answer; `preference`: the worked answer against one with a wrong result;
    `groups`: the answer with and without its steps, scored 1, with a wrong result and without the last step, scored
    0."""
    size: int = Field(4096, ge=1)
    """Training problems."""
    eval_size: int = Field(500, ge=0)
    """Held-out problems; none equals a training problem."""
    templates: tuple[str, ...] = ()
    """Names of the templates to draw from; empty means all of them."""
    max_number: int = Field(20, ge=2)
    """Largest number a problem states."""
    careless: float = Field(0.0, ge=0, lt=1)
    """Share of the training completions that leave out the last step and so end with a wrong answer: noisy
    demonstrations, which a reward tells from good ones. The column `answer` and the held-out problems are right."""


class RolloutSpec(Spec):
    """How completions are sampled for policy objectives."""

    name: Literal["transformers", "vllm"] = "transformers"
    """Engine: `transformers` runs anywhere; `vllm` needs the extra `seqtune[vllm]` and a GPU."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampled distribution; log-probs are taken at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus kept, as a probability. Below 1 another policy samples than is trained: refused where a ratio compares
    the two."""
    top_k: int | None = Field(None, ge=1)
    """Most probable tokens kept; None keeps all. A filter like `top_p`."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens a completion has at most."""
    updates: int = Field(1, ge=1)
    """Optimiser steps taken on each batch of rollouts; above 1 the ratio leaves 1 and clipping acts."""
    tools: dict[str, Tool] = Field(default_factory=dict)
    """What the policy may call while it writes, by a name of your choice: mappings with the `name` and the fields of a
    tool. Results count towards `max_new_tokens` and are never trained on."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """Where vLLM runs: inside the training processes, or on its own server."""
    vllm_memory: float = Field(0.3, gt=0, le=1)
    """Fraction of GPU memory a colocated vLLM may take."""

    @model_validator(mode="after")
    def _told_apart(self) -> RolloutSpec:
        for (one, first), (other, second) in combinations(self.tools.items(), 2):
            if first.open == second.open:
                raise ValueError(f"tools '{one}' and '{other}' are both called by {first.open!r}")
        return self


class TrainSpec(Spec):
    """The optimiser, the batch and how often things are written."""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate of AdamW."""
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps; None trains `epochs`."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training data when `max_steps` is None."""
    batch_size: int = Field(8, ge=1)
    """Rows (packed rows, pairs, groups, texts or completions) a process takes in one micro-batch."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per optimiser step: a step takes `batch_size` times this many rows of each process."""
    tokens_per_batch: int | None = Field(None, ge=1)
    """Tokens a micro-batch has at most, shared prefixes counted once; None cuts the step by `batch_size` instead. Only
    memory and speed depend on it: the rows of a step and its gradient do not."""
    warmup: float = Field(0.0, ge=0)
    """Warm-up of the learning rate: below 1 a fraction of all steps, otherwise a number of steps."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """First-moment decay of AdamW."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Second-moment decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: int = Field(0, ge=0)
    """Seed of data order, dropout, adapters and rollouts."""
    log_every: int = Field(1, ge=1)
    """Optimiser steps between rows of metrics.jsonl."""
    save_every: int | None = Field(None, ge=1)
    """Optimiser steps between checkpoints; None keeps only the end of the stage."""
    keep_checkpoints: int = Field(2, ge=1)
    """Most recent checkpoints kept on disk."""
    eval_every: int | None = Field(None, ge=1)
    """Optimiser steps between held-out evaluations of the loss; None evaluates at the start and end of the stage."""


class EvalSpec(Spec):
    """What `seqtune eval` (and the run, between stages) measures on held-out examples."""

    name: Literal["greedy", "pass_at_k", "perplexity"] = "greedy"
    """`greedy`: accuracy of the most probable completion; `pass_at_k`: pass@k and maj@k of samples; or `perplexity`."""
    items: int | None = Field(None, ge=1)
    """Held-out examples used; None uses all."""
    batch_size: int = Field(64, ge=1)
    """Completions generated together."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens a completion has at most."""
    samples: int = Field(1, ge=1)
    """Completions a prompt for `pass_at_k`; 1 for `greedy`."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Values of k reported; each at most `samples`."""
    temperature: float = Field(1.0, gt=0)
    """Of the sampled distribution of `pass_at_k`; 1 for the others."""
    entropy: bool = False
    """Also measure the entropy of each completion's first segment, and the thresholds right and wrong ones give."""
    stop_entropy: float | None = Field(None, ge=0)
    """Bits; a segment of at most this mean entropy ends the thinking of a completion (arXiv 2510.08146). None stops
    nothing."""
    stop_segment: int = Field(32, ge=1)
    """Tokens of a segment."""
    stop_top: int = Field(20, ge=2)
    """Most probable tokens whose entropy is taken; 20 in the paper."""
    stop_text: str = ""
    """What a completion goes on with where its thinking ends, such as `#### `; empty ends it there."""
    seed: int = Field(0, ge=0)
    """Seed of the choice of items, of the samples and of the bootstrap."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Level of the confidence intervals."""
    between_stages: bool = False
    """Also evaluate the untrained model and after each stage of a run."""


def _named(*known: str) -> Any:
    """Pick the spec of a `name` that is `known`, the general one otherwise."""

    def tag(value: Any) -> str:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        return name if name in known else "general"

    return Discriminator(tag)


Model = Annotated[Annotated[TinyModelSpec, Tag("tiny")] | Annotated[ModelSpec, Tag("general")], _named("tiny")]
Data = Annotated[
    Annotated[TemplateMathSpec, Tag("template_math")]
    | Annotated[MixtureSpec, Tag("mixture")]
    | Annotated[DataSpec, Tag("general")],
    _named("template_math", "mixture"),
]
