"""From composed values to a plan, reporting everything that is wrong at once; and plans to YAML and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from seqtune.config.axes import DataSpec, EvalSpec, ModelSpec, RolloutSpec, TemplateMathSpec, TinyModelSpec, TrainSpec
from seqtune.config.plan import REGISTERED, Plan, Stage
from seqtune.config.provenance import Composed, ComposedStage
from seqtune.config.rules import violations
from seqtune.config.spec import Spec
from seqtune.errors import Problem, SeqtuneError, did_you_mean
from seqtune.registry import Registry, load as load_target

AXIS_SPECS: dict[str, tuple[type[Spec], ...]] = {
    "model": (ModelSpec, TinyModelSpec),
    "data": (DataSpec, TemplateMathSpec),
    "rollout": (RolloutSpec,),
    "train": (TrainSpec,),
    "eval": (EvalSpec,),
}
"""The specs of the axes no registry extends; where there are two, `name` decides."""

OPTIONAL = ("rollout", "reward")
"""Axes a stage may leave out."""


def registry(axis: str) -> Registry:
    """The registry an axis takes its specs from."""
    found: Registry = load_target(REGISTERED[axis])
    return found


def read(composed: Composed) -> Plan:
    """Read composed values into a plan.

    Raises:
        SeqtuneError: With every problem found, each naming its dotted path, its value and who set it.
    """
    found: dict[str, list[_Found]] = {}
    stages: list[Stage] = []
    for number, stage in enumerate(composed.stages):
        problems: list[_Found] = []
        built = _stage(stage, problems)
        if built is not None and not problems:
            problems = [_Found(v.fields[0], v.problem, v.hint, v.fields) for v in violations(built, stage)]
        if built is not None and not problems:
            stages.append(built)
        found[stage.name or str(number)] = problems
    problems = list(_report(composed, found))
    if problems:
        raise SeqtuneError.of(problems)
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
        stages = tuple(ComposedStage(s.pop("name"), s) for s in values["stages"])
        recipe = str(values["recipe"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SeqtuneError(f"plan.yaml is damaged: {error}", hint="start the run again from its recipe") from error
    return read(Composed(recipe, stages))


class _Found:
    """A problem of one stage, before the stages are compared."""

    def __init__(self, path: str, problem: str, hint: str = "", fields: tuple[str, ...] = ()) -> None:
        self.path, self.problem, self.hint, self.fields = path, problem, hint, fields or (path,)

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.problem


def _stage(stage: ComposedStage, problems: list[_Found]) -> Stage | None:
    """One typed stage, or None when an axis could not be read."""
    values = {key: value for key, value in stage.values.items() if not (key in OPTIONAL and value is None)}
    axes = [axis for axis in Stage.model_fields if axis != "name"]
    for key in values:
        if key not in axes:
            problems.append(_Found(key, f"{key}: unknown key", did_you_mean(key, axes)))
    specs: dict[str, Spec | None] = {}
    for axis in axes:
        if axis in values:
            specs[axis] = _axis(axis, values[axis], stage, problems)
        elif axis not in OPTIONAL:
            problems.append(_Found(axis, f"{axis}: missing", f"choose one: {axis}=NAME"))
    if problems:
        return None
    objective: Any = specs["objective"]
    name = stage.name or objective.name
    if objective.family != "policy":
        specs["rollout"] = None
    return Stage.model_construct(name=name, **{axis: specs.get(axis) for axis in axes})


def _axis(axis: str, value: Any, stage: ComposedStage, problems: list[_Found]) -> Spec | None:
    if not isinstance(value, Mapping):
        problems.append(
            _Found(axis, f"{axis}: {value!r} is not a choice of this group", f"{axis}=NAME or {axis}.FIELD=VALUE")
        )
        return None
    unset = list(_unset(value, axis))
    problems.extend(_Found(path, f"{path}: has no value", f"set it: {path}=VALUE") for path in unset)
    try:
        kind = _kind(axis, value, stage)
    except SeqtuneError as error:
        problems.append(_Found(f"{axis}.name", error.problems[0].problem, error.problems[0].hint))
        return None
    try:
        return kind.model_validate(dict(value))
    except ValidationError as error:
        problems.extend(p for p in _translate(error, axis, kind, value) if p.path not in unset)
        return None


def _unset(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _unset(inner, f"{path}.{key}")
    elif value == "???":
        yield path


def _kind(axis: str, value: Mapping[str, Any], stage: ComposedStage) -> type[Spec]:
    """The spec class of an axis, chosen by `name` where there is a choice.

    Raises:
        SeqtuneError: The name is missing or unknown, or it contradicts the group the other values came from.
    """
    name = value.get("name")
    if axis in REGISTERED:
        if name is None:
            raise SeqtuneError(f"{axis}.name: missing", hint=f"choose one: {axis}=NAME")
        if axis == "reward" and isinstance(name, str) and ":" in name:
            custom: type[Spec] = load_target("seqtune.rewards.specs:Custom")
            return custom
        names = registry(axis)
        if name not in names:
            raise SeqtuneError(f"{axis}.name: unknown {axis} '{name}'", hint=did_you_mean(str(name), names))
        chosen = stage.groups.get(axis)
        if stage.origin(f"{axis}.name").kind == "command line" and chosen not in (None, name):
            raise SeqtuneError(
                f"{axis}.name: '{name}' would keep the other values of '{chosen}'",
                hint=f"switch all of it: {axis}={name}",
            )
        spec: type[Spec] = names.load(str(name))
        return spec
    if axis == "model":
        return TinyModelSpec if name == "tiny" else ModelSpec
    if axis == "data":
        return TemplateMathSpec if name == "template_math" else DataSpec
    return AXIS_SPECS[axis][0]


def _translate(error: ValidationError, axis: str, kind: type[Spec], value: Mapping[str, Any]) -> Iterator[_Found]:
    """Pydantic's errors in plain words, one for each field."""
    said: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for detail in error.errors(include_url=False):
        said[str(detail["loc"][0]) if detail["loc"] else ""].append(detail)  # type: ignore[arg-type]  # a TypedDict
    who = f"{axis} '{value['name']}'" if "name" in value and axis in REGISTERED else axis
    for field, details in said.items():
        path = f"{axis}.{field}" if field else axis
        if details[0]["type"] == "extra_forbidden":
            yield _Found(path, f"{path}: not a field of {who}", did_you_mean(field, kind.model_fields))
        elif details[0]["type"] == "missing":
            yield _Found(path, f"{path}: has no value", f"set it: {path}=VALUE")
        else:
            told = sorted({_sentence(detail) for detail in details})
            hint = _choice_hint(details[0])
            yield _Found(path, f"{path}: {value[field]!r} {' or '.join(told)}" if field else f"{path}: {told[0]}", hint)


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
    "dict_type": "is not a mapping {name: value}",
    "tuple_type": "is not a list",
    "string_pattern_mismatch": "does not have the form {pattern}",
    "greater_than": "is not above {gt}",
    "greater_than_equal": "is below {ge}",
    "less_than": "is not below {lt}",
    "less_than_equal": "is above {le}",
    "multiple_of": "is not a multiple of {multiple_of}",
    "literal_error": "is not {expected}",
    "value_error": "is refused: {error}",
}


def _sentence(detail: Mapping[str, Any]) -> str:
    known = _SENTENCES.get(detail["type"])
    return known.format(**detail.get("ctx", {})) if known else str(detail["msg"])


def _choice_hint(detail: Mapping[str, Any]) -> str:
    if detail["type"] != "literal_error":
        return ""
    choices = [c.strip().strip("'") for c in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
    return did_you_mean(str(detail["input"]), choices)


def _report(composed: Composed, found: Mapping[str, list[_Found]]) -> Iterator[Problem]:
    """Problems of all stages, one line for a problem that every stage has."""
    stages = dict(zip(found, composed.stages, strict=True))
    where: dict[tuple[str, str], list[str]] = defaultdict(list)
    first: dict[tuple[str, str], _Found] = {}
    for stage, problems in found.items():
        for problem in problems:
            where[problem.key].append(stage)
            first.setdefault(problem.key, problem)
    for key, problem in first.items():
        holders = where[key]
        origins = {path: stages[holders[0]].origin(path) for path in problem.fields}
        if len(origins) == 1:
            place = f"set by {next(iter(origins.values()))}" if next(iter(origins.values())).kind != "default" else ""
        else:
            place = ", ".join(f"{path} set by {origin}" for path, origin in origins.items())
        hint = problem.hint
        if len(holders) < len(stages):
            place = f"stage {', '.join(holders)}" + (f"; {place}" if place else "")
            others = [stage for stage in stages if stage not in holders]
            if origins[problem.fields[0]].kind == "command line" and ": not a field of " in problem.problem:
                hint = f"for one stage: stages.{others[0]}.{problem.path}=VALUE"
        yield Problem(problem.problem, place, hint)
