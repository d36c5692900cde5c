import os
from collections.abc import Callable
from typing import Any

from .._optional import optional_import
from . import _html, _views
from ._studio import Choice, Studio

_MODEL = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
"""One call of the model at a time: they share its cores."""


def gradio() -> Any:
    """Gradio, told to report nothing to anybody. **Raises:** `ImportError` that says how to install it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return optional_import("gradio", extra="demo")


def make_page(studio: Studio, *, name: str) -> Any:
    """The page of a studio.

    **Arguments:** `studio`; `name`: of the model, for the title.

    **Returns:** `gradio.Blocks`, for [`serve`][elt_zoo.demo.serve], or to mount in an application of your own.

    **Raises:** `ImportError` without Gradio, the extra `demo`.
    """
    gr, first = gradio(), studio.first
    config, settings = studio.generator.config, studio.generator.settings
    with gr.Blocks(title=f"elt_zoo: {name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\nOne set of weights, every number of loops and steps.")
        with gr.Row():
            with gr.Column():
                # A slider with one place only is none to Gradio.
                most_steps, last_class = max(settings.steps, 2), max(config.num_classes - 1, 1)
                loops = gr.Slider(1, len(studio.loops), first.loops, step=1, label="Loops", elem_id="loops")
                steps = gr.Slider(1, most_steps, first.steps, step=1, label="Steps", elem_id="steps")
                label = gr.Slider(0, last_class, first.label, step=1, label="Class", elem_id="class")
                strongest = max(6.0, 2 * first.guidance)
                guidance = gr.Slider(
                    0.0, strongest, first.guidance, step=0.1, label="Guidance (1 is none)", elem_id="guidance"
                )
                seed = gr.Slider(0, 99, first.seed, step=1, label="Seed", elem_id="seed")
            with gr.Column():
                shown = gr.HTML(elem_id="now")
        sliders = [loops, steps, label, guidance, seed]
        view = gr.Radio(list(_views.VIEWS), value=next(iter(_views.VIEWS)), label="Show", elem_id="view")
        at = gr.Slider(0, 100, 25, step=1, label="How far sampling is (%)", visible=False, elem_id="at")
        viewed = gr.HTML(elem_id="viewed")

        moved = gr.on(
            [page.load, *(slider.change for slider in sliders)],
            lambda *values: _said(lambda: _views.now(studio, _choice(*values))),
            sliders,
            shown,
            trigger_mode="always_last",  # of a slider's moves
            queue=False,  # a request less
            show_progress="hidden",
        )
        see = {
            "fn": lambda view, at, *values: _said(lambda: _views.VIEWS[view](studio, _choice(*values), at)),
            "inputs": [view, at, *sliders],
            "outputs": viewed,
            "trigger_mode": "always_last",
        } | _MODEL
        moved.then(**see)
        gr.on([view.change, at.change], **see)
        view.change(lambda view: gr.Slider(visible=view == _views.EXITS), view, at, queue=False, show_progress="hidden")
        _plan(gr, page, studio, sliders)
    page.queue(default_concurrency_limit=1)
    return page


def _plan(gr: Any, page: Any, studio: Studio, sliders: list[Any]) -> None:
    """The part of the page that samples by the clock."""
    gr.Markdown("## The best samples in a given time")
    _, _, label, _, seed = sliders
    measure = gr.Button("Measure this machine", visible=studio.planner is None, elem_id="measure")
    note = gr.HTML(elem_id="measuring")
    least, most = _range(studio)
    time = gr.Slider(
        least, most, most, label="Milliseconds", visible=studio.planner is not None, elem_id="milliseconds"
    )
    planned, plans = gr.HTML(elem_id="planned"), gr.HTML(_plans(studio), elem_id="plans")

    def measured():
        words = "Measuring, for about a minute. Leave the sliders alone until it is done."
        yield _html.text(words), gr.skip(), gr.skip(), gr.skip()
        try:
            studio.measure()
        except ValueError as problem:
            yield _html.error(problem), gr.skip(), gr.skip(), gr.skip()
            return
        least, most = _range(studio)
        slider = gr.Slider(minimum=least, maximum=most, value=most, visible=True)
        yield "", gr.Button(visible=False), slider, _plans(studio)

    sample = {
        "fn": lambda milliseconds, *values: (
            _said(lambda: _views.planned(studio, _choice(*values), milliseconds)) if studio.planner else ""
        ),
        "inputs": [time, *sliders],
        "outputs": planned,
        "trigger_mode": "always_last",
    } | _MODEL
    measure.click(measured, None, [note, measure, time, plans], **_MODEL).then(**sample)
    gr.on([page.load, time.change, label.change, seed.change], **sample)


def _range(studio: Studio) -> tuple[float, float]:
    """Milliseconds from the fastest plan to twice those of the best."""
    if studio.planner is None:
        return 0.0, 1.0
    frontier = studio.planner.frontier(batch=studio.planned_batch)
    return round(frontier[0].late_milliseconds + 0.1, 1), round(2 * frontier[-1].late_milliseconds, 1)


def _plans(studio: Studio) -> str:
    return _views.plans(studio) if studio.planner else ""


def _choice(loops: float, steps: float, label: float, guidance: float, seed: float) -> Choice:
    return Choice(loops=int(loops), steps=int(steps), label=int(label), guidance=float(guidance), seed=int(seed))


def _said(show: Callable[[], str]) -> str:
    """What a view shows, or in its place what is wrong with the choice."""
    try:
        return show()
    except (ValueError, FloatingPointError) as problem:
        return _html.error(problem)


def serve(page: Any, *, host: str = "127.0.0.1", port: int | None = None, share: bool = False) -> str:
    """Serves a page in threads of this process, which ask nothing of the network.

    **Arguments:** `page`: of [`make_page`][elt_zoo.demo.make_page]; `host`: `127.0.0.1` is this machine alone,
    `0.0.0.0` everyone who can reach it; `port`: default the first free one from 7860 on; `share`: also give it a public
    address, through Gradio's servers.

    **Returns:** the address. `page.block_thread()` waits for Ctrl-C, `page.close()` stops it.

    **Raises:** `OSError` if the port is taken.
    """
    gr = gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, local, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        ssr_mode=False,
        theme=gr.themes.Default(**fonts),
        css=_html.STYLE,
    )
    return public or local
