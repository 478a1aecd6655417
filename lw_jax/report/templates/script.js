"use strict";
(() => {
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);
  const redraw = [];

  const theme = at("theme");
  if (theme) {
    theme.hidden = false;
    theme.addEventListener("click", () => {
      const dark = root.dataset.theme
        ? root.dataset.theme === "dark"
        : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      redraw.forEach((draw) => draw());
    });
  }

  const filters = at("filters");
  if (filters) {
    const rows = [...document.querySelectorAll("article.row")].map((node) => ({
      node,
      right: JSON.parse(node.dataset.right),
      words: node.textContent.toLowerCase(),
    }));
    const fits = (want, right) => want === "" || (right !== undefined && right === (want === "1"));
    const apply = () => {
      const get = (name) => (filters.elements[name] ? filters.elements[name].value : "");
      const words = get("words").trim().toLowerCase();
      let shown = 0;
      for (const { node, right, words: said } of rows) {
        const keep =
          (!get("receiver") || node.dataset.receiver === get("receiver")) &&
          fits(get("is"), right[get("method")]) &&
          fits(get("text"), right.text) &&
          said.includes(words);
        node.hidden = !keep;
        shown += keep;
      }
      at("shown").textContent = `${shown} of ${rows.length} shown`;
    };
    filters.hidden = false;
    filters.addEventListener("input", apply);
    filters.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  const data = at("slot-data");
  if (!data) return;
  const texts = JSON.parse(data.textContent);
  const choose = at("slot-text"), slider = at("slot"), words = at("slot-words");
  const reads = at("reads"), cosines = at("cosines");
  at("slot-controls").hidden = false;
  at("maps").hidden = false;

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const paint = (canvas, values, scale, width, height) => {
    const dots = window.devicePixelRatio || 1;
    canvas.width = Math.round(values[0].length * width * dots);
    canvas.height = Math.round(values.length * height * dots);
    canvas.style.width = `${values[0].length * width}px`;
    canvas.style.height = `${values.length * height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(dots, dots);
    values.forEach((row, i) =>
      row.forEach((value, j) => {
        const [ink, share] = scale(value);
        pen.globalAlpha = share;
        pen.fillStyle = ink;
        pen.fillRect(j * width, i * height, width, height);
      })
    );
    pen.globalAlpha = 1;
    return pen;
  };
  const frame = (pen, row, width, height) => {
    pen.strokeStyle = colour("--ink");
    pen.lineWidth = 1.5;
    pen.strokeRect(0.75, row * height + 0.75, width - 1.5, height - 1.5);
  };
  let cell = { width: 6, height: 12, side: 12 };

  const draw = () => {
    const text = texts[Number(choose.value)];
    const slot = Math.min(Number(slider.value), text.cosine.length - 1);
    slider.max = text.cosine.length - 1;
    at("slot-number").textContent = `${slot + 1} of ${text.cosine.length}`;
    const count = text.cosine.length;
    cell.side = Math.max(3, Math.min(16, Math.floor((cosines.parentElement.clientWidth - 28) / count)));
    const plus = colour("--s0"), minus = colour("--s1");
    const near = paint(cosines, text.cosine, (v) => [v < 0 ? minus : plus, Math.min(1, Math.abs(v))], cell.side, cell.side);
    frame(near, slot, count * cell.side, cell.side);
    words.replaceChildren();
    if (!reads || !text.reads) return;
    const tokens = text.tokens.length;
    const room = reads.parentElement.clientWidth;
    cell.width = Math.max(4, Math.min(14, Math.floor(room / tokens)));
    cell.height = Math.max(6, Math.min(16, Math.round(260 / count)));
    const most = Math.max(1e-9, ...text.reads.flat());
    const shade = (v) => [plus, Math.sqrt(Math.min(1, v / most))];
    frame(paint(reads, text.reads, shade, cell.width, cell.height), slot, tokens * cell.width, cell.height);
    const own = Math.max(1e-9, ...text.reads[slot]);
    text.tokens.forEach((token, j) => {
      const span = document.createElement("span");
      const share = text.reads[slot][j];
      span.textContent = token;
      span.title = `${(100 * share).toFixed(1)} %`;
      const strength = Math.round(70 * Math.sqrt(share / own));
      span.style.background = `color-mix(in srgb, ${plus} ${strength}%, transparent)`;
      words.append(span);
    });
  };
  const pick = (canvas, height) => {
    if (!canvas) return;
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      slider.value = Math.floor((event.clientY - box.top) / height());
      draw();
    });
  };
  pick(reads, () => cell.height);
  pick(cosines, () => cell.side);
  choose.addEventListener("input", draw);
  slider.addEventListener("input", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let later;
  window.addEventListener("resize", () => {
    clearTimeout(later);
    later = setTimeout(draw, 100);
  });
  redraw.push(draw);
  draw();
})();
