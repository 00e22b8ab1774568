"""Rows of Markdown tables; called by the tables of evaluations and experiments."""

from collections.abc import Sequence

GAP = "\N{EN DASH}"  # where a number does not exist


def markdown_row(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
