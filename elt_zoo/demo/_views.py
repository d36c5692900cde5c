"""The views of the page: each is a function of the studio and of what the sliders say, to HTML."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from ..anytime import loops_text
from ..figures import plot_plans, plot_update_norms
from . import _html
from ._studio import Choice, Studio

_UNITS = ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))


def now(studio: Studio, choice: Choice) -> str:
    """The samples of the chosen loops and steps, and what they cost."""
    samples, costs, most = studio.samples(choice), studio.costs(choice), studio.generator.config.max_loops
    columns = -(-studio.count // 2)
    image = _html.pictures(samples.pixels, f"{studio.count} samples of class {choice.label}", columns=columns)
    branches = 2 if costs.guidance else 1
    beyond = f" (trained for {most})" if choice.loops > most else ""
    said = (
        f"{choice.loops} loops{beyond}, {choice.steps} steps: {branches * choice.steps * costs.effective_depth:,} "
        f"layer applications and {_operations(costs.sample_flops)} for a sample. These {studio.count} took "
        f"{1e3 * samples.seconds:.3g} ms."
    )
    return f'<div class="elt-large">{image}{_html.text(said)}</div>'


def every_loop_count(studio: Studio, choice: Choice, at: float) -> str:
    """The same samples at every loop count."""
    figures = [
        _html.figure(
            _html.pictures(samples.pixels, f"Samples with {loops} loops"),
            str(loops),
            f"{1e3 * samples.seconds:.3g} ms",
            now=loops == choice.loops,
        )
        for loops, samples in zip(studio.loops, studio.at_every_loop_count(choice), strict=True)
    ]
    return _html.row(figures) + _html.text(
        "Each column has so many loops and took so long, each row starts from the same noise."
    )


def exits(studio: Studio, choice: Choice, at: float) -> str:
    """What every exit makes of one unfinished sample."""
    views, step = studio.views(choice), round(at / 100 * (choice.steps - 1))
    figures = [_html.figure(_html.pictures(views.known[step][None], "What the network sees"), "input")]
    for index, loops in enumerate(studio.loops):
        image = _html.pictures(views.guesses[step, index][None], f"What exit {loops} expects")
        change = "" if index == 0 else _change(studio, float(views.changes[step, index - 1]))
        figures.append(_html.figure(image, str(loops), change, now=loops == choice.loops))
    unit = "share of tokens that flip" if _tokens(studio) else "root mean square change"
    said = (
        f"Step {step + 1} of {choice.steps}: the unfinished sample, and the finished one as each exit expects it. "
        f"Under each exit the {unit} since the exit before."
    )
    return _html.row(figures) + _html.text(said)


def loop_changes(studio: Studio, choice: Choice, at: float) -> str:
    """How far each loop moves the state, and how much of the guess it changes."""
    views = studio.views(choice)
    draw = functools.partial(plot_update_norms, norms=views.norms, max_loops=studio.generator.config.max_loops)
    rows = [
        [f"{loops} → {loops + 1}", _change(studio, change)]
        for loops, change in zip(studio.loops, np.mean(views.changes, axis=0), strict=False)
    ]
    unit = "tokens that flip" if _tokens(studio) else "change of x0 (rms)"
    return (
        _html.plot(draw, "Relative update norm of every loop at every sampling step")
        + _html.table(["exits", f"{unit}, mean over steps"], rows)
        + _html.text("The curves: how far each loop moves the state, relative to the state's norm.")
    )


def trajectory(studio: Studio, choice: Choice, at: float) -> str:
    """The unfinished sample before every step, and what the network expects there."""
    views, last = studio.views(choice), studio.samples(choice).pixels[:1]
    figures = []
    for step in range(choice.steps):
        pair = np.stack([views.known[step], views.guesses[step, choice.loops - 1]])
        figures.append(_html.figure(_html.pictures(pair, f"Step {step + 1}"), str(step + 1)))
    figures.append(_html.figure(_html.pictures(last, "The sample"), "sample", now=True))
    said = "Above: the unfinished sample before each step. Below: the finished one as the network expects it there."
    return _html.row(figures) + _html.text(said)


EXITS = "Exits of one input"
VIEWS: Mapping[str, Callable[[Studio, Choice, float], str]] = {
    "Every loop count": every_loop_count,
    EXITS: exits,
    "What loops change": loop_changes,
    "Trajectory": trajectory,
}
"""The views by name, in the order of the page. Each takes the studio, the choice, and how far sampling is in
percent.
"""


def plans(studio: Studio) -> str:
    """Every plan that no other beats in both time and quality."""
    assert studio.planner is not None
    batch = studio.planned_batch
    rows = [dataclasses.asdict(plan) for plan in studio.planner.frontier(batch=batch)]
    return _html.plot(functools.partial(plot_plans, plans=rows, title=f"{batch} at a time"), "Quality against time")


def planned(studio: Studio, choice: Choice, milliseconds: float) -> str:
    """The samples of the plan for a time, and what the plan says."""
    plan, samples = studio.planned(choice, milliseconds)
    image = _html.pictures(samples.pixels, "Samples of the plan", columns=-(-len(samples.pixels) // 2))
    said = (
        f"{plan.steps} steps with these loops: {loops_text(plan.loops)}. Predicted {plan.milliseconds:.3g} ms, one "
        f"call in 200 over {plan.late_milliseconds:.3g} ms; this call took {1e3 * samples.seconds:.3g} ms. "
        f"{plan.measure}: {plan.quality:.3g}."
    )
    return f'<div class="elt-large">{image}</div>{_html.text(said)}'


def _tokens(studio: Studio) -> bool:
    return np.issubdtype(studio.generator.config.example.dtype, np.integer)


def _operations(flops: int) -> str:
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if flops >= scale), _UNITS[-1])
    return f"{flops / scale:.3g} {unit}"


def _change(studio: Studio, value: float) -> str:
    return f"{value:.0%}" if _tokens(studio) else f"{value:.3f}"
