// The first nuclei of a ranking, outlined; the last of them filled, with its numbers.

async function build(root, data) {
  const [width, height] = data.size;
  const names = Object.keys(data.rankings);
  const count = data.outlines.length;
  const state = { ranking: 0, last: data.start - 1 };
  const labels = Array.from({ length: count }, (_, i) => `the first ${i + 1} of ${count}`);
  const controls = [
    slider("outlined", labels, state.last, (index) => { state.last = index; show(); }),
  ];
  if (names.length > 1) controls.push(options("ranking", names, 0, (index) => { state.ranking = index; show(); }));

  const view = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const photo = make("image", { href: data.photo, width, height });
  const marks = make("g");
  view.append(photo, marks);
  const said = make("p", { "aria-live": "polite" });
  const hits = make("div", { class: "sal-scroll" });

  function show() {
    const { order, shares } = data.rankings[names[state.ranking]];
    const chosen = order.slice(0, state.last + 1);
    const last = chosen[state.last];
    marks.replaceChildren(...chosen.flatMap((nucleus) => {
      const d = data.outlines[nucleus];
      const filled = nucleus === last;
      return [
        make("path", { d, fill: "none", stroke: "#fff", "stroke-width": filled ? 3 : 2.2 }),
        make("path", { d, fill: filled ? "#e69f0099" : "none", stroke: filled ? "#d55e00" : "#0072b2", "stroke-width": filled ? 1.8 : 1.2 }),
      ];
    }));
    const kind = data.marked ? (data.marked[last] ? `, ${data.mark}` : `, not ${data.mark}`) : "";
    said.textContent = `Nucleus ${state.last + 1}: ${data.areas[last]} ${data.unit}, ` +
      `${shares[state.last]} % of the map's positive saliency${kind}.`;
    view.setAttribute("aria-label", `Tissue with ${chosen.length} nuclei outlined. ${said.textContent}`);
    if (!data.marked) return;
    const head = make("tr", {}, ...["ranking", `${data.mark} among the first ${chosen.length}`, "% of the saliency in them"]
      .map((text) => make("th", { scope: "col" }, text)));
    const rows = names.map((name, i) => {
      const one = data.rankings[name];
      const some = one.order.slice(0, chosen.length);
      const right = some.reduce((sum, nucleus) => sum + data.marked[nucleus], 0);
      const held = one.shares.slice(0, chosen.length).reduce((sum, share) => sum + share, 0);
      return make("tr", { "aria-current": i === state.ranking && "true" }, make("th", { scope: "row" }, name),
        make("td", {}, `${right} of ${chosen.length}`), make("td", {}, held.toFixed(1)));
    });
    hits.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  const panel = make("figure", { class: "sal-panel", style: "flex-basis: 320px; max-width: 480px" },
    make("div", { class: "sal-view" }, view));
  root.append(...controls, make("div", { class: "sal-panels" }, panel), said, hits);
  show();
}
