// Insertion and deletion: the picture at a step, and the curves of all maps with that step on them.

async function build(root, data) {
  const bytes = await unpacked(data.orders);
  const [width, height] = data.size;
  const load = (source) => new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed("a picture is damaged");
    image.src = source;
  });
  const names = Object.keys(data.games);
  const photo = await load(data.photo);
  const baselines = {};
  for (const name of names) baselines[name] = await load(data.games[name].baseline);

  const state = { game: 0, map: 0, step: Math.round(data.steps / 4) };
  const shares = Array.from({ length: data.steps + 1 }, (_, i) => `${Math.round((100 * i) / data.steps)} % of the pixels`);
  const moved = (name) => (index) => { state[name] = index; show(); };
  const controls = [
    options("game", names, 0, moved("game")),
    options("map", data.maps, 0, moved("map")),
    slider("exchanged", shares, state.step, moved("step")),
  ];

  const canvas = make("canvas", { class: "sal-pixels", width, height, "aria-hidden": "true" });
  const view = make("div", { class: "sal-view", role: "img" }, canvas);
  const mask = make("canvas", { width, height });
  const colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#26262b"];
  const [left, top, across, down] = [42, 8, 250, 190];
  const plot = make("svg", { viewBox: `0 0 ${left + across + 24} ${top + down + 38}`, role: "img" });
  const numbers = make("div", { class: "sal-scroll", "aria-live": "polite" });

  function picture(game) {
    const start = state.map * width * height;
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) image.data[4 * i + 3] = bytes[start + i] <= state.step ? 255 : 0;
    mask.getContext("2d").putImageData(image, 0, 0);
    const [under, over] = game === "insertion" ? [baselines[game], photo] : [photo, baselines[game]];
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(mask, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.drawImage(over, 0, 0, width, height);
    context.globalCompositeOperation = "destination-over";
    context.drawImage(under, 0, 0, width, height);
  }

  function curves({ scores }) {
    const x = (step) => left + (across * step) / data.steps;
    const y = (score) => top + down * (1 - score);
    const text = (at, words, anchor = "middle") =>
      make("text", { x: at[0], y: at[1], "text-anchor": anchor, "font-size": 12, fill: "#26262b" }, words);
    const lines = [0, 0.5, 1].flatMap((score) => [
      make("line", { x1: left, x2: left + across, y1: y(score), y2: y(score), stroke: "#c9c9d0" }),
      text([left - 6, y(score) + 4], String(score), "end"),
    ]);
    const axis = [0, 0.5, 1].map((share) => text([left + across * share, top + down + 16], `${100 * share} %`));
    scores.forEach((row, i) => {
      const points = row.map((score, step) => `${x(step)},${y(score)}`).join(" ");
      const chosen = i === state.map;
      lines.push(make("polyline", { points, fill: "none", stroke: colours[i % colours.length], "stroke-width": chosen ? 3.5 : 1.3 }));
    });
    const place = { cx: x(state.step), cy: y(scores[state.map][state.step]) };
    lines.push(make("line", { x1: place.cx, x2: place.cx, y1: top, y2: top + down, stroke: "#26262b", "stroke-dasharray": "3 3" }));
    lines.push(make("circle", { ...place, r: 6, fill: colours[state.map % colours.length], stroke: "#fff", "stroke-width": 2 }));
    const name = text([left + across / 2, top + down + 33], "share of the pixels exchanged");
    plot.replaceChildren(...lines, ...axis, name);
  }

  function show() {
    const game = names[state.game];
    const found = data.games[game];
    picture(game);
    curves(found);
    const words = `${game}, ${data.maps[state.map]}, ${shares[state.step]}`;
    view.setAttribute("aria-label", `The picture that the network is asked about: ${words}.`);
    plot.setAttribute("aria-label", `The probability of ${data.class} against the share of pixels: ${words}.`);
    const good = game === "insertion" ? "high is good" : "low is good";
    const head = ["map", `p(${data.class}) now`, `area under the curve (${good})`].map((text) => make("th", { scope: "col" }, text));
    const rows = data.maps.map((name, i) => {
      const swatch = make("span", { style: `color: ${colours[i % colours.length]}`, "aria-hidden": "true" }, "■ ");
      return make("tr", { "aria-current": i === state.map && "true" }, make("th", { scope: "row" }, swatch, name),
        make("td", {}, found.scores[i][state.step].toFixed(2)), make("td", {}, found.areas[i]));
    });
    numbers.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  }

  const panel = (title, content) =>
    make("figure", { class: "sal-panel" }, make("figcaption", {}, title), content);
  root.append(...controls, make("div", { class: "sal-panels" }, panel("what the network is shown", view),
    panel(`probability of ${data.class}`, make("div", { class: "sal-view" }, plot))), numbers);
  show();
}
