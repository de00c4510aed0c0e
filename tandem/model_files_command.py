"""`tandem model info`, `tandem model fetch`: how large a model is and what it can do where; its files, here."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from agent.models import eight_bits, kv_settings
from agent.moshi.checkpoint import CheckpointError, fetch_files, known_configs
from agent.moshi.sizes import USABLE, Sizes, sizes_of
from agent.moshi.source import Source
from calls.settings import Settings
from tandem.errors import told_in_one_line

GB = 1e9
CARDS = {"L4": (24, 300), "A100": (80, 2039), "H100": (80, 3350), "H200": (141, 4800)}  # GB, GB/s, as their makers say
CALLS = (1, 8, 32, 64)


def tell_info(settings: Settings, name: str, memory_gb: float | None, gb_per_s: float | None) -> None:
    """Print a model's shape, what it weighs, and what that means on cards; its configs alone are read."""
    with told_in_one_line(CheckpointError):
        place = Source(name)
        config, mimi_config, note = known_configs(place)
        dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
        weights = "int8" if settings.weights == "auto" and config.get("quantize") else eight_bits(settings.weights)
        sizes = sizes_of(place.name, config, mimi_config, dtype=dtype, weights=weights, kv=kv_settings(settings))
    out = Console(highlight=False)
    for what, value in _facts(sizes, weights or str(dtype).removeprefix("torch."), settings, note):
        out.print(f"{what:22} {value}", soft_wrap=True)
    cards = dict(CARDS) if memory_gb is None and gb_per_s is None else {
        "this card": (memory_gb or 0.0, gb_per_s or 0.0)}
    table = Table("card", "calls that fit", *(f"{calls} call{'s' * (calls > 1)}" for calls in CALLS), box=None,
                  title="\nLeast ms a step by the memory's bandwidth, context empty / full", title_justify="left")
    for card, (memory, bandwidth) in cards.items():
        fit = str(sizes.calls_in(memory * GB)) if memory else "-"
        table.add_row(card, fit, *(_floors(sizes, bandwidth * GB, calls) for calls in CALLS))
    out.print(table)
    out.print(f"\nCalls of full context, with {USABLE:.0%} of the memory for weights and calls. A step is due every "
              f"{1000 / sizes.mimi.frame_rate:.0f} ms.", style="dim")


def _facts(sizes: Sizes, weights: str, settings: Settings, note: str) -> list[tuple[str, str]]:
    lm = sizes.lm
    depth = lm.depth
    facts = [
        ("source", note),
        ("temporal transformer", f"{lm.temporal.dim} wide, {lm.temporal.layers} layers, {lm.temporal.heads} heads, "
                                 f"context {sizes.context} frames ({sizes.context / sizes.mimi.frame_rate:.0f} s)"),
        ("depth transformer", f"{depth.dim} wide, {depth.layers} layers, {depth.heads} heads" if depth else "none"),
        ("codebooks", f"{lm.generated_codebooks} generated, {lm.agent_codebooks} the agent's, {lm.caller_codebooks} "
                      f"the caller's, of {lm.audio_card} codes; delays up to {lm.largest_delay}"),
        ("text", f"{lm.text_card} pieces" + (f", {lm.extra_heads} pause heads" if lm.extra_heads else "")),
        ("parameters", f"{sizes.parameters / 1e9:.3f} billion: temporal {sizes.temporal_parameters / 1e9:.3f}, depth "
                       f"{sizes.depth_parameters / 1e9:.3f}, embeddings {sizes.embedding_parameters / 1e9:.3f}, Mimi "
                       f"{sizes.mimi_parameters / 1e9:.3f}"),
        ("weights in memory", f"{sizes.weight_bytes / GB:.2f} GB ({weights})"),
        ("read in a step", f"{sizes.step_bytes / GB:.2f} GB of weights, whatever the calls"),
        ("keys and values", f"{sizes.kv_bytes} bytes a frame "
                            f"({settings.dtype if settings.kv == 'auto' else settings.kv})"),
        ("a call", f"{sizes.call_bytes / 1e6:.1f} MB"),
    ]
    for condition in lm.conditions:
        facts.append((f"condition {condition.name}", ", ".join(condition.values)))
    return facts


def _floors(sizes: Sizes, bytes_per_s: float, calls: int) -> str:
    if not bytes_per_s:
        return "-"
    return " / ".join(f"{1000 * sizes.floor_s(bytes_per_s, calls, filled):.1f}" for filled in (0.0, 1.0))


def fetch(name: str) -> None:
    """Have a model's files in the cache, with a bar for each; what is there already isn't fetched again."""
    out = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def told(file: str, here: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = progress.add_task(file, total=total)
            progress.update(tasks[file], completed=here, total=total)

        with told_in_one_line(CheckpointError):
            files = fetch_files(name, told)
    for file in files:
        out.print(f"{file.path.stat().st_size / 1e6:10.1f} MB  {file.name}", soft_wrap=True)
