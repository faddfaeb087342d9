"""Models and tokenizers from a spec: the hub, a folder, or the tiny one made here. Only safetensors are read."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from seqtune import hub
from seqtune.config.axes import TinyModelSpec
from seqtune.errors import SeqtuneError
from seqtune.models import rope, tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seqtune.config.axes import ModelSpec
    from seqtune.config.spec import PeftSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_device() -> torch.device:
    """Where this process computes: its own accelerator (by `LOCAL_RANK` under a launcher), or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def resolve_dtype(asked: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights. `auto`: bfloat16 on an accelerator that has it, float32 otherwise."""
    if asked != "auto":
        return DTYPES[asked]
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def load_model(
    spec: ModelSpec | TinyModelSpec, *, device: torch.device | str | None = None, folder: Path | None = None
) -> PreTrainedModel:
    """The causal language model of a spec, in eval mode.

    Args:
        spec: Which model, in which dtype and with which attention backend.
        device: Where the weights go; None takes `compute_device()`.
        folder: Read the weights from this saved folder instead of `spec.name`; dtype and attention stay the spec's.

    Raises:
        SeqtuneError: The model cannot be found, has no safetensors, needs remote code that is not allowed, has no
            rotary positions that could be changed, or the attention backend cannot run here.
    """
    place = compute_device() if device is None else torch.device(device)
    dtype = resolve_dtype(spec.dtype, place)
    attention = _attention(spec.attention, place, dtype)
    if isinstance(spec, TinyModelSpec) and folder is None:
        return tiny.model(spec, dtype, attention).to(place)
    with _mendable(spec, folder):
        source = _source(spec, folder)
        changed = {}
        if spec.rope is not None:
            changed["config"] = AutoConfig.from_pretrained(**source)
            rope.apply(changed["config"], spec.rope)
        # None is transformers' choice: sdpa, or eager for the architectures that do not have it.
        implementation = None if (spec.attention, attention) == ("auto", "sdpa") else attention
        model = AutoModelForCausalLM.from_pretrained(
            **source, **changed, dtype=dtype, attn_implementation=implementation, use_safetensors=True
        )
    return model.to(place).eval()


def load_tokenizer(spec: ModelSpec | TinyModelSpec, *, folder: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a spec, with a padding token (the end-of-text token when it has none of its own).

    Raises:
        SeqtuneError: It cannot be found, or has no end-of-text token.
    """
    if isinstance(spec, TinyModelSpec) and folder is None:
        return tiny.tokenizer()
    with _mendable(spec, folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**_source(spec, folder, "tokenizer"))
    if tokenizer.eos_token_id is None:
        raise SeqtuneError(
            f"the tokenizer of '{spec.name}' has no end-of-text token, so a model could never learn to stop",
            where="model.tokenizer",
            hint="give a tokenizer that has one: model.tokenizer=NAME",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose ids the model has no embeddings for.

    Raises:
        SeqtuneError: The tokenizer has more tokens than the model.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise SeqtuneError(
            f"the tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings",
            where="model.tokenizer",
            hint="use the tokenizer that came with the model: leave model.tokenizer out",
        )


def count_parameters(spec: ModelSpec | TinyModelSpec, peft: PeftSpec | None = None) -> int:
    """Parameters of a model, counted from its configuration without allocating or reading weights.

    Args:
        spec: The model.
        peft: Count only what this PEFT method would train; None counts all weights.

    Raises:
        SeqtuneError: The configuration cannot be found.
    """
    if isinstance(spec, TinyModelSpec):
        settings: Any = tiny.config(spec)
    else:
        with _mendable(spec, None):
            settings = AutoConfig.from_pretrained(**_source(spec, None))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names it deprecated
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=getattr(spec, "trust_remote_code", False))
        adapter = peft.build() if peft is not None else None
        if adapter is not None:
            from peft import get_peft_model

            model = get_peft_model(model, adapter)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _attention(asked: str, device: torch.device, dtype: torch.dtype) -> str:
    from seqtune_kernels.capability import choose_attention

    try:
        name: str = choose_attention(asked, device, dtype).name
    except ValueError as error:
        raise SeqtuneError(
            str(error), where="model.attention", hint="model.attention=auto, or see `seqtune doctor`"
        ) from error
    return name


def _source(spec: ModelSpec | TinyModelSpec, folder: Path | None, what: str = "model") -> dict[str, Any]:
    """What `from_pretrained` needs to find a model or its tokenizer."""
    if folder is not None or isinstance(spec, TinyModelSpec):
        return {"pretrained_model_name_or_path": str(folder), "trust_remote_code": False, "local_files_only": True}
    name = (spec.tokenizer or spec.name) if what == "tokenizer" else spec.name
    revision = None if what == "tokenizer" and spec.tokenizer else spec.revision
    hub.check_folder(name, f"model.{'tokenizer' if what == 'tokenizer' and spec.tokenizer else 'name'}")
    path = Path(name).expanduser()
    if not path.is_dir():
        hub.settle()
    return {
        "pretrained_model_name_or_path": str(path) if path.is_dir() else name,
        "revision": revision or "main",
        "trust_remote_code": spec.trust_remote_code,
    }


@contextmanager
def _mendable(spec: ModelSpec | TinyModelSpec, folder: Path | None, what: str = "model") -> Iterator[None]:
    """Turn what transformers raises for an unreachable or unfit model into an error that says how to go on."""
    name = str(folder) if folder is not None else spec.name
    where = "model.tokenizer" if what == "tokenizer" and getattr(spec, "tokenizer", None) else "model.name"
    try:
        yield
    except OSError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        ways = [
            "a local folder (model.name=./folder)",
            "unset HF_HUB_OFFLINE to let it be downloaded" if offline else "check the network, the name and HF_TOKEN",
            "model=tiny needs no download",
        ]
        raise SeqtuneError(
            f"the {what} '{name}' is neither a local folder nor reachable: {_first_sentence(error)}",
            where=where,
            hint="; ".join(ways),
        ) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise SeqtuneError(
                f"the {what} '{name}' runs Python code of its own, which is off",
                where=where,
                hint="read that code, then set model.trust_remote_code=true; or take another model",
            ) from error
        raise SeqtuneError(
            f"the {what} '{name}' cannot be loaded: {_first_sentence(error)}",
            where=where,
            hint="it must be a causal language model that this version of transformers knows",
        ) from error


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def positions(model: Any) -> int | None:
    """Tokens a model reads at most; None where its configuration does not say."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a completion: those of the model's generation settings, and the tokenizer's."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [] if own is None else [own]
    return sorted({*own, int(tokenizer.eos_token_id)})
