"""Build the documentation into site/: `make docs`.

Pages are copied to build/docs. On the way the commands in their `console run` blocks are run and answered by what they
print, `file=` blocks are filled from docs/examples, and the pages about recipes and fields are written from the recipes
and the specs, so none of it can go stale.
A command that fails, a broken link and any warning stop the build.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, get_args

import yaml

import seqtune_recipes
from seqtune.config.plan import REGISTERED, Stage
from seqtune.config.reading import AXIS_SPECS, registry
from seqtune.config.spec import RewardSpec, Spec
from seqtune.config.tools import ToolSpec
from seqtune.rollout import TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES, STAGED = ROOT / "docs", ROOT / "build" / "docs"
RECIPES = Path(seqtune_recipes.__file__).parent
sys.path.insert(0, str(ROOT / "tests" / "recipes"))

TYPES = {
    "integer": "int",
    "number": "float",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}
LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "multipleOf": "multiple of",
}
RUN = re.compile(r"^```console run(?: exit=(\d+))?\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"^```(\w+) file=(\S+)\n```$", re.M)


def main() -> None:
    """Stage every page, then build the site.

    Raises:
        SystemExit: A command ends otherwise than its page says, or zensical warns.
    """
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(PAGES, STAGED, ignore=shutil.ignore_patterns("*.py", "__pycache__", "examples"))
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(PAGES / "examples", folder, dirs_exist_ok=True)
        for page in sorted(STAGED.rglob("*.md")):
            page.write_text(filled(page.read_text(encoding="utf-8"), Path(folder), wrong), encoding="utf-8")
    if wrong:
        raise SystemExit("\n\n".join(wrong))
    (STAGED / "recipes.md").write_text("\n".join(recipes()), encoding="utf-8")
    (STAGED / "configuration.md").write_text("\n".join(configuration()), encoding="utf-8")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    if built.returncode:  # zensical ends its report with a traceback of its own
        raise SystemExit(re.sub(r"\x1b\[[\d;]*m", "", built.stderr).split("Traceback (most recent call last)")[0])


def filled(text: str, folder: Path, wrong: list[str]) -> str:
    """A page with the files it shows and the output of its commands, which run in `folder`."""

    def show(block: re.Match[str]) -> str:
        return f"```{block[1]}\n{(folder / block[2]).read_text(encoding='utf-8')}```"

    def answer(block: re.Match[str]) -> str:
        lines = []
        for line in block[2].splitlines():
            lines.append(line)
            if line.startswith("$ "):
                lines.append(printed(shlex.split(line.removeprefix("$ ")), int(block[1] or 0), folder, wrong))
        return "\n".join(["```console", *lines, "```"])

    return RUN.sub(answer, FILE.sub(show, text))


def printed(command: list[str], code: int, folder: Path, wrong: list[str]) -> str:
    """What a command prints, as a page shows it; an exit code other than `code` is added to `wrong`."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "88",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != code:
        wrong.append(f"{shlex.join(command)} exited {done.returncode}, its page says {code}:\n{done.stdout}")
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def recipes() -> Iterator[str]:
    """The page of recipes, from their headers and the first lines of the group files."""
    from shipped_recipes import shipped

    yield "# Recipes\n"
    yield "`seqtune copy recipe=NAME` writes one into a local file, ready to edit. [Concepts](concepts.md) says how"
    yield "they are put together; [Configuration](configuration.md) lists every field.\n"
    yield "## Whole recipes\n"
    for recipe in shipped(RECIPES):
        yield f"### {recipe.name}\n\n{sentence(recipe.header['Purpose'])}\n"
        yield f"```console\n$ {recipe.header['Launch']}\n```\n"
        for field in ("Hardware and memory", "Numbers"):
            yield f"- {field}: {words(link(recipe.header[field]))}"
        yield f"- Try also: `{recipe.header['Override']}`\n"
        yield f'??? note "{recipe.file.name}"\n'
        yield indent(f"```yaml\n{recipe.body}```\n", "    ")
    yield "## Groups\n\nThe options of each group, chosen in a recipe's `defaults` or by a word such as `peft=lora`.\n"
    for axis in Stage.model_fields:
        files = sorted((RECIPES / axis).glob("*.yaml"))
        if files:
            yield f"### {axis}\n\n| word | what it is | values it sets |\n|---|---|---|"
            for file in files:
                first, _, rest = file.read_text(encoding="utf-8").partition("\n")
                values = [f"`{k}: {v}`" for k, v in yaml.safe_load(rest).items() if k != "name"]
                yield f"| `{axis}={file.stem}` | {link(first.lstrip('# '))} | {cell(', '.join(values))} |"
            yield ""


def configuration() -> Iterator[str]:
    """The reference of every field, from the specs."""
    yield "# Configuration\n"
    yield "Every field a recipe or a word on the command line can set. A key that is not here is refused, with the"
    yield "nearest one as a suggestion. `seqtune schema FILE` writes the same as JSON Schema, for editors.\n"
    shown: set[tuple[str, str]] = set()
    for axis in Stage.model_fields:
        if axis in REGISTERED:
            yield f"## {axis}\n"
            for name in registry(axis):
                yield f"### {axis}={name}\n"
                yield from fields(axis, registry(axis).load(name), shown)
        elif axis in AXIS_SPECS:
            yield f"## {axis}\n"
            for spec in AXIS_SPECS[axis]:
                yield from fields(axis, spec, shown)
        if axis == "rollout":
            for name in TOOLS:
                yield f"### {axis}.tools: {name}\n"
                yield from fields(f"{axis}.tools.NAME", TOOLS.load(name), shown)


def fields(axis: str, spec: type[Spec], shown: set[tuple[str, str]]) -> Iterator[str]:
    """The table of one spec, and of the specs its fields may hold where they were not shown before."""
    yield f"{link((spec.__doc__ or '').strip())}\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    properties = spec.model_json_schema()["properties"]
    nested: dict[str, list[type[Spec]]] = {}
    for name, field in spec.model_fields.items():
        default = "required" if field.is_required() else f"`{literal(field.get_default(call_default_factory=True))}`"
        about = " ".join((field.description or "").split())
        inside = specs_in(field.annotation)
        if inside:
            nested[name] = inside
            names = [one.model_fields["name"].default if "name" in one.model_fields else None for one in inside]
            what = " or ".join(f"`{name}`" for name in names if name) or "fields of its own"
        else:
            what = kind(properties[name])
        yield f"| `{axis}.{name}` | {cell(what)} | {cell(default)} | {cell(link(about))} |"
    yield ""
    for name, inside in nested.items():
        if (axis, name) not in shown:
            shown.add((axis, name))
            for one in inside:
                title = one.model_fields["name"].default if "name" in one.model_fields else one.__name__
                yield f"#### {axis}.{name}: {title}\n"
                yield from fields(f"{axis}.{name}", one, shown)


def specs_in(annotation: Any) -> list[type[Spec]]:
    """The specs a field may hold; not those a registry has, which stand by themselves."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [] if annotation in (RewardSpec, ToolSpec) else [annotation]
    return [spec for part in get_args(annotation) for spec in specs_in(part)]


def kind(schema: dict[str, Any]) -> str:
    """A JSON Schema type in words: `int ≥ 1`, `sft or dpo`."""
    if "anyOf" in schema:
        return " or ".join(kind(one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    found = [f"{sign} {schema[key]:g}" for key, sign in LIMITS.items() if key in schema]
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items') or schema['prefixItems'][0])}"
    return " ".join([TYPES[str(schema["type"])], *found])


def literal(value: object) -> str:
    """A default as a recipe writes it."""
    if isinstance(value, Spec):
        return str(getattr(value, "name", type(value).__name__))
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def cell(text: str) -> str:
    """Text that fits a table cell."""
    return text.replace("|", "\\|")


def sentence(text: str) -> str:
    """Text with a capital first letter, unless it begins with code."""
    return text[0].upper() + text[1:]


def words(text: str) -> str:
    """Text whose override words are code."""
    return re.sub(r"[a-z_.]+=\S+(?: [a-z_.]+=\S+)*", lambda found: f"`{found[0]}`", text)


def link(text: str) -> str:
    """Text whose addresses and arXiv numbers are links."""
    text = re.sub(r"(?<![<(\[])(https?://[^\s,)]+[^\s,).:])", r"<\1>", text)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    main()
