"""What a comparison's picture and report say in words: budget, captions, cells of the table."""

from collections.abc import Sequence

from lopt.comparison.results import RivalRow, entries_of, rows
from lopt.comparison.state import seconds_of
from lopt.comparison.work import Found


def loss_text(row: RivalRow) -> str:
    """The final training loss; `nan` where a seed diverged, which no mean over the others may hide."""
    if not row.diverged:
        return str(row.final_loss)
    others = f" (others: {row.final_loss})" if row.final_loss.count else ""
    return f"nan{others}, {row.diverged} of {row.raced} seeds diverged"


def speedup_text(row: RivalRow) -> str:
    """`1.16 ± 0.18x`; how many seeds never get there is said."""
    if row.reference:
        return "1x"
    missed = row.raced - row.reached
    if not row.reached:
        return f"never ({missed} of {row.raced})"
    return f"{row.speedup}x" + f", never in {missed} of {row.raced}" * (missed > 0)


def hours(seconds: float) -> str:
    """Seconds as hours, or as minutes or seconds where they are few."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def devices(found: Found) -> str:
    """The devices that the runs were meta-trained on."""
    starts = [start for entry in entries_of(found) for start in entry.state.starts]
    names = [f"{start.get('device', 'unknown')} x {start.get('devices', '?')}" for start in starts]
    return "; ".join(dict.fromkeys(names)) or "unknown"


def captions(found: Found) -> list[str]:
    """What lines and bands are."""
    counts = {label: len(entries) for label, entries in found.entries.items() if entries}
    single = [label for label, count in counts.items() if count == 1]
    racing = found.agenda.budget.experiment.evaluation.seeds
    several = [label for label in counts if label not in single]
    parts = []
    if several:
        parts.append(f"over {_range([counts[label] for label in several])} meta-seeds for {', '.join(several)}")
    if single:
        parts.append(f"over {racing} racing seeds of a single meta-seed for {', '.join(single)}")
    parts.append(f"over {racing} racing seeds for the tuned rivals")
    line = f"Line: mean, band and ±: one standard error, {'; '.join(parts)}."
    return [line + " Right: thin lines are meta-seeds, a dot is the theta that was raced, a cross a meta-training that diverged."]


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def budget_lines(found: Found) -> list[str]:
    """What was spent, as sentences."""
    experiment, agenda = found.agenda.budget.experiment, found.agenda
    evaluation = experiment.evaluation
    entries = entries_of(found)
    inner_steps = entries[0].inner_steps if entries else 0
    total = sum(entry.state.done * entry.inner_steps for entry in entries)
    spent = sum(seconds_of(entry.state.records, entry.inner_steps) for entry in entries)
    labels = ", ".join(f"{label} {len(of_label)}" for label, of_label in found.entries.items())
    a_run = f"{experiment.outer_steps:,} outer steps of {inner_steps:,} inner steps, {_count(experiment.outer_steps * inner_steps)} a run"
    if experiment.init_from is not None:
        a_run += f", from the theta of {experiment.init_from}"
    tuned = ", ".join(f"{row.label} ({row.tuned})" for row in rows(found) if row.tuned)
    return [
        f"Meta-training: {a_run}. Meta-seeds raced, of {agenda.budget.seeds}: {labels}. In all {_count(total)} inner steps in "
        f"{hours(spent)} of outer steps (compilation and held-out evaluations not counted) on {devices(found)}.",
        f"Race: {evaluation.steps:,} inner steps from {evaluation.seeds} racing seeds, the same for all. Tuned on "
        f"{evaluation.tuning_seeds} other{' seeds' if evaluation.tuning_seeds > 1 else ''}: {tuned or 'none'}.",
    ]


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,}"


def outer_steps_text(row: RivalRow, total: int) -> str:
    """`10,000` where all runs have them, else what each has, of how many."""
    if not row.is_learned:
        return ""
    if all(done == total for done in row.outer_steps):
        return f"{total:,}"
    return f"{', '.join(f'{done:,}' for done in row.outer_steps)} of {total:,}"
