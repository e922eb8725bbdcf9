// What all explorers share. The data lie beside the script; nothing is fetched.

// An element; attributes by name, children as elements or text.
function make(tag, attributes = {}, ...children) {
  const vector = ["svg", "g", "path", "line", "polyline", "circle", "rect", "text", "image"].includes(tag);
  const element = vector ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The bytes of a text that Python made by base64(zlib.compress(...)).
async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// A canvas with one pixel a value; the colour of value v is lut[4 v], lut[4 v + 1], ... (red, green, blue, opacity).
function painted(canvas, values, width, height, lut) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < 4; c++) image.data[4 * i + c] = lut[4 * values[i] + c];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// JupyterLab takes the arrow keys for the next and the last cell, except from elements that bear this attribute.
const OWN_KEYS = { "data-lm-suppress-shortcuts": "" };

// A slider with its name and, beside it, the label it stands at.
function slider(name, labels, start, moved) {
  const shown = make("output");
  const input = make("input", { ...OWN_KEYS, type: "range", min: 0, max: labels.length - 1, step: 1, value: start, "aria-label": name });
  const show = () => {
    shown.textContent = labels[input.value];
    input.setAttribute("aria-valuetext", labels[input.value]);
  };
  input.addEventListener("input", () => { show(); moved(Number(input.value)); });
  show();
  return make("div", { class: "sal-axis" }, make("span", { class: "sal-name" }, name), input, shown);
}

// A row of options of which one holds.
let groups = 0;
function options(name, labels, start, moved) {
  const group = `sal-${Math.random().toString(36).slice(2)}-${groups++}`;
  const rows = labels.map((label, index) => {
    const input = make("input", { ...OWN_KEYS, type: "radio", name: group, value: index });
    input.checked = index === start;
    input.addEventListener("change", () => moved(index));
    return make("label", {}, input, label);
  });
  return make("fieldset", {}, make("legend", {}, name), make("div", { class: "sal-options" }, ...rows));
}

// A bar of colours with words at its ends.
function scale(lut, low, high) {
  const bar = painted(make("canvas", { "aria-hidden": "true" }), Array.from({ length: 256 }, (_, i) => i), 256, 1, lut);
  return make("div", { class: "sal-scale" }, low, bar, high);
}
