"""What methods, tasks and pinned files are, as the entries of the lists that the command line prints."""

import json
from typing import Any


def method_entry(method: Any) -> dict[str, Any]:
    """What a method is, from its class."""
    return {
        "about": _about(method),
        "source": method.source,
        "needs": ", ".join(sorted(method().requires())) or "the two adapters only",
        "result": "exact low rank (ranks of both adapters added)"
        if method.is_low_rank
        else "full rank; set rank to compress",
        "parameters": {
            name: f"{' '.join((field.description or '').split())} Default: {_default(field)}."
            for name, field in method.model_fields.items()
            if name != "name"
        },
    }


def _default(field: Any) -> str:
    """A parameter's default as it would stand in a run file."""
    value = field.get_default(call_default_factory=True)
    return json.dumps(value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value)


def _about(kind: Any) -> str:
    """First paragraph of a class's docstring, as plain text."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split()).replace("``", "")


def task_entry(task: Any) -> dict[str, Any]:
    """What a task is, from its class."""
    return {
        "about": _about(task),
        "family": task.family,
        "measures": "; ".join(f"{measure.title} ({measure.unit})" for measure in task().measures),
        "judge": task.judge.about if task.judge else "none",
        "source": task.source,
        "needs answers": "yes" if task.needs_answer else "no",
    }


def wheel(member: Any) -> str:
    """Where a known file comes from."""
    return f"{member.package}=={member.version}, {member.member}"
