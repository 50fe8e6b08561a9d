"use strict";
// The maps, the gene search and the downloads of a report. The page holds all it needs: each
// <script type="application/gzip;base64"> is one compressed file, and nothing is ever fetched.

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
// Two digits, of small shares one.
const percent = (share) => {
  if (share > 0 && share < 1e-6) return "< 0.0001 %";
  return `${share < 0.0995 ? (100 * share).toPrecision(share < 0.001 ? 1 : 2) : Math.round(100 * share)} %`;
};
// MLflow shows the page in a sandbox, where links within a page and downloads are refused.
const sandboxed = parent !== self && origin === "null";

function chance(q) {
  if (!Number.isFinite(q)) return "–";
  if (q < 1e-30) return "< 1e−30";
  return q < 1e-4 ? q.toExponential(0).replace("-", "−") : q.toPrecision(2);
}

async function unpack(id) {
  const text = atob($(id).textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// ---------------------------------------------------------------- the data (see viewer.py)

async function readCells() {
  const buffer = await unpack("cells");
  const size = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const types = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };
  for (const [name, { type, offset, length }] of Object.entries(head.arrays)) {
    head[name] = new types[type](buffer, offset, length);
  }
  return head;
}

// ---------------------------------------------------------------- colours

const dark = () =>
  (document.documentElement.dataset.theme ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const RAMPS = {
  light: ["#e3e4e8", "#c5cbe3", "#8fb3d9", "#4a8fc0", "#2a5f9e", "#23336b", "#120d32"],
  dark: ["#2a303a", "#2b4166", "#2c6498", "#3f93bd", "#74c4cf", "#bfe6c9", "#fdf8cf"],
};

function ramp(share) {
  const stops = RAMPS[dark() ? "dark" : "light"].map(rgb);
  const at = Math.min(share * (stops.length - 1), stops.length - 1.000001);
  const [low, high] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
  return low.map((value, i) => Math.round(value + (at % 1) * (high[i] - value)));
}

const css = (color) => `rgb(${color.join(" ")})`;
const MISSING = 255;

// 256 colours for a map; a transparent one is drawn behind the others, faintly.
function paletteOf(coloring, shown) {
  const faint = rgb(dark() ? "#343b46" : "#dfe3e8");
  const palette = new Uint8Array(1024);
  for (let code = 0; code < 256; code++) {
    let color = faint;
    let front = false;
    if (coloring.names === undefined) {
      [color, front] = [ramp(code / 255), true];
    } else if (code < coloring.names.length && (shown === null || shown.has(code))) {
      [color, front] = [rgb(coloring.colors[code]), true];
    }
    palette.set([...color, front ? 255 : 0], 4 * code);
  }
  return palette;
}

// ---------------------------------------------------------------- one map on one canvas

const VERTEX = `#version 300 es
in vec2 position;
in float value;
uniform vec4 view;
uniform float size;
uniform bool ranked;
uniform sampler2D palette;
out vec3 color;
void main() {
  vec4 found = texelFetch(palette, ivec2(int(value), 0), 0);
  color = found.rgb;
  // Great values lie above small ones; categories in an order that favours none.
  float order = ranked ? value / 255.0 : fract(float(gl_VertexID) * 0.61803398875);
  gl_Position = vec4(position * view.xy + view.zw, found.a < 0.5 ? 0.95 : 0.9 - 1.8 * order, 1.0);
  gl_PointSize = size;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 color;
uniform float size;
out vec4 pixel;
void main() {
  float radius = 2.0 * length(gl_PointCoord - 0.5);
  if (radius > 1.0) discard;
  pixel = vec4(color, clamp(0.5 * size * (1.0 - radius) + 0.3, 0.0, 1.0));
}`;

class CellMap {
  constructor(canvas, position, n) {
    this.canvas = canvas;
    this.position = position; // 0 to 65,535, two of each cell
    this.n = n;
    // Edges of so many points are not seen, and where there is no GPU they cost most of the time.
    const antialias = n <= 30000;
    this.gl = canvas.getContext("webgl2", { alpha: false, antialias, preserveDrawingBuffer: true });
    if (!this.gl) throw new Error("This browser does not offer WebGL 2.");
    this.reset();
    this.prepare();
    this.index();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.prepare();
      if (this.values) this.paint(this.values, this.palette, this.ranked);
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  prepare() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      throw new Error(gl.getProgramInfoLog(program));
    }
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.SAMPLE_ALPHA_TO_COVERAGE);
    const attribute = (name, count, type, normalized) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      const at = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, count, type, normalized, 0, 0);
    };
    attribute("position", 2, gl.UNSIGNED_SHORT, true);
    gl.bufferData(gl.ARRAY_BUFFER, this.position, gl.STATIC_DRAW);
    attribute("value", 1, gl.UNSIGNED_BYTE, false);
    gl.bufferData(gl.ARRAY_BUFFER, this.n, gl.DYNAMIC_DRAW); // stays bound: what `paint` fills
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    this.at = Object.fromEntries(
      ["view", "size", "ranked"].map((name) => [name, gl.getUniformLocation(program, name)]),
    );
  }

  // Cells by the square of a grid that they lie in, so that the nearest is found at once.
  index() {
    const start = new Uint32Array(256 * 256 + 1);
    const square = (i) => ((this.position[2 * i + 1] >> 8) << 8) | (this.position[2 * i] >> 8);
    for (let i = 0; i < this.n; i++) start[square(i) + 1]++;
    for (let s = 0; s < 256 * 256; s++) start[s + 1] += start[s];
    const next = start.slice();
    this.members = new Uint32Array(this.n);
    for (let i = 0; i < this.n; i++) this.members[next[square(i)]++] = i;
    this.start = start;
  }

  reset() {
    this.zoom = 1;
    this.center = [0.5, 0.5];
  }

  paint(values, palette, ranked) {
    Object.assign(this, { values, palette, ranked });
    const gl = this.gl;
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, values);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, palette);
    gl.uniform1i(this.at.ranked, ranked ? 1 : 0);
    this.draw();
  }

  // How many pixels of the canvas a step from 0 to 1 is, in both directions.
  get scale() {
    return 0.94 * this.zoom * Math.min(this.canvas.clientWidth, this.canvas.clientHeight);
  }

  get pointSize() {
    return Math.min(9, Math.max(2, (0.8 * Math.sqrt(this.zoom) * this.scale) / Math.sqrt(this.zoom * this.n * 4)));
  }

  draw() {
    const { gl, canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!this.values || !width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...rgb(dark() ? "#14171c" : "#ffffff").map((value) => value / 255), 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [x, y] = [(2 * this.scale) / width, (2 * this.scale) / height];
    gl.uniform4f(this.at.view, x, y, -x * this.center[0], -y * this.center[1]);
    gl.uniform1f(this.at.size, this.pointSize * ratio);
    gl.drawArrays(gl.POINTS, 0, this.n);
  }

  toMap(px, py) {
    return [
      this.center[0] + (px - this.canvas.clientWidth / 2) / this.scale,
      this.center[1] - (py - this.canvas.clientHeight / 2) / this.scale,
    ];
  }

  toPixels(cell) {
    return [
      this.canvas.clientWidth / 2 + (this.position[2 * cell] / 65535 - this.center[0]) * this.scale,
      this.canvas.clientHeight / 2 - (this.position[2 * cell + 1] / 65535 - this.center[1]) * this.scale,
    ];
  }

  nearest(px, py, within = 9) {
    const [x, y] = this.toMap(px, py).map((value) => value * 65535);
    const reach = (within / this.scale) * 65535;
    const clip = (value) => Math.min(255, Math.max(0, Math.floor(value / 256)));
    let [best, least] = [-1, reach * reach];
    for (let row = clip(y - reach); row <= clip(y + reach); row++) {
      for (let at = this.start[(row << 8) | clip(x - reach)]; at < this.start[((row << 8) | clip(x + reach)) + 1]; at++) {
        const cell = this.members[at];
        const distance = (this.position[2 * cell] - x) ** 2 + (this.position[2 * cell + 1] - y) ** 2;
        if (distance <= least) [best, least] = [cell, distance];
      }
    }
    return best;
  }

  zoomAt(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    const before = this.toMap(px, py);
    this.zoom = Math.min(400, Math.max(0.5, this.zoom * factor));
    const after = this.toMap(px, py);
    this.center = this.center.map((value, i) => value + before[i] - after[i]);
    this.draw();
  }

  move(dx, dy) {
    this.center = [this.center[0] - dx / this.scale, this.center[1] + dy / this.scale];
    this.draw();
  }
}

// ---------------------------------------------------------------- the two maps together

class Maps {
  constructor(cells) {
    this.cells = cells;
    this.shown = null; // categories picked in the legend; null for all
    this.maps = ["counts", "topics"].map((space) => {
      const map = new CellMap($(`map-${space}`), cells[`umap_${space}`], cells.n);
      map.ring = map.canvas.parentElement.querySelector(".ring");
      return map;
    });
    for (const map of this.maps) this.listen(map);
    $("color-by").addEventListener("change", () => this.choose($("color-by").value));
    $("map-reset").addEventListener("click", () => this.maps.forEach((map) => (map.reset(), map.draw())));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.repaint());
    this.choose($("color-by").value);
  }

  // What `color-by` offers, as values of 0 to 255 of each cell.
  coloring(by) {
    const { cells } = this;
    const [kind, rest] = by.split(/:(.*)/s);
    if (kind === "category") {
      const { name, names, colors, sizes } = cells.categories[rest];
      return { title: name, names, colors, sizes, values: cells[`category_${rest}`] };
    }
    if (kind === "topic") {
      const topic = Number(rest);
      return {
        title: `${cells.topics[topic]}: proportion in the cell`,
        values: cells.theta.subarray(topic * cells.n, (topic + 1) * cells.n),
      };
    }
    const gene = cells.mapped.indexOf(rest);
    const values = new Uint8Array(cells.n);
    for (let at = cells.gene_start[gene]; at < cells.gene_start[gene + 1]; at++) {
      values[cells.gene_cells[at]] = cells.gene_values[at];
    }
    return { title: `${rest}: log-normalised expression`, gene: rest, values, greatest: cells.gene_greatest[gene] };
  }

  choose(by) {
    this.current = this.coloring(by);
    this.shown = null;
    this.paint();
    this.legend();
    const { title, names } = this.current;
    $("map-status").textContent = `Both maps show: ${title}${names ? `, ${names.length} groups` : ""}.`;
  }

  // A gene is not among the choices until it is asked for.
  chooseGene(gene) {
    const select = $("color-by");
    const value = `gene:${gene}`;
    const group = $("color-genes");
    group.hidden = false;
    if (![...group.children].some((option) => option.value === value)) {
      group.append(make("option", { value, textContent: gene }));
    }
    select.value = value;
    this.choose(value);
  }

  paint() {
    const palette = paletteOf(this.current, this.shown);
    for (const map of this.maps) map.paint(this.current.values, palette, this.current.names === undefined);
  }

  // After a change of theme: the ramp of a legend is another one too.
  repaint() {
    this.paint();
    if (this.current.names === undefined) this.legend();
  }

  legend() {
    const { title, names, colors, sizes, gene, greatest } = this.current;
    const legend = $("map-legend");
    legend.replaceChildren(make("strong", { textContent: title }));
    if (names === undefined) {
      const stops = [0, 0.2, 0.4, 0.6, 0.8, 1].map((share) => css(ramp(share)));
      const bar = make("span", { className: "ramp" });
      bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      legend.append(make("span", { className: "scale" }, "0", bar, gene === undefined ? "1" : greatest.toFixed(1)));
      return;
    }
    const list = make("div", { className: "groups", role: "group", ariaLabel: title });
    names.forEach((name, code) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = colors[code];
      const button = make("button", { type: "button", ariaPressed: "false" }, swatch, `${name} `, make("small", { textContent: sizes[code].toLocaleString("en") }));
      button.addEventListener("click", () => {
        const shown = this.shown || new Set();
        if (!shown.delete(code)) shown.add(code);
        this.shown = shown.size ? shown : null;
        [...list.children].forEach((other, i) => (other.ariaPressed = String(shown.has(i))));
        this.paint();
      });
      list.append(button);
    });
    legend.append(list);
  }

  // ------------------------------------------------------------ pointer and keys

  listen(map) {
    const { canvas } = map;
    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "touch") canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
    // A finger points by a tap, which stays.
    canvas.addEventListener("click", (event) => this.hover(map, map.nearest(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") this.hover(null, -1);
    });
    canvas.addEventListener("blur", () => this.hover(null, -1));
    canvas.addEventListener("pointermove", (event) => {
      const at = [event.offsetX, event.offsetY];
      const before = pointers.get(event.pointerId);
      if (!before) return this.hover(map, map.nearest(...at));
      const other = [...pointers.entries()].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
        map.zoomAt(apart(at) / Math.max(apart(before), 1), ...other);
      } else if (event.pointerType !== "touch") {
        map.move(at[0] - before[0], at[1] - before[1]);
      }
      pointers.set(event.pointerId, at);
      this.hover(null, -1);
    });
    // A page that scrolls should not zoom: the map must have been chosen first.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      map.zoomAt(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = 40;
      const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
      if (moves[event.key]) map.move(...moves[event.key]);
      else if (event.key === "+" || event.key === "=") map.zoomAt(1.3);
      else if (event.key === "-") map.zoomAt(1 / 1.3);
      else if (event.key === "0" || event.key === "Home") (map.reset(), map.draw());
      else return;
      event.preventDefault();
    });
  }

  hover(over, cell) {
    const tip = $("map-tip");
    tip.hidden = cell < 0;
    for (const map of this.maps) {
      map.ring.hidden = cell < 0;
      if (cell < 0) continue;
      const [x, y] = map.toPixels(cell);
      map.ring.style.transform = `translate(${x}px, ${y}px)`;
      map.ring.hidden = x < 0 || y < 0 || x > map.canvas.clientWidth || y > map.canvas.clientHeight;
    }
    if (cell < 0) return;
    tip.replaceChildren(make("strong", { textContent: this.cells.cells[cell] }), ...this.lines(cell));
    const frame = over.canvas.parentElement;
    const [x, y] = over.toPixels(cell);
    const box = frame.parentElement;
    const left = frame.offsetLeft + x + 14;
    tip.style.left = `${Math.max(0, Math.min(left, box.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${frame.offsetTop + y + 14}px`;
  }

  lines(cell) {
    const { cells } = this;
    const line = (text) => make("span", { textContent: text });
    const groups = cells.categories
      .map(({ name, names }, i) => [name, names[cells[`category_${i}`][cell]], i])
      .filter(([name]) => name !== "Dominant topic")
      .map(([name, value]) => line(`${name}: ${value ?? "none"}`));
    const topics = cells.topics
      .map((name, topic) => [name, cells.theta[topic * cells.n + cell] / 255])
      .sort((a, b) => b[1] - a[1])
      .slice(0, 3)
      .filter(([, share]) => share > 0.005)
      .map(([name, share]) => line(`${name}: ${Math.round(100 * share)} %`));
    const { gene, values, greatest } = this.current;
    const shown = gene === undefined ? [] : [line(`${gene}: ${((values[cell] / 255) * greatest).toFixed(2)}`)];
    return [...groups, ...topics, ...shown];
  }
}

// ---------------------------------------------------------------- gene search

class GeneSearch {
  constructor(cells, maps) {
    Object.assign(this, { cells, maps });
    this.rows = new Map(cells.genes.map((name, row) => [name.toUpperCase(), row]));
    for (const [row, name] of cells.genes.entries()) this.rows.set(name, row);
    $("gene-names").append(...cells.genes.map((value) => make("option", { value })));
    // Enter clicks the button too. To submit is not always allowed.
    $("gene-form").querySelector("button").addEventListener("click", (event) => {
      event.preventDefault();
      this.find();
    });
    $("gene").addEventListener("change", () => this.find());
    for (const button of document.querySelectorAll("button[data-gene]")) {
      button.addEventListener("click", () => {
        $("gene").value = button.dataset.gene;
        this.find();
        $("search").scrollIntoView({ behavior: "smooth" });
      });
    }
  }

  find() {
    const asked = $("gene").value.trim();
    const found = $("gene-found");
    found.replaceChildren();
    if (!asked) return;
    const row = this.rows.get(asked) ?? this.rows.get(asked.toUpperCase());
    if (row === undefined) {
      const like = this.cells.genes.filter((name) => name.toUpperCase().includes(asked.toUpperCase()));
      const hint = like.length ? ` Like it: ${like.slice(0, 8).join(", ")}.` : "";
      found.append(make("p", { textContent: `${asked} is none of the ${this.cells.genes.length.toLocaleString("en")} genes that were modelled.${hint}` }));
      return;
    }
    this.show(this.cells.genes[row], row);
  }

  show(gene, row) {
    const { cells } = this;
    const K = cells.topics.length;
    const beta = [...cells.beta.subarray(row * K, (row + 1) * K)];
    const total = beta.reduce((sum, value) => sum + value, 0);
    const lfc = cells.lfc && cells.lfc.subarray(row * K, (row + 1) * K);
    const q = cells.q && cells.q.subarray(row * K, (row + 1) * K);
    const greatest = Math.max(...beta, 1e-12);
    const head = ["Topic", "Proportion in the topic", "Share of the gene", ...(lfc ? ["log₂ fold change", "q"] : [])];
    const body = beta
      .map((value, topic) => [value, topic])
      .sort((a, b) => b[0] - a[0])
      .map(([value, topic]) => {
        const swatch = make("span", { className: "swatch" });
        swatch.style.background = cells.colors[topic];
        const bar = make("span", { className: "bar" });
        bar.style.width = `${(6 * value) / greatest}rem`;
        bar.style.background = cells.colors[topic];
        const cellsOf = [
          make("td", {}, percent(value), bar),
          make("td", { className: "number", textContent: `${Math.round((100 * value) / (total || 1))} %` }),
        ];
        if (lfc) {
          cellsOf.push(
            make("td", { className: "number", textContent: Number.isFinite(lfc[topic]) ? lfc[topic].toFixed(2).replace("-", "−") : "–" }),
            make("td", { className: "number", textContent: chance(q[topic]) }),
          );
        }
        return make("tr", {}, make("th", { scope: "row" }, swatch, cells.topics[topic]), ...cellsOf);
      });
    const title = make("p", {}, make("strong", { textContent: gene }), " ");
    const onMap = cells.mapped.includes(gene);
    if (this.maps) {
      const button = make("button", { type: "button", textContent: "Show on the maps", disabled: !onMap });
      button.addEventListener("click", () => {
        this.maps.chooseGene(gene);
        $("maps").scrollIntoView({ behavior: "smooth" });
      });
      title.append(button, onMap ? "" : " too many cells for the page to hold all genes");
    }
    $("gene-found").append(
      title,
      make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `${gene} in the topics` },
        make("table", { className: "wide" },
          make("thead", {}, make("tr", {}, ...head.map((textContent) => make("th", { scope: "col", textContent })))),
          make("tbody", {}, ...body))),
    );
    if (onMap) this.maps?.chooseGene(gene);
  }
}

// ---------------------------------------------------------------- the page

function themes(repaint) {
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    repaint();
  });
}

function downloads() {
  for (const button of document.querySelectorAll("button[data-table]")) {
    button.disabled = sandboxed;
    button.addEventListener("click", async () => {
      const url = URL.createObjectURL(new Blob([await unpack(`table-${button.dataset.table}`)], { type: "text/csv" }));
      make("a", { href: url, download: `${button.dataset.table}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
  }
  if (sandboxed) {
    $("tables").querySelector("p").textContent =
      "The page around this one allows no downloads: take the tables, in full, from the run's artifacts.";
  }
}

function links() {
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      if (!sandboxed) return;
      event.preventDefault();
      $(link.getAttribute("href").slice(1)).scrollIntoView();
    });
  }
}

(async () => {
  downloads();
  links();
  let maps;
  themes(() => maps?.repaint());
  let cells;
  try {
    cells = await readCells();
    maps = new Maps(cells);
    for (const button of document.querySelectorAll("button[data-topic]")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        $("color-by").value = `topic:${button.dataset.topic}`;
        maps.choose(`topic:${button.dataset.topic}`);
        $("maps").scrollIntoView({ behavior: "smooth" });
      });
    }
  } catch (error) {
    $("maps").classList.add("still");
    $("map-status").textContent = `${error.message} The figures below show the map by counts.`;
  }
  if (cells) new GeneSearch(cells, maps);
  else $("gene-form").hidden = true;
  document.documentElement.dataset.ready = "true";
})();
