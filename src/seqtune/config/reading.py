"""From composed values to a plan, reporting everything that is wrong at once; and plans to YAML and back."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import yaml
from pydantic import ValidationError

from seqtune.config.axes import DataSpec, EvalSpec, ModelSpec, RolloutSpec, TemplateMathSpec, TinyModelSpec, TrainSpec
from seqtune.config.mixture import MixtureSpec
from seqtune.config.nested import Misread
from seqtune.config.plan import REGISTERED, Plan, Stage
from seqtune.config.provenance import MISSING, RANK, Composed, ComposedStage, Origin, leaves
from seqtune.config.rules import between_stages, evaluating, training
from seqtune.config.rules.idle import unread
from seqtune.config.rules.inputs import samples
from seqtune.errors import Problem, SeqtuneError, did_you_mean
from seqtune.registry import Registry
from seqtune.registry import load as load_target

if TYPE_CHECKING:
    from seqtune.config.spec import Spec

AXIS_SPECS: dict[str, tuple[type[Spec], ...]] = {
    "model": (ModelSpec, TinyModelSpec),
    "data": (DataSpec, TemplateMathSpec, MixtureSpec),
    "rollout": (RolloutSpec,),
    "train": (TrainSpec,),
    "eval": (EvalSpec,),
}
"""The specs of the axes no registry extends; where there are two, `name` decides."""

OPTIONAL = ("rollout", "reward")
"""Axes a stage may leave out."""

Purpose = Literal["train", "eval"]


def registry(axis: str) -> Registry:
    """The registry an axis takes its specs from."""
    found: Registry = load_target(REGISTERED[axis])
    return found


def read(composed: Composed, purpose: Purpose = "train") -> Plan:
    """Read composed values into a plan.

    Args:
        composed: What `compose` made of a command line.
        purpose: `eval` leaves out the rules that only training has to keep.

    Raises:
        SeqtuneError: With every problem found, each naming its dotted path, its value, who set it and a way out.
    """
    found: dict[str, list[_Found]] = {}
    stages: list[Stage] = []
    for given in composed.stages:
        problems: list[_Found] = []
        stage = _stage(given, problems)
        if stage is not None:
            stages.append(stage)
            rules = training(stage, given) if purpose == "train" else evaluating(stage)
            problems += [_Found(rule.fields[0], rule.problem, rule.hint, rule.fields) for rule in rules]
        found[given.name] = problems
    whole = len(stages) == len(composed.stages)
    if whole and purpose == "train":
        for name, rule in between_stages(stages):
            found[name if name in found else ""].append(_Found(rule.fields[0], rule.problem, rule.hint, rule.fields))
        for path, why in unread(stages, composed.stages).items():
            for given in composed.stages:
                if path in given.origins:
                    found[given.name].append(_Found(path, f"{path}: nothing reads it; {why}", f"leave {path} out"))
    problems_said = [*composed.problems, *_report(composed, found)]
    if problems_said:
        raise SeqtuneError.of(problems_said)
    return Plan(recipe=composed.recipe, stages=tuple(stages))


def dump(plan: Plan) -> str:
    """The plan as YAML, every value spelt out."""
    return yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def load(text: str) -> Plan:
    """The plan `dump` wrote.

    Raises:
        SeqtuneError: It is not a plan of this version of seqtune.
    """
    try:
        values = yaml.safe_load(text)
        stages = tuple(
            ComposedStage(stage["name"], {axis: value for axis, value in stage.items() if axis != "name"})
            for stage in values["stages"]
        )
        recipe = str(values["recipe"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SeqtuneError(
            f"plan.yaml is damaged: {str(error).splitlines()[0]}", hint="start the run again from its recipe"
        ) from error
    return read(Composed(recipe, stages))


@dataclass(frozen=True)
class _Found:
    """A problem of one stage, before the stages are compared. `fields` are the dotted paths whose origins matter."""

    path: str
    problem: str
    hint: str = ""
    fields: tuple[str, ...] = ()


def _stage(given: ComposedStage, problems: list[_Found]) -> Stage | None:
    """One typed stage; None after noting why there is none."""
    values = {key: value for key, value in given.values.items() if not (key in OPTIONAL and value is None)}
    axes = [axis for axis in Stage.model_fields if axis != "name"]
    for key in values.keys() - set(axes):
        for path, value in leaves({key: values[key]}).items():
            problems.append(
                _Found(path, f"{path}: there is no '{key}' to set ({_shown(value)})", did_you_mean(key, axes))
            )
    specs: dict[str, Spec] = {}
    for axis in axes:
        if axis in values:
            if spec := _axis(axis, values[axis], given, problems):
                specs[axis] = spec
        elif axis not in OPTIONAL and axis not in given.unread:
            problems.append(_Found(axis, f"{axis}: the recipe chooses none", f"choose one: {axis}=NAME"))
    if problems or given.unread:
        return None
    objective, data = cast("Any", specs["objective"]), cast("Any", specs["data"])
    if not samples(objective, data):
        specs.pop("rollout", None)
    try:
        return Stage(name=given.name or objective.name, **specs)
    except ValidationError:
        where = f"stages.{given.name}"
        problems.append(
            _Found(where, f"{where}: a stage's name has letters, digits, _ and - only", "it names a folder")
        )
        return None


def _axis(axis: str, value: Any, given: ComposedStage, problems: list[_Found]) -> Spec | None:
    """The spec of one axis; None after noting what is wrong with it."""
    if not isinstance(value, Mapping):
        told = "has no value" if value is None or value == MISSING else f"{_shown(value)} is not a section"
        problems.append(_Found(axis, f"{axis}: {told}", f"{axis}=NAME chooses one, {axis}.FIELD=VALUE changes it"))
        return None
    unset = [path for path, leaf in leaves(value, f"{axis}.").items() if leaf == MISSING]
    problems += [_Found(path, f"{path}: has to be given", f"{path}=VALUE") for path in unset]
    try:
        kind = spec_of(axis, value, given)
    except SeqtuneError as error:
        if f"{axis}.name" not in unset:
            path = f"{axis}.name" if f"{axis}.name" in given.origins else axis
            problems.append(_Found(path, error.problems[0].problem, error.problems[0].hint))
        return None
    try:
        # Strict JSON: "3" is no number and 3 no text, but a list is a tuple. What YAML can say, JSON can.
        spec = kind.model_validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        named = isinstance(name := value.get("name"), str) and (axis in REGISTERED or len(AXIS_SPECS[axis]) > 1)
        who = f"{axis} '{name}'" if named else axis
        problems += [problem for problem in _translate(error, axis, who, kind, value) if problem.path not in unset]
        return None
    return None if unset else spec


def spec_of(axis: str, value: Mapping[str, Any], given: ComposedStage) -> type[Spec]:
    """The spec class of an axis, chosen by `name` where there is a choice.

    Raises:
        SeqtuneError: The name is missing or unknown, or it contradicts the group the other values came from.
    """
    name = value.get("name")
    if axis in REGISTERED:
        if name is None:
            raise SeqtuneError(f"{axis}: the recipe chooses none", hint=f"choose one: {axis}=NAME")
        chosen = given.named.get(axis)
        if not isinstance(name, str):
            raise SeqtuneError(f"{axis}.name: {_shown(name)} is not a name", hint=f"{axis}=NAME")
        if axis == "reward" and ":" in name:
            custom: type[Spec] = load_target("seqtune.rewards.specs:Custom")
            return custom
        names = registry(axis)
        if name not in names:
            raise SeqtuneError(f"{axis}.name: unknown {axis} '{name}'", hint=did_you_mean(name, names))
        if chosen not in (None, MISSING, name):
            raise SeqtuneError(
                f"{axis}.name: '{name}' would keep the other values of the group '{chosen}'",
                hint=f"{axis}={name} switches the whole group",
            )
        spec: type[Spec] = names.load(name)
        return spec
    if axis == "model":
        return TinyModelSpec if name == "tiny" else ModelSpec
    if axis == "data":
        generated: dict[str, type[Spec]] = {"template_math": TemplateMathSpec, "mixture": MixtureSpec}
        return generated.get(str(name), DataSpec)
    return AXIS_SPECS[axis][0]


def _translate(
    error: ValidationError, axis: str, who: str, kind: type[Spec], value: Mapping[str, Any]
) -> Iterator[_Found]:
    """Pydantic's errors in plain words, one for each field of the section at the path `axis`, called `who`."""
    said: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        path = _path([str(part) for part in detail["loc"]], value)
        if not (detail["type"] == "too_short" and detail["input"]):  # bad items are told each, and do not count
            said[path].append(detail)
    for field, details in said.items():
        path = f"{axis}.{field}" if field else axis
        section = field.rpartition(".")[0]
        inner = details[0].get("ctx", {}).get("error")
        if isinstance(inner, Misread):
            yield from _nested(inner, path)
        elif details[0]["type"] == "extra_forbidden" and section:
            yield _Found(path, f"{path}: not a field of {axis}.{section} ({_shown(details[0]['input'])})")
        elif details[0]["type"] == "extra_forbidden":
            for leaf, given in leaves({field: value[field]}, f"{axis}.").items():
                if kind is TemplateMathSpec and field in DataSpec.model_fields:
                    form = value.get("format", kind.model_fields["format"].default)
                    hint = f"for data of your own: data={form} data.path=FILE"
                else:
                    hint = did_you_mean(field, set(kind.model_fields) - {"name"})
                yield _Found(leaf, f"{leaf}: not a field of {who} ({_shown(given)})", hint)
        elif details[0]["type"] == "missing":
            holder = f"{axis}.{section}" if section else axis
            yield _Found(path, f"{path}: has to be given", f"{path}=VALUE", (holder,))
        else:
            given = leaves(value).get(field, value.get(field, MISSING))
            told = " or ".join(sorted({_sentence(detail) for detail in details}))
            said_of = told.removeprefix("is refused: ") if given == MISSING else f"{_shown(given)} {told}"
            yield _Found(path, f"{path}: {said_of}", _way_out(path, given, details))


def _nested(misread: Misread, path: str) -> Iterator[_Found]:
    """What is wrong with a spec inside a spec."""
    if isinstance(misread.error, SeqtuneError):
        problem = misread.error.problems[0]
        yield _Found(f"{path}.name", f"{path}.name: {problem.problem}", problem.hint)
    elif misread.spec is not None:
        who = f"{misread.kind} '{misread.value['name']}'"
        yield from _translate(misread.error, path, who, misread.spec, misread.value)


def _path(loc: Sequence[str], value: Any) -> str:
    """Where an error is, dotted: down to a key of a section, or of a section in a list.

    Pydantic also names the branches of unions, which a recipe does not have.
    """
    found: list[str] = []
    for part in loc:
        if isinstance(value, Mapping):
            if found and part not in value and part == value.get("name"):
                continue
            found.append(part)
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and isinstance(value[int(part)], Mapping):
            found.append(part)
            value = value[int(part)]
        else:
            break
    return ".".join(found)


_SENTENCES = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not finite",
    "bool_parsing": "is not true or false",
    "bool_type": "is not true or false",
    "string_type": "is not text",
    "string_too_short": "is empty",
    "too_short": "is empty",
    "dict_type": "is not a mapping {{name: value}}",
    "tuple_type": "is not a list",
    "string_pattern_mismatch": "does not have the form {pattern}",
    "greater_than": "is not above {gt:g}",
    "greater_than_equal": "is below {ge:g}",
    "less_than": "is not below {lt:g}",
    "less_than_equal": "is above {le:g}",
    "multiple_of": "is not a multiple of {multiple_of}",
    "literal_error": "is not {expected}",
    "value_error": "is refused: {error}",
    "union_tag_invalid": "is not {expected_tags}",
    "union_tag_not_found": "says no name",
}


def _sentence(detail: Mapping[str, Any]) -> str:
    known = _SENTENCES.get(detail["type"])
    return known.format(**detail.get("ctx", {})) if known else str(detail["msg"])


def _way_out(path: str, value: Any, details: Iterable[Mapping[str, Any]]) -> str:
    """What to write instead, where it can be said."""
    for detail in details:
        if detail["type"] == "literal_error":
            choices = [
                choice.strip().strip("'") for choice in detail["ctx"]["expected"].replace(" or ", ", ").split(",")
            ]
            return did_you_mean(str(detail["input"]), choices)
        if detail["type"] == "tuple_type" and not isinstance(value, Mapping):
            return f"{path}=[{value}]"
        if detail["type"] in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
            return f"{path}={value} without quotes; from the environment, ${{oc.decode:${{oc.env:NAME}}}}"
        if detail["type"] == "string_type" and isinstance(value, int | float):
            return f"quote it, for the shell too: \"{path}='{value}'\""
        bound = {"greater_than_equal": "ge", "less_than_equal": "le"}.get(detail["type"])
        if bound:
            side = "least" if bound == "ge" else "most"
            return f"{path}={detail['ctx'][bound]:g} at {side}"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _report(composed: Composed, found: Mapping[str, list[_Found]]) -> Iterator[Problem]:
    """Problems of all stages, one for those that several stages have."""
    stages = {stage.name: stage for stage in composed.stages}
    holders: dict[_Found, list[str]] = defaultdict(list)
    for name, problems in found.items():
        for problem in dict.fromkeys(problems):
            holders[problem].append(name)
    for problem, names in holders.items():
        where = _where(problem, stages[names[0]])
        hint = problem.hint
        if len(names) < len(stages):
            where = f"{where} (stage {', '.join(names)})"
            other = next((name for name in stages if name not in names and _has(stages[name], problem.path)), None)
            if other and ": not a field of " in problem.problem and where.startswith("command line"):
                value = leaves(stages[names[0]].values).get(problem.path)
                hint = f"for the stage that has it: stages.{other}.{problem.path}={_shown(value)}"
        yield Problem(problem.problem, where, hint)


def _has(stage: ComposedStage, path: str) -> bool:
    """Whether `path` is a field of what the stage chose."""
    axis, _, field = path.partition(".")
    try:
        return field.split(".")[0] in spec_of(axis, stage.values[axis], stage).model_fields
    except (SeqtuneError, KeyError):
        return False


def _where(problem: _Found, stage: ComposedStage) -> str:
    fields = problem.fields or (problem.path,)
    if len(fields) == 1:
        return str(_origin(stage, fields[0]) or "")
    return ", ".join(f"{path}: {_origin(stage, path) or 'not set'}" for path in fields)


def _origin(stage: ComposedStage, path: str) -> Origin | None:
    """Who set `path`; of a section, the strongest of those who said something in it. None when nobody did."""
    if path not in stage.origins:
        path = re.split(r"\.\d+\b", path)[0]  # a list on the command line is said as a whole
    said = [origin for at, origin in stage.origins.items() if at == path or at.startswith(f"{path}.")]
    if not said:
        return stage.origin(path) if "." in path else None
    return max(said, key=lambda origin: RANK[origin.kind])
