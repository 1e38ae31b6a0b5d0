"""Progress on stderr: a bar for whatever takes longer than two seconds, silence in logs that nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@runtime_checkable
class Reporter(Protocol):
    """What a stage tells while it works."""

    def say(self, text: str) -> None:
        """One line about what happens now."""

    def task(self, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """While it is open, ``advance(n)`` moves a bar on by n."""
        ...


class SilentReporter:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Count nothing."""
        del description, total
        yield lambda _: None


class TerminalReporter:
    """Lines and bars on stderr, so that stdout holds results only."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar; on a terminal it is updated in place, in a log file only its last state is kept."""
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task, count)
