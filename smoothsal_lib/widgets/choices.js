// One picture a panel, chosen by sliders and options; with the numbers that belong to them.

async function build(root, data) {
  const bytes = data.bytes ? await unpacked(data.bytes) : null;
  const luts = {};
  for (const [name, text] of Object.entries(data.luts)) luts[name] = await unpacked(text);
  const state = data.axes.map((axis) => axis.start);

  // The place of the state in a list that runs over some axes, the last one fastest.
  const place = (axes) => axes.reduce((sum, a) => sum * data.axes[a].labels.length + state[a], 0);

  const controls = data.axes.map((axis, a) => {
    const moved = (index) => { state[a] = index; show(); };
    return (axis.slider ? slider : options)(axis.name, axis.labels, axis.start, moved);
  });

  const panels = data.panels.map((panel) => {
    const view = make("div", { class: "sal-view", role: "img" });
    const canvas = make("canvas", { class: panel.smooth ? "" : "sal-pixels", "aria-hidden": "true" });
    const image = make("img", { class: "sal-pixels", alt: "" });
    if (panel.under) view.append(make("img", { src: panel.under, alt: "" }));
    for (const [x, y] of panel.rings) view.append(make("span", { class: "sal-ring", style: `left: ${x}%; top: ${y}%` }));
    view.prepend(canvas, image);
    if (panel.under) { view.append(canvas); canvas.classList.add("sal-over"); }
    const title = make("figcaption", {}, panel.title);
    const legend = make("div");
    const figure = make("figure", { class: "sal-panel" }, title, view, legend);
    let legended;
    return [figure, () => {
      const chosen = panel.pictures[place(panel.axes)];
      const coloured = typeof chosen === "string";
      canvas.hidden = coloured;
      image.hidden = !coloured;
      canvas.style.display = coloured ? "none" : "";
      image.style.display = coloured ? "" : "none";
      if (coloured) image.src = chosen;
      else {
        const [width, height, start, lut, rectangle] = chosen;
        let values = bytes.subarray(start, start + width * height), rows = height;
        if (panel.half) {  // the lower half of a spectrum is the upper one, turned round
          values = [...values, ...values.subarray(0, width * (height - 1)).slice().reverse()];
          rows = 2 * height - 1;
        }
        painted(canvas, values, width, rows, luts[lut]);
        if (rectangle) {
          const [left, top, across, down] = rectangle;
          canvas.style.cssText += `left: ${left}%; top: ${top}%; width: ${across}%; height: ${down}%`;
        }
        if (legended !== lut) legend.replaceChildren(scale(luts[lut], ...data.scales[lut]));
        legended = lut;
      }
      view.setAttribute("aria-label", `${panel.alt} ${where()}`);
    }];
  });

  const where = () => data.axes.map((axis, a) => `${axis.name} ${axis.labels[state[a]]}`).join(", ");
  const position = make("p", { class: "sal-note", "aria-live": "polite" });
  const numbers = make("div", { class: "sal-scroll", "aria-live": "polite" });

  function tabulated({ head, rows, axes, cells }) {
    const body = data.axes[rows].labels.map((label, r) => {
      const held = state[rows];
      state[rows] = r;
      const found = cells[place(axes)];
      state[rows] = held;
      return make("tr", { "aria-current": r === held && "true" }, make("th", { scope: "row" }, label),
        ...found.map((text) => make("td", {}, text)));
    });
    const top = make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)));
    return make("table", {}, make("thead", {}, top), make("tbody", {}, ...body));
  }

  function show() {
    for (const [, update] of panels) update();
    if (data.table) numbers.replaceChildren(tabulated(data.table));
    else position.textContent = where();
  }

  root.append(...controls, make("div", { class: "sal-panels" }, ...panels.map(([figure]) => figure)));
  root.append(data.table ? numbers : position);
  if (data.note) root.append(make("p", { class: "sal-note" }, data.note));
  show();
}
