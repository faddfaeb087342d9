"""Words on the command line to plain values with their origins. The only user of Hydra."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqtune.config.provenance import Composed, ComposedStage, Origin
from seqtune.errors import Problem, SeqtuneError, did_you_mean
from seqtune_cli import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hydra._internal.config_loader_impl import ConfigLoader
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.default_element import ResultDefault
    from hydra.core.override_parser.types import Override


class RecipePackages(SearchPathPlugin):  # type: ignore[misc]  # Hydra is untyped
    """Puts the shipped recipes and every package behind `seqtune.recipes` on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        known = {element.path for element in search_path.get_path()}
        for source in catalogue.sources():
            if f"pkg://{source.module}" not in known:
                search_path.append(source.origin, f"pkg://{source.module}")


@dataclass(frozen=True)
class Word:
    """One override: where it was written, and how Hydra reads it."""

    text: str
    parsed: Override
    origin: Origin
    is_group: bool

    @property
    def key(self) -> str:
        return str(self.parsed.key_or_group)

    def for_hydra(self) -> str:
        """The word so that an unknown key composes too: all unknown keys are reported together by the reader."""
        if self.is_group or self.parsed.is_delete():
            return self.text
        return f"++{self.text.lstrip('+')}"


def compose(words: Sequence[str], recipe: str) -> Composed:
    """Compose a recipe with override words.

    Args:
        words: Hydra override words; those beginning with `stages.NAME.` apply to one stage, the others to all.
        recipe: Name of a recipe, or path of its file.

    Raises:
        SeqtuneError: The recipe does not exist or cannot be parsed, or words are malformed or choose options that do
            not exist; all such words are reported together.
    """
    if RecipePackages not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(RecipePackages)
    with _hydra(recipe) as (loader, name):
        own = _stage_words(loader, name)
        problems: list[Problem] = []
        common: list[Word] = []
        single: dict[str, list[Word]] = {stage: [] for stage in own}
        for text in words:
            stage, rest = _addressed(text)
            if stage is not None and stage not in own:
                problems.append(_unknown_stage(stage, own))
            word = _parse(rest, Origin("command line", word=text), loader, problems)
            if word is not None and (stage is None or stage in own):
                (common if stage is None else single[stage]).append(word)
        staged = {
            stage: [w for text, origin in written if (w := _parse(text, origin, loader, problems))]
            for stage, written in own.items()
        }
        if problems:
            raise SeqtuneError.of(problems)
        chosen = {stage: [*staged[stage], *common, *single[stage]] for stage in own} or {"": common}
        return Composed(recipe, tuple(_compose(loader, name, s, c) for s, c in chosen.items()), tuple(words))


@contextmanager
def _hydra(recipe: str) -> Iterator[tuple[ConfigLoader, str]]:
    """Hydra's loader and the name of the primary config; leaves no global state behind."""
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        file = Path(recipe).expanduser().resolve()
        if not file.is_file():
            raise SeqtuneError(f"there is no recipe file '{recipe}'", where="recipe", hint="`seqtune list recipes`")
        context, name = initialize_config_dir(str(file.parent), version_base="1.3"), file.stem
    else:
        known = catalogue.recipes()
        if recipe not in known:
            raise SeqtuneError(f"there is no recipe '{recipe}'", where="recipe", hint=did_you_mean(recipe, known))
        context, name = initialize_config_module("seqtune_recipes", version_base="1.3"), recipe
    with context:
        try:
            yield GlobalHydra.instance().config_loader(), name
        except (HydraException, OmegaConfBaseException) as error:
            raise SeqtuneError(_first_line(error), where=f"recipe {recipe}") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f":{mark.line + 1}" if mark else ""
            raise SeqtuneError(f"not valid YAML: {_first_line(error)}", where=f"recipe {recipe}{place}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _addressed(text: str) -> tuple[str | None, str]:
    """The stage a word names (`stages.gspo.train.max_steps=5`) and the word without it."""
    sign = text[: len(text) - len(text.lstrip("+~"))]
    key = text[len(sign) :]
    if not key.startswith("stages."):
        return None, text
    stage, _, rest = key.removeprefix("stages.").partition(".")
    return stage, sign + rest


def _unknown_stage(stage: str, own: dict[str, Any]) -> Problem:
    if not own:
        return Problem(f"stages.{stage}: the recipe has no stages", "set by command line", "leave `stages.` out")
    return Problem(f"stages.{stage}: there is no such stage", "set by command line", did_you_mean(stage, own))


def _parse(text: str, origin: Origin, loader: ConfigLoader, problems: list[Problem]) -> Word | None:
    """Read one word; a problem is added and None returned when it cannot be used."""
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        problems.append(
            Problem(
                f"'{text}' is not an override",
                f"set by {origin}",
                "write KEY=VALUE, quoting special characters: 'key=\"a, b\"'",
            )
        )
        return None
    key, value = str(parsed.key_or_group), parsed.value() if not parsed.is_sweep_override() else None
    problem = None
    if parsed.is_sweep_override():
        problem = Problem(
            f"'{text}' asks for several runs", f"set by {origin}", "give one value and start a run for each"
        )
    elif key == "hydra" or key.startswith("hydra."):
        problem = Problem(
            f"'{text}' configures Hydra, which seqtune uses only to compose", f"set by {origin}", "leave it out"
        )
    elif key == "stages":
        problem = Problem(
            "stages are written in the recipe", f"set by {origin}", "stages.NAME.KEY=VALUE changes a value of one"
        )
    elif parsed.package is not None:
        problem = Problem(f"'{text}' moves a group with '@'", f"set by {origin}", f"write {key}=OPTION")
    choices = loader.get_group_options(key) if "." not in key else []
    is_group = bool(choices) and not parsed.is_delete()
    if problem is None and is_group and value not in choices:
        if isinstance(value, str):
            hint = did_you_mean(value, choices)
            problem = Problem(f"{key}: there is no option '{value}'", f"set by {origin}", hint)
        else:
            problem = Problem(
                f"{key}: {value!r} is not the name of an option", f"set by {origin}", f"{key}=NAME or {key}.FIELD=VALUE"
            )
    if problem is not None:
        problems.append(problem)
        return None
    return Word(text, parsed, origin, is_group)


def _compose(loader: ConfigLoader, name: str, stage: str, words: Sequence[Word]) -> ComposedStage:
    last = {word.key: word for word in words if word.is_group}
    used = [word for word in words if not word.is_group or last[word.key] is word]
    texts = [word.for_hydra() for word in used]
    config = hydra_compose(name, texts, return_hydra_config=False)
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(values, dict)
    values.pop("stages", None)
    origins: dict[str, Origin] = {}
    groups: dict[str, str] = {}
    for default in loader.compute_defaults_list(name, texts, RunMode.RUN).defaults:
        if not default.config_path.startswith("hydra") and default.config_path != "_dummy_empty_config_":
            _file_origins(loader, default, name, origins)
            group, _, option = default.config_path.rpartition("/")
            if group:
                groups[group] = option
    for word in used:
        if not word.is_group:
            for path in _leaves(word.parsed.value(), word.key):
                origins[path] = word.origin
    return ComposedStage(stage, values, origins, groups)


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path


def _file_origins(loader: ConfigLoader, default: ResultDefault, primary: str, origins: dict[str, Origin]) -> None:
    """Record the line of every leaf of one config file."""
    kind = "recipe" if default.config_path == primary else "group"
    file, shown = _file(loader, default.config_path)
    package = "" if default.package in (None, "", "_global_") else f"{default.package}."
    for path, line in _lines(yaml.compose(file.read_text(encoding="utf-8")), ""):
        if path.split(".")[0] not in ("defaults", "stages") or kind == "group":
            origins.pop(package + path, None)
            origins[package + path] = Origin(kind, shown, line)  # type: ignore[arg-type]


def _file(loader: ConfigLoader, config_path: str) -> tuple[Path, str]:
    """The file of a config, and the name to show for it."""
    result = loader.repository.load_config(config_path)
    name = config_path if config_path.endswith(".yaml") else f"{config_path}.yaml"
    scheme, _, place = result.path.partition("://")
    if scheme != "pkg":
        file = Path(place or result.path) / name
        return file, str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
    spec = find_spec(place)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / name, f"{place}/{name}"


def _lines(node: yaml.Node | None, path: str) -> Iterator[tuple[str, int]]:
    """Dotted path and line of every leaf of a YAML node."""
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _lines(value, f"{path}.{key.value}" if path else str(key.value))
    elif path and node is not None:
        yield path, node.start_mark.line + 1


def _stage_words(loader: ConfigLoader, name: str) -> dict[str, list[tuple[str, Origin]]]:
    """The recipe's `stages`: for each, its words with the line each stands on.

    Raises:
        SeqtuneError: `stages` is not a mapping of names to lists of words.
    """
    file, shown = _file(loader, name)
    root = yaml.compose(file.read_text(encoding="utf-8"))
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise SeqtuneError("a recipe is a mapping of keys to values", where=shown)
    found: dict[str, list[tuple[str, Origin]]] = {}
    for key, value in root.value if root is not None else ():
        if key.value != "stages":
            continue
        if not isinstance(value, yaml.MappingNode):
            raise SeqtuneError("`stages` maps names to lists of words", where=f"{shown}:{value.start_mark.line + 1}")
        for stage, listed in value.value:
            if not isinstance(listed, yaml.SequenceNode):
                place = f"{shown}:{listed.start_mark.line + 1}"
                raise SeqtuneError(
                    f"stage '{stage.value}' is not a list of words", place, "[objective=sft, train.max_steps=100]"
                )
            found[str(stage.value)] = [
                (str(w.value), Origin("stage", shown, w.start_mark.line + 1, str(w.value))) for w in listed.value
            ]
    return found
