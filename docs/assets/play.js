// The page to play with: it shows parts of the sheets that `python -m pictures` drew. Nothing is loaded but these.
"use strict";

// Three digits and a unit.
function operations(flops) {
  const [scale, unit] = flops >= 1e9 ? [1e9, "GFLOPs"] : [1e6, "MFLOPs"];
  return `${(flops / scale).toPrecision(3)} ${unit}`;
}

for (const page of document.querySelectorAll(".play")) {
  const sheets = JSON.parse(page.querySelector("script").textContent);
  const pictures = [...page.querySelectorAll(".play-sheets img")];
  const field = (name) => page.querySelector(`[data-play="${name}"]`);
  const value = (name) => Number(field(name).value);
  const chosen = () => Number(page.querySelector('input[type="radio"]:checked').value);

  const gap = (sheet) => Math.ceil(sheet.size[1] / 16);

  // An empty canvas for columns and rows of samples, a pixel of it for each of theirs.
  function canvas(name, sheet, columns, rows) {
    const [height, width] = sheet.size;
    const found = field(name);
    found.width = columns * (width + gap(sheet)) - gap(sheet);
    found.height = rows * (height + gap(sheet)) - gap(sheet);
    return found.getContext("2d");
  }

  // Draws one sample of a sheet at a column and a row of a canvas.
  function paint(context, sheet, picture, { steps, loops, label, noise }, column, row) {
    const [height, width] = sheet.size;
    const from = [(label * sheet.noises + noise) * width, (steps * sheet.loops.length + loops) * height];
    const to = [column * (width + gap(sheet)), row * (height + gap(sheet))];
    context.drawImage(picture, ...from, width, height, ...to, width, height);
  }

  function show() {
    const sheet = sheets[chosen()];
    const picture = pictures[chosen()];
    const loops = value("loops");
    const steps = value("steps");
    const label = value("class");

    const large = canvas("picture", sheet, Math.ceil(sheet.noises / 2), 2);
    const all = canvas("all-loops", sheet, sheet.loops.length, sheet.noises);
    for (let noise = 0; noise < sheet.noises; noise++) {
      paint(large, sheet, picture, { steps, loops, label, noise }, Math.floor(noise / 2), noise % 2);
      for (let each = 0; each < sheet.loops.length; each++)
        paint(all, sheet, picture, { steps, loops: each, label, noise }, each, noise);
    }

    const count = sheet.loops[loops];
    const trained = count > sheet.max_loops ? ` (trained for ${sheet.max_loops})` : "";
    field("loops-shown").textContent = `${count}${trained}`;
    field("steps-shown").textContent = sheet.steps[steps];
    field("class-shown").textContent = label;
    field("loops").setAttribute("aria-valuetext", `${count} loops${trained}`);
    field("steps").setAttribute("aria-valuetext", `${sheet.steps[steps]} steps`);
    field("layers").textContent = sheet.layers[steps][loops].toLocaleString("en");
    field("flops").textContent = operations(sheet.flops[steps][loops]);
    const most = sheet.flops[steps][sheet.loops.indexOf(sheet.max_loops)];
    field("share-name").textContent = `Of the cost of ${sheet.max_loops} loops`;
    field("share").textContent = `${Math.round((100 * sheet.flops[steps][loops]) / most)}%`;
    field("picture").setAttribute(
      "aria-label",
      `${sheet.noises} samples of class ${label}: ${count} loops, ${sheet.steps[steps]} steps`,
    );
    const names = sheet.loops.map((each) => {
      const name = document.createElement("span");
      name.textContent = each;
      name.className = each === count ? "play-now" : "";
      return name;
    });
    field("loop-names").replaceChildren(...names);
  }

  // Gives the sliders the range of the chosen model.
  function choose() {
    const sheet = sheets[chosen()];
    field("loops").max = sheet.loops.length - 1;
    field("steps").max = sheet.steps.length - 1;
    field("class").max = sheet.classes - 1;
    show();
  }

  page.addEventListener("input", (event) => (event.target.type === "radio" ? choose() : show()));
  // Where a sheet cannot be had, what there is of them is shown instead.
  page.classList.add("play-ready");
  Promise.all(pictures.map((picture) => picture.decode())).then(choose, () => page.classList.remove("play-ready"));
}
