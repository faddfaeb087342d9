"""Words on the command line to plain values with their origins. The only user of Hydra, which ends here."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seqtune.config.provenance import COMMAND_LINE, MISSING, Composed, ComposedStage, Kind, Origin
from seqtune.config.reading import OPTIONAL
from seqtune.errors import Problem, SeqtuneError, did_you_mean
from seqtune_cli import catalogue

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

SETTINGS = ["hydra.job.name=seqtune"]


def compose(tokens: Sequence[str], recipe: str | None = None) -> Composed:
    """Apply override words to a recipe.

    Args:
        tokens: Words in Hydra's override grammar; `recipe=NAME` or `recipe=FILE` among them unless `recipe` is given.
            `stages.NAME.key=value` changes one stage, everything else changes all of them.
        recipe: Name of a recipe, or path of its file.

    Returns:
        One composed stage for each of the recipe's `stages:`, or a single one; what was wrong with single words is in
        `problems`, for `seqtune.config.reading.read` to report with what it finds.

    Raises:
        SeqtuneError: There is no such recipe, or one of its files cannot be composed at all.
    """
    named = [token.partition("=")[2] for token in tokens if token.startswith("recipe=")]
    words = tuple(token for token in tokens if not token.startswith("recipe="))
    if recipe is not None:
        named.append(recipe)
    if len(set(named)) > 1:
        raise SeqtuneError(
            f"two recipes are named: {' and '.join(named)}", "command line", "name one; it can build on another"
        )
    if not named or not named[0]:
        raise SeqtuneError(
            "no recipe is named",
            "command line",
            f"add recipe=NAME ({', '.join(catalogue.recipes())}) or recipe=FILE.yaml",
        )
    with _hydra_version():
        return _Composer(named[0]).compose(words)


@dataclass(frozen=True)
class _Word:
    """One override. `stage` limits it to one stage; `group` tells a group swap from a value."""

    text: str
    parsed: Override
    origin: Origin
    stage: str | None
    group: bool

    @property
    def key(self) -> str:
        return str(self.parsed.key_or_group)


@dataclass
class _Loaded:
    """A recipe with words applied."""

    config: DictConfig
    origins: dict[str, Origin]
    named: dict[str, str] = field(default_factory=dict)


class _Composer:
    """Everything composed for one command line; notes problems with single words instead of stopping at the first."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe
        folder, self.config_name = _locate(recipe)
        search_path = create_config_search_path(folder)
        for package in catalogue.packages():
            if f"pkg://{package}" != folder:
                search_path.prepend("seqtune", f"pkg://{package}", SearchPathQuery("schema", None))
        self.loader: ConfigLoader = ConfigLoaderImpl(search_path)
        self.problems: dict[Problem, None] = {}
        self.unread: set[str] = set()
        with _mendable(recipe):
            defaults = self.loader.compute_defaults_list(self.config_name, [], RunMode.RUN)
            self.present = set(defaults.overrides.known_choices)
            self.groups = {
                group: self.loader.get_group_options(group, config_name=self.config_name)
                for group in self.loader.list_groups("")
                if group != "hydra"
            }

    def compose(self, texts: tuple[str, ...]) -> Composed:
        words = [word for text in texts if (word := self.word(text, COMMAND_LINE))]
        general = [word for word in words if word.stage is None]
        base = self.load(general)
        stages = []
        for name, own in self.stage_words(base).items():
            mine = [word for word in words if word.stage == name]
            stages.append(self.plain(name, self.load([*own, *general, *mine]) if own or mine else base))
        known = {stage.name for stage in stages}
        for word in words:
            if word.stage is not None and word.stage not in known:
                hint = did_you_mean(word.stage, known - {""})
                self.note(f"stages.{word.stage}: the recipe has no stage '{word.stage}'", "command line", hint)
        return Composed(self.recipe, tuple(stages), texts, tuple(self.problems))

    def note(self, problem: str, where: str, hint: str = "") -> None:
        self.problems[Problem(problem, where, hint)] = None

    def word(self, text: str, origin: Origin) -> _Word | None:
        """The parsed override, or None after noting what is wrong with it."""
        where = str(origin)
        try:
            parsed = OverridesParser.create().parse_override(text)
            if not parsed.key_or_group:
                raise HydraException
        except HydraException:
            hint = "write KEY=VALUE; a text with blanks or = , ( ) [ ] { } is quoted, for the shell too: \"key='a b'\""
            if re.fullmatch(r"[\w./-]+", text):
                hint = f"write {text}=VALUE, or recipe={text} for a recipe"
            self.note(f"'{text}' is not an override", where, hint)
            return None
        key, stage = str(parsed.key_or_group), None
        if origin.kind == "command line" and (parts := re.fullmatch(r"stages\.([^.@]+)\.(.+)", key)):
            stage, key = parts.groups()
            parsed = replace(parsed, key_or_group=key)
        if key == "recipe" or (origin.kind == "stage" and key.split(".")[0] == "stages"):
            self.note(f"{key}: a stage cannot change it", where, "a stage's words swap groups and set values")
        elif re.split(r"[./]", key)[0] == "hydra":
            hint = "seqtune takes only Hydra's composition; out=DIR chooses the run folder"
            self.note(f"{key}: Hydra's own settings change nothing here", where, hint)
        elif parsed.is_sweep_override():
            value = text.partition("=")[2]
            hint = f"a list is written {key}=[{value}], a text with commas \"{key}='{value}'\""
            self.note(f"{key}: '{value}' asks for several runs, and a plan is one run", where, hint)
        elif parsed.package is not None:
            self.note(f"{key}: a group lands in the section of its own name, not in '{parsed.package}'", where)
        elif key in self.groups and not self.known_option(key, parsed, where):
            self.unread.add(key)
        else:
            return _Word(text, parsed, origin, stage, key in self.groups)
        return None

    def known_option(self, group: str, parsed: Override, where: str) -> bool:
        """Whether a group's override names one of its options; noted otherwise."""
        if parsed.is_delete():
            if group not in self.present:
                self.note(f"{group}: the recipe has none to take away", where)
            return group in self.present
        value, options = parsed.value(), self.groups[group]
        if isinstance(value, str) and value in options:
            return True
        value = "null" if value is None else value
        hint = did_you_mean(str(value), options)
        if value == "null" and group in OPTIONAL:
            hint += f"; ~{group} takes it away"
        if group == "model":
            hint += f"; a model by hub name or folder is model=pretrained model.name={value}"
        self.note(f"{group}: there is no {group} '{value}'", where, hint)
        return False

    def load(self, words: Sequence[_Word]) -> _Loaded:
        """The recipe with `words` applied: the last choice of each group, then the values in order."""
        choices = {word.key: word for word in words if word.group}
        chosen = [
            f"~{key}" if word.parsed.is_delete() else f"{'' if key in self.present else '+'}{key}={word.parsed.value()}"
            for key, word in choices.items()
        ]
        with _mendable(self.recipe):
            config = self.loader.load_configuration(self.config_name, [*SETTINGS, *chosen], RunMode.RUN, False)
            defaults = self.loader.compute_defaults_list(self.config_name, chosen, RunMode.RUN)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        loaded = _Loaded(config, {})
        for default in defaults.defaults:
            if default.config_path is not None and not default.config_path.startswith("hydra/"):
                self.trace(default.config_path, default.package or "", loaded)
        for word in words:
            if not word.group:
                self.apply(word, loaded)
        return loaded

    def trace(self, config_path: str, package: str, loaded: _Loaded) -> None:
        """Note the lines of one recipe file as the origins of what it sets."""
        label, text = self.file(config_path)
        kind: Kind = "group" if "/" in config_path else "file"
        if text is None:
            loaded.origins.update({path: Origin(kind, label) for path in _sections(package)})
            return
        for path, node in _walk(yaml.compose(text, yaml.SafeLoader), package):
            loaded.origins[path] = Origin(kind, label, node.start_mark.line + 1)
            if kind == "group" and path == f"{package}.name" and isinstance(node, yaml.ScalarNode):
                loaded.named[package] = node.value

    def file(self, config_path: str) -> tuple[str, str | None]:
        """How a recipe file is called in messages, and its text if it can be found."""
        name = f"{config_path}.yaml"
        for source in self.loader.get_sources():
            if source.scheme() in ("pkg", "file") and source.is_config(config_path):
                if source.scheme() == "pkg":
                    return f"{source.path}/{name}", files(source.path).joinpath(name).read_text(encoding="utf-8")
                return _shown(Path(source.path) / name), (Path(source.path) / name).read_text(encoding="utf-8")
        return name, None

    def apply(self, word: _Word, loaded: _Loaded) -> None:
        """Set or take away one value; noted when it cannot be done."""
        key = word.key
        try:
            if word.parsed.is_delete():
                parent, _, last = key.rpartition(".")
                section = OmegaConf.select(loaded.config, parent) if parent else loaded.config
                if not isinstance(section, DictConfig) or last not in section:
                    known = [str(name) for name in section] if isinstance(section, DictConfig) else []
                    hint = f"what is set here: {', '.join(sorted(known)) or 'nothing'}; a default cannot be taken away"
                    self.note(f"{key}: there is nothing to take away", str(word.origin), hint)
                    return
                del section[last]
            else:
                OmegaConf.update(loaded.config, key, word.parsed.value(), merge=True, force_add=True)
        except (OmegaConfBaseException, TypeError, ValueError, AttributeError, IndexError) as error:
            self.note(f"{key}: cannot be set here: {_sentence(error)}", str(word.origin))
            return
        set_here = [*_sections(key), *_paths(word.parsed.value(), key)]
        for path in set_here:
            if path == key or path.startswith(f"{key}.") or path not in loaded.origins:
                loaded.origins[path] = word.origin

    def stage_words(self, base: _Loaded) -> dict[str, list[_Word]]:
        """The words of each stage of the recipe; one nameless stage without words when it has none."""
        with _mendable(self.recipe):
            stages = base.config.pop("stages", None)
        if stages is None:
            return {"": []}
        where = str(base.origins.get("stages", COMMAND_LINE))
        hint = "write stages: {NAME: [word, ...], ...}, each word as on the command line"
        if not isinstance(stages, DictConfig) or not stages:
            raise SeqtuneError("stages: is not a list of words for each stage", where, hint)
        found: dict[str, list[_Word]] = {}
        for name, texts in self.resolved(stages, "stages", base.origins).items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                set_by = base.origins.get(f"stages.{name}", COMMAND_LINE)
                raise SeqtuneError(f"stages.{name}: is not a list of words", str(set_by), hint)
            origins = [base.origins.get(f"stages.{name}.{index}", COMMAND_LINE) for index in range(len(texts))]
            words = [
                self.word(text, Origin("stage", by.file, by.line)) for text, by in zip(texts, origins, strict=True)
            ]
            found[name] = [word for word in words if word]
        return found

    def plain(self, name: str, loaded: _Loaded) -> ComposedStage:
        """Resolved values of a stage; a value whose interpolation fails is noted and left out."""
        loaded.config.pop("stages", None)
        values = self.resolved(loaded.config, "", loaded.origins)
        for axis in self.unread:
            values.pop(axis, None)
        return ComposedStage(name, values, loaded.origins, loaded.named, frozenset(self.unread))

    def resolved(self, node: Any, prefix: str, origins: Mapping[str, Origin]) -> Any:
        if not isinstance(node, DictConfig | ListConfig):
            return node
        keys = list(range(len(node))) if isinstance(node, ListConfig) else list(node)
        found: dict[Any, Any] = {}
        for key in keys:
            path = f"{prefix}.{key}".lstrip(".")
            if OmegaConf.is_missing(node, key):
                found[key] = MISSING
                continue
            try:
                found[key] = self.resolved(node[key], path, origins)
            except OmegaConfBaseException as error:
                hint = "interpolations name another value by its dotted path: ${train.seed}"
                self.note(f"{path}: {_sentence(error)}", str(origins.get(path, COMMAND_LINE)), hint)
                self.unread.add(path.split(".")[0])
        return (
            list(found.values()) if isinstance(node, ListConfig) else {str(key): value for key, value in found.items()}
        )


def _locate(recipe: str) -> tuple[str, str]:
    """Hydra's directory and config name of a recipe given by name or by path."""
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise SeqtuneError(f"recipe: there is no file {recipe}", "command line", _recipe_hint(path.stem))
        if path.suffix == ".yml":
            raise SeqtuneError(f"recipe: {recipe} ends in .yml", "command line", "rename it to .yaml")
        return f"file://{path.resolve().parent}", path.stem
    if recipe not in catalogue.recipes():
        local = Path(f"{recipe}.yaml")
        hint = f"for the file, recipe=./{local}" if local.is_file() else _recipe_hint(recipe)
        raise SeqtuneError(f"recipe: there is no recipe '{recipe}'", "command line", hint)
    package = next(
        name for name, origin in catalogue.packages().items() if origin == catalogue.recipes()[recipe].origin
    )
    return f"pkg://{package}", recipe


def _recipe_hint(recipe: str) -> str:
    return f"{did_you_mean(recipe, catalogue.recipes())}; a file is recipe=PATH.yaml"


@contextmanager
def _hydra_version() -> Iterator[None]:
    """Hydra 1.3's rules for the duration; another Hydra application in this process keeps its own."""
    before = version.VersionBase.instance().getbase()
    version.setbase("1.3")
    try:
        with warnings.catch_warnings():
            # Without `_self_` the recipe's own values come last, which is what its author means.
            warnings.filterwarnings("ignore", ".*Defaults list is missing `_self_`", UserWarning)
            yield
    finally:
        version.VersionBase.instance().version_base = before


@contextmanager
def _mendable(recipe: str) -> Iterator[None]:
    """Turn what Hydra and YAML say about a recipe's files into a SeqtuneError."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{_shown(Path(mark.name))}:{mark.line + 1}" if mark else recipe
        raise SeqtuneError(
            f"not YAML: {error.problem}", where, "mend the file; indentation and colons matter"
        ) from error
    except MissingConfigException as error:
        missing = str(error.missing_cfg_file or "")
        group, _, name = missing.rpartition("/")
        options = [option.rpartition("/")[2] for option in error.options or catalogue.groups().get(group, {})]
        problem = f"{group}: there is no {group} '{name}'" if group else f"there is no recipe '{name}' to build on"
        hint = did_you_mean(name, options if group else catalogue.recipes())
        raise SeqtuneError(problem, f"defaults of recipe {recipe}", hint) from error
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        if "must be a DictConfig" in str(error):
            hint = "write GROUP: {FIELD: VALUE}; seqtune copy recipe=NAME gives one to start from"
            raise SeqtuneError("the file is no mapping of groups to values", f"recipe {recipe}", hint) from error
        raise SeqtuneError(
            f"the recipe cannot be composed: {_sentence(error)}", f"recipe {recipe}", "see its `defaults:` list"
        ) from error


def _sentence(error: BaseException) -> str:
    """The first line of an error of Hydra or OmegaConf, with what caused it when it says nothing itself."""
    text = str(error).strip() or str(error.__cause__ or type(error).__name__)
    first = text.splitlines()[0].rstrip(".")
    return re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", first)


def _shown(path: Path) -> str:
    """A path relative to the working directory when it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _sections(key: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = key.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))] if key else []


def _walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    """Every value of a YAML document with its dotted path, sections before what they hold."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not (prefix == "" and key.value == "defaults"):
                path = f"{prefix}.{key.value}".lstrip(".")
                # A section's own line is its key's: the value of a block mapping starts on the next one.
                yield path, key
                if isinstance(value, yaml.ScalarNode):
                    yield path, value
                yield from _walk(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield f"{prefix}.{index}", item
            yield from _walk(item, f"{prefix}.{index}")


def _paths(value: Any, prefix: str) -> Iterator[str]:
    """Dotted paths of everything inside a value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{prefix}.{key}"
            yield from _paths(inner, f"{prefix}.{key}")
