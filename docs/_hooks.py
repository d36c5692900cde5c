"""What mkdocs does to our pages beyond Markdown: tables made from the code, formulas as MathML, and arXiv links.

A page asks for a table with a line `<!-- generated: NAME -->`; the functions that make them are in `_TABLES`. Formulas
become MathML when the site is built, so reading it needs neither a script nor the network. Where `mike` builds one of
several versions, the header offers the others.
"""

import csv
import dataclasses
import html
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from latex2mathml.converter import convert

_RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
_PLAY = Path(__file__).parent / "assets" / "play"
_MARKER = re.compile(r"^<!-- generated: (?P<name>[\w-]+) -->$", re.MULTILINE)
_INLINE = re.compile(r'<span class="arithmatex">\\\((?P<tex>.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(?P<tex>.*?)\\\]\s*</div>', re.DOTALL)

_TAG = re.compile(r"(<[^>]+>)")
# A year and month, a point, and four or five digits.
_ARXIV = re.compile(r"(?<![\w./:-])\d{2}(?:0[1-9]|1[0-2])\.\d{4,5}(?![\w.]*\d)")

# Of "log p" the converter leaves "logp".
_NAMED_FUNCTION = re.compile(r"(<mi>(?:log|sin|cos|tan|arccos)</mi>)(?=<m(?:i|row|sub|sup)\b)")


def on_config(config, **_):
    # A site without versions would ask in vain for the list of them.
    if "MIKE_DOCS_VERSION" in os.environ:
        config.extra["version"] = {"provider": "mike", "default": "latest"}
    return config


def on_page_markdown(markdown: str, page, **_) -> str:
    def table(match: re.Match) -> str:
        name = match["name"]
        if name not in _TABLES:
            raise ValueError(f"{page.file.src_path} asks for the table {name!r}; known are {sorted(_TABLES)}.")
        return _TABLES[name]()

    return _MARKER.sub(table, markdown)


def on_page_content(content: str, **_) -> str:
    content = _with_arxiv_links(content)
    content = _INLINE.sub(lambda match: _formula(match["tex"], "inline"), content)
    return _BLOCK.sub(lambda match: f'<div class="arithmatex">{_formula(match["tex"], "block")}</div>', content)


def _with_arxiv_links(content: str) -> str:
    """Makes a link of every bare arXiv number, such as the 2604.09168 of a docstring, outside links and code."""
    inside = 0
    pieces = []
    for piece in _TAG.split(content):
        if piece.startswith("<"):
            opened = re.match(r"</?(a|code|pre|script|style|h\d)\b", piece)
            if opened and not piece.endswith("/>"):
                inside += -1 if piece.startswith("</") else 1
        elif inside == 0:
            piece = _ARXIV.sub(r'<a href="https://arxiv.org/abs/\g<0>">\g<0></a>', piece)
        pieces.append(piece)
    return "".join(pieces)


def _formula(tex: str, display: str) -> str:
    formula = convert(html.unescape(tex).strip(), display=display)
    return _NAMED_FUNCTION.sub(r'\1<mspace width="0.167em" />', formula)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _count(number: float) -> str:
    """Three digits and a suffix of powers of 1000."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{suffix}"
    return f"{number:.3g}"


def _presets() -> str:
    from elt_zoo.families import preset, preset_names
    from elt_zoo.profile import profile

    rows = []
    for name in preset_names():
        config = preset(name)
        costs = profile(config)
        rows.append(
            [
                f"`{name}`",
                config.family,
                f"{config.num_layers}N · {config.max_loops}L",
                str(config.dim),
                str(config.num_heads),
                str(config.num_tokens),
                _count(costs.trunk_parameters),
                _count(costs.parameters),
                _count(costs.forward_macs),
            ]
        )
    header = ["Name", "Framework", "Layers · loops", "Width", "Heads", "Tokens"]
    return _table([*header, "Trunk parameters", "All parameters", "MACs"], rows)


def _results(name: str) -> list[dict[str, str]]:
    """The rows that a script in `benchmarks/` left."""
    with (_RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _benchmark(name: str) -> str:
    """The times of both sides, with the machine that they were taken on."""
    rows = _results(name)
    header = ["Case", "Ours (ms)", "Baseline (ms)", "Ratio", "Quartiles"]
    lines = [
        [
            row["case"],
            *(f"{float(row[column]):.1f}" for column in ("ours_ms", "baseline_ms")),
            f"{float(row['ratio']):.3f}",
            f"{float(row['ratio_low']):.3f}–{float(row['ratio_high']):.3f}",
        ]
        for row in rows
    ]
    where = "; ".join(dict.fromkeys(row["environment"] for row in rows))
    rounds = sorted({int(row["rounds"]) for row in rows})
    counted = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return f"{_table(header, lines)}\n\n{where}; {counted} rounds."


def _training() -> str:
    """The times of others over ours, a row for each size and a column for each side."""
    if not (_RESULTS / "training.csv").exists():
        return "*The table is made by the script and is not in this version of the page.*"
    rows = _results("training")
    sides = {
        "eager": "PyTorch",
        "compiled": "`torch.compile`",
        "at once": "At once",
        "written out": "Written out",
        "storing": "Storing all",
    }
    cases: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        case = tuple(row[name] for name in ("family", "width", "tokens", "batch"))
        cases.setdefault(case, {})[row["side"]] = row
    lines = []
    for case in sorted(cases, key=lambda case: (case[0], *map(int, case[1:]))):
        measured = cases[case]
        ours = next(iter(measured.values()))
        lines.append(
            [
                *case,
                f"{float(ours['ours_ms']):.1f}",
                f"{float(ours['peak_share']):.2f}",
                *(_speed_up(measured[side]) if side in measured else "–" for side in sides),
            ]
        )
    where = "; ".join(dict.fromkeys(row["environment"] for row in rows))
    header = ["Family", "Width", "Tokens", "Batch", "Ours (ms)", "Share of peak", *sides.values()]
    return f"{_table(header, lines)}\n\n{where}."


def _start() -> str:
    """Seconds until the first step or picture, before and now."""
    rows = _results("start")

    def cell(seconds: str) -> str:
        return "–" if math.isnan(float(seconds)) else f"{float(seconds):.1f}"

    # Without `--before` the script knows of no other tree.
    lines = [[row["case"], cell(row.get("before_s", "nan")), cell(row["now_s"])] for row in rows]
    return f"{_table(['', 'Before (s)', 'Now (s)'], lines)}\n\n{rows[0]['environment']}; {rows[0]['rounds']} rounds."


def _page_faults() -> str:
    """What large pages change for a training step."""
    rows = _results("page-faults")
    lines = [
        [
            row["case"],
            f"{float(row['faults_per_step']):,.0f}",
            f"{float(row['kernel_share']):.0%}",
            f"{float(row['processor_ms_per_step']):.0f}",
        ]
        for row in rows
    ]
    header = ["", "Page faults a step", "Share of the kernel", "Processor time a step (ms)"]
    return f"{_table(header, lines)}\n\n{rows[0]['environment']}."


def _fit() -> str:
    """What each of the paper's models needs on each machine: the first setting that fits."""
    steps = [row for row in _results("fit") if row["program"] == "training step"]
    machines = dict.fromkeys(row["machine"] for row in steps)
    lines = []
    for name in dict.fromkeys(row["preset"] for row in steps):
        tried = {machine: [r for r in steps if (r["preset"], r["machine"]) == (name, machine)] for machine in machines}
        lines.append([f"`{name}`", *(_fitting(rows) for rows in tried.values())])
    return _table(["Preset", *machines], lines)


def _fitting(rows: list[dict[str, str]]) -> str:
    """The setting that fits and the memory of a chip, or that none does."""
    fits = [row for row in rows if row["found"] != "does not fit"]
    if not fits:
        return "no setting found" if rows else "–"
    row = fits[0]
    settings = [f"{'about ' if row['found'] == 'estimate' else ''}{_gibibytes(row['total_bytes'])} GiB", row["remat"]]
    settings += [f"fsdp {row['fsdp']}"] if row["fsdp"] != "1" else []
    settings += ["in loops"] if row["gather"] == "loop" else []
    settings += [f"{row['accumulation']} parts"] if row["accumulation"] != "1" else []
    return ", ".join(settings)


def _fit_compiled() -> str:
    """What the compiler said of each program that fits, by kind of memory."""
    rows = [row for row in _results("fit") if row["found"] == "fits"]
    lines = []
    for row in rows:
        setting = f"{row['remat']}, fsdp {row['fsdp']}" if row["program"] == "training step" else "–"
        memory = (_gibibytes(row[f"{kind}_bytes"]) for kind in ("argument", "temporary", "code", "total"))
        products = f"{float(row['flops']) / 1e12:.3g}"
        lines.append([f"`{row['preset']}`", row["machine"], row["program"], setting, *memory, products])
    memory = ("Arguments", "Temporaries", "Code", "Together")
    header = ["Preset", "Machine", "Program", "Setting", *memory, "TFLOPs"]
    return f"{_table(header, lines)}\n\n{rows[0]['environment']}."


def _gibibytes(text: str) -> str:
    return f"{int(text) / 2**30:.3g}"


def _speed_up(row: dict[str, str]) -> str:
    """The baseline's time over ours, with quartiles."""
    middle, low, high = (1 / float(row[name]) for name in ("ratio", "ratio_high", "ratio_low"))
    return f"{middle:.2f}<br>({low:.2f}–{high:.2f})"


def _data() -> str:
    """Examples per second of both sides, how far images are from ADM's, and how long training waits; each row has only
    some of these.
    """
    rows = _results("data")
    header = ["Case", "Ours (1/s)", "DataLoader (1/s)", "Ratio", "Quartiles", "Grey levels, mean / most", "Wait"]
    lines = []
    for row in rows:
        measured = {name: float(value) for name, value in row.items() if value and name not in ("case", "environment")}
        formats = (
            "{ours_per_second:,.0f}",
            "{baseline_per_second:,.0f}",
            "{ratio:.2f}",
            "{ratio_low:.2f}–{ratio_high:.2f}",
            "{mean_difference:.2f} / {max_difference:.0f}",
            "{data_wait:.2%} of steps of {step_ms:.0f} ms",
        )
        lines.append([row["case"], *(_or_dash(each, measured) for each in formats)])
    return f"{_table(header, lines)}\n\n{rows[0]['environment']}; {rows[0]['rounds']} rounds."


def _or_dash(text: str, values: dict[str, float]) -> str:
    """The text with its values, or a dash if they are not there."""
    try:
        return text.format_map(values)
    except KeyError:
        return "–"


def _weights() -> str:
    from elt_zoo.pretrained import catalog

    rows = []
    for name, weights in catalog().items():
        host = weights.source.split("/")[2:3]
        source = f"[{host[0]}]({weights.source})" if host else weights.source
        loader = f"`{weights.loader.__name__}`" if weights.loader else "–"
        rows.append(
            [f"`{name}`", weights.network, weights.status, loader, weights.licence or "–", source, weights.note]
        )
    return _table(["Name", "Network", "Status", "Loader", "Licence", "Source", "Note"], rows)


def _range(values: Iterable[float], digits: int) -> str:
    """The lowest and the highest value."""
    values = sorted(values)
    low, high = (f"{value:.{digits}f}" for value in (values[0], values[-1]))
    return low if low == high else f"{low}–{high}"


def _expected_curves() -> str:
    """Held-out loss of the first and the last exit while ILSD trains on the digits, over seeds."""
    with (Path(__file__).parent / "reproduction" / "curves.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["data"], row["objective"], row["curriculum"]) == ("digits", "ilsd", "linear")
        ]
    models = {"diffusion": ("dit", "2"), "masked": ("maskgit", "1")}
    lines = []
    for step in ("50", "100", "200", "300", "400", "500", "750", "1000"):
        line = [step]
        for family, layers in models.values():
            at = [row for row in rows if (row["family"], row["num_layers"], row["step"]) == (family, layers, step)]
            line += [_range([float(row[exit]) for row in at], 3) for exit in ("first_exit", "last_exit")]
        lines.append(line)
    header = ["Step", *(f"{name}, L = {loops}" for name in models for loops in (1, 4))]
    return _table(header, lines)


def _expected_quality() -> str:
    """What the presets of the digits reach with their default settings, over seeds."""
    rows = [row for row in _results("digits") if row["objective"] == "ilsd" and int(row["loops"]) <= 4]
    columns = (
        ("heldout_loss", 3),
        ("digits_frechet_distance", 2),
        ("accuracy", 3),
        ("megaflops_per_sample", 0),
        ("milliseconds_per_sample", 1),
    )
    lines = []
    for family, loops in dict.fromkeys((row["family"], row["loops"]) for row in rows):
        mine = [row for row in rows if (row["family"], row["loops"]) == (family, loops)]
        cells = (_range([float(row[column]) for row in mine], digits) for column, digits in columns)
        lines.append([f"`digits-{family}`", loops, *cells])
    header = ["Preset", "L", "Held-out loss", "Digits Fréchet distance", "Accuracy", "MFLOPs", "Milliseconds"]
    return _table(header, lines)


def _retrofit() -> str:
    """Held-out loss by start and step, a column for each step and the seeds side by side."""
    rows = _results("retrofit")
    steps = sorted({int(row["step"]) for row in rows})
    lines = []
    for start in dict.fromkeys(row["start"] for row in rows):
        losses = [[float(r["all_exits"]) for r in rows if (r["start"], int(r["step"])) == (start, s)] for s in steps]
        lines.append([start.replace("_", " "), *(" / ".join(f"{loss:.3f}" for loss in each) for each in losses)])
    return f"{_table(['Start', *(f'step {step}' for step in steps)], lines)}\n\n{rows[0]['environment']}."


def _video_protocols() -> str:
    from elt_zoo.metrics import VideoProtocol

    cards = [dataclasses.asdict(protocol()) for protocol in (VideoProtocol.magvit, VideoProtocol.stylegan_v)]
    rows = [[f"`{field}`", *(str(card[field]) for card in cards)] for field in cards[0] if field != "name"]
    return _table(["", *(f"`{card['name']}`" for card in cards)], rows)


def _top_level() -> str:
    import elt_zoo

    public = {name: value for name, value in vars(elt_zoo).items() if getattr(value, "__doc__", None)}
    rows = [
        [f"[`elt_zoo.{name}`][elt_zoo.{name}]", _first_sentence(value.__doc__)]
        for name, value in sorted(public.items())
        if not name.startswith("_") and not _is_module(value)
    ]
    return _table(["Name", "What it is"], rows)


def _modules() -> str:
    navigation = (Path(__file__).parents[1] / "mkdocs.yml").read_text()
    rows = []
    for page in re.findall(r"elt_zoo\.\w+: api/(\w+)\.md", navigation):
        module = importlib.import_module(f"elt_zoo.{page}")
        rows.append([f"[`elt_zoo.{page}`]({page}.md)", _first_sentence(module.__doc__ or "")])
    return _table(["Module", "What it holds"], rows)


def _play() -> str:
    """The sliders, and the sheets of samples that they choose from, which are all there is without JavaScript."""
    sheets = json.loads((_PLAY / "sheets.json").read_text())
    models = "".join(
        f'<label><input type="radio" name="play-model" value="{index}"{" checked" if index == 0 else ""}> '
        f"{sheet['title']} <code>{sheet['model']}</code></label>"
        for index, sheet in enumerate(sheets)
    )
    first = sheets[0]
    starts = {"loops": 0, "steps": len(first["steps"]) // 2, "class": 3}
    sliders = "".join(
        f'<label><span>{name.capitalize()} <output data-play="{name}-shown"></output></span>'
        f'<input type="range" data-play="{name}" min="0" max="9" value="{start}"></label>'
        for name, start in starts.items()
    )
    pictures = "".join(
        f'<img src="../assets/play/{sheet["model"]}.png" alt="Samples of {sheet["model"]}: a row for every number of '
        f'steps and loops, a column for every class and noise">'
        for sheet in sheets
    )
    data = json.dumps(sheets).replace("</", r"<\/")
    return f"""<div class="play">
<fieldset class="play-models"><legend>Model</legend>{models}</fieldset>
<div class="play-now-shown">
<canvas data-play="picture" role="img"></canvas>
<div class="play-controls">{sliders}
<dl>
<div><dt>Layer applications</dt><dd data-play="layers"></dd></div>
<div><dt>Operations for a sample</dt><dd data-play="flops"></dd></div>
<div><dt data-play="share-name"></dt><dd data-play="share"></dd></div>
</dl></div></div>
<figure><canvas data-play="all-loops" role="img" aria-label="The same samples at every loop count"></canvas>
<div data-play="loop-names"></div><figcaption>The same samples at every loop count</figcaption></figure>
<div class="play-sheets">{pictures}</div>
<script type="application/json">{data}</script>
</div>
<script src="../assets/play.js"></script>"""


def _is_module(value: object) -> bool:
    return type(value).__name__ == "module"


def _first_sentence(docstring: str) -> str:
    text = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", text)[0].removesuffix(".")


def _attention() -> str:
    """What padding for the fused attention kernels adds to the operations of the models of the paper."""
    from elt_zoo.families import preset
    from elt_zoo.nn import AttentionDevice, attention_kernel
    from elt_zoo.profile import profile

    gpu = AttentionDevice(platform="cuda", capability=(9, 0))
    devices = {"NVIDIA GPU": gpu, "TPU": AttentionDevice(platform="tpu")}
    rows = []
    for name in ("elt-B-6Nx2L", "elt-L-8Nx3L", "elt-XL-7Nx4L", "elt-dit-8Nx4L", "elt-ucf101-6Nx4L"):
        config, costs = preset(name), profile(preset(name))
        tokens, head_dim = config.num_tokens, config.dim // config.num_heads
        row = [f"`{name}`", str(tokens), str(head_dim)]
        for device in devices.values():
            choice = attention_kernel(device, "bfloat16", tokens, head_dim)
            share = dataclasses.replace(costs, attention=choice).padding_share
            row.append(f"{choice.kernel}, {choice.padded_tokens} tokens, {share:.1%}")
        rows.append(row)
    return _table(["Preset", "Tokens", "Numbers in a head", *devices], rows)


_TABLES: dict[str, Callable[[], str]] = {
    "presets": _presets,
    "attention": _attention,
    "weights": _weights,
    "expected-curves": _expected_curves,
    "expected-quality": _expected_quality,
    "moving-digits": lambda: (_RESULTS / "moving-digits.md").read_text(),
    "benchmark-retrofit": _retrofit,
    "benchmark-networks": lambda: _benchmark("networks"),
    "top-level": _top_level,
    "play": _play,
    "video-protocols": _video_protocols,
    "modules": _modules,
    "benchmark-looping": lambda: _benchmark("looping"),
    "benchmark-sampler-overhead": lambda: _benchmark("sampler-overhead"),
    "benchmark-loading": lambda: _benchmark("loading"),
    "benchmark-data": _data,
    "benchmark-training": _training,
    "benchmark-page-faults": _page_faults,
    "benchmark-start": _start,
    "fit": _fit,
    "fit-compiled": _fit_compiled,
}
