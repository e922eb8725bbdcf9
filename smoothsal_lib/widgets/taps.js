// Which taps of a kernel an input position meets, for convolutions away from their border.

async function build(root, data) {
  const [kernel, stride, dilation] = data.axes.map((axis) => axis.start);
  const state = { kernel, stride, dilation, row: 0, column: 0 };
  const BLUE = (share) => `rgb(${Math.round(247 - 239 * share)}, ${Math.round(251 - 203 * share)}, ${Math.round(255 - 148 * share)})`;

  // The taps that a position meets, along one axis.
  const met = (i) => {
    const padding = Math.floor((state.dilation * (state.kernel - 1)) / 2);
    const every = [...Array(state.kernel).keys()];
    return every.filter((tap) => (i + padding - tap * state.dilation) % state.stride === 0);
  };

  const controls = data.axes.map(({ name, least, most, start }) => {
    const labels = Array.from({ length: most - least + 1 }, (_, i) => String(least + i));
    return slider(name, labels, start - least, (index) => { state[name] = least + index; show(); });
  });
  const places = Array.from({ length: data.size }, (_, i) => String(i));
  const position = ["row", "column"].map((name) => slider(name, places, 0, (index) => { state[name] = index; show(); }));

  const unit = 40;
  const grid = make("svg", { role: "img" });
  const taps = make("svg", { role: "img" });
  const said = make("p", { "aria-live": "polite" });
  const classes = make("div", { class: "sal-scroll" });
  const frame = (title, svg) =>
    make("figure", { class: "sal-panel" }, make("figcaption", {}, title), make("div", { class: "sal-view" }, svg));

  const square = (row, column, fill, text, dark, stroke = "#fbfbf8") =>
    make("g", {},
      make("rect", { x: unit * column, y: unit * row, width: unit, height: unit, fill, stroke }),
      make("text", { x: unit * (column + 0.5), y: unit * (row + 0.62), "text-anchor": "middle", "font-size": 15,
        fill: dark ? "#fff" : "#000" }, text));

  function show() {
    const counts = places.map((_, i) => met(i).length);
    const most = Math.max(...counts) ** 2;
    grid.setAttribute("viewBox", `-3 -3 ${unit * data.size + 6} ${unit * data.size + 6}`);
    grid.replaceChildren();
    counts.forEach((down, row) => counts.forEach((across, column) => {
      const share = (down * across) / most;
      const cell = square(row, column, BLUE(share), String(down * across), share > 0.65);
      cell.addEventListener("click", () => {
        [state.row, state.column] = [row, column];
        position.forEach((control, axis) => {
          const input = control.querySelector("input");
          input.value = [row, column][axis];
          input.dispatchEvent(new Event("input"));
        });
      });
      cell.style.cursor = "pointer";
      grid.append(cell);
    }));
    const outline = { fill: "none", "stroke-width": 4 };
    const period = unit * state.stride;
    grid.append(make("rect", { ...outline, x: 0, y: 0, width: period, height: period, stroke: "#26262b", "stroke-dasharray": "8 5" }));
    const [x, y] = [unit * state.column, unit * state.row];
    grid.append(make("rect", { ...outline, x, y, width: unit, height: unit, stroke: "#d55e00", "stroke-width": 5 }));

    const [down, across] = [met(state.row), met(state.column)];
    const side = unit * data.axes[0].most;  // so that a tap has one size in every kernel
    taps.setAttribute("viewBox", `-3 -3 ${side + 6} ${side + 6}`);
    taps.replaceChildren();
    for (let r = 0; r < state.kernel; r++)
      for (let c = 0; c < state.kernel; c++) {
        const hit = down.includes(r) && across.includes(c);
        taps.append(square(r, c, hit ? "#d55e00" : "#e9e9ee", `${r}, ${c}`, false));
      }

    const own = [state.row % state.stride, state.column % state.stride];
    const words = `Position (${state.row}, ${state.column}), parity class (${own.join(", ")}), meets ${down.length * across.length} ` +
      `of ${state.kernel ** 2} taps.`;
    said.textContent = words;
    taps.setAttribute("aria-label", words);
    grid.setAttribute("aria-label", `${data.size} by ${data.size} input positions, each with the number of taps that it meets.`);
    const each = counts.slice(0, state.stride);
    const head = make("tr", {}, make("th", { scope: "col" }, "parity class"), make("th", { scope: "col" }, "taps met"));
    const rows = each.flatMap((a, i) => each.map((b, j) =>
      make("tr", { "aria-current": i === own[0] && j === own[1] && "true" },
        make("th", { scope: "row" }, `(${i}, ${j})`), make("td", {}, String(a * b)))));
    classes.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  root.append(...controls, ...position, make("div", { class: "sal-panels" }, frame("input positions, and how many taps each meets", grid),
    frame("the kernel: taps that the chosen position meets", taps)), said, classes);
  show();
}
