"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("units");
  document.documentElement.classList.add("js");
  // A link to something folded opens it.
  const unfold = () => {
    const target = byId(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", unfold);
  // Also one that is followed again, after what it leads to was folded.
  addEventListener("click", (event) => { if (event.target.closest("a[href^='#']")) setTimeout(unfold); });
  unfold();
  // Without and with the mark: one over the other, with a slider between them.
  document.querySelectorAll(".shot").forEach((shot) => {
    const slider = shot.querySelector("input[type=range]");
    const marked = shot.querySelector(".marked");
    const show = () => {
      marked.style.clipPath = `inset(0 0 0 ${100 - slider.value}%)`;
      slider.setAttribute("aria-valuetext", `${slider.value} % with the mark`);
    };
    slider.hidden = false;
    slider.addEventListener("input", show);
    show();
  });
  const copied = async (button) => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      // Browsers that keep the clipboard from pages of files let a selection be copied.
      const field = document.createElement("textarea");
      field.value = button.dataset.copy;
      button.after(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    const label = button.firstChild;
    label.data = "copied";
    setTimeout(() => { label.data = "copy spec"; }, 1500);
  };
  document.querySelectorAll("button.copy").forEach((button) => {
    button.hidden = false;
    button.addEventListener("click", () => copied(button));
  });
  if (!table) return;

  const STEP = 100;
  const MOST = Number(table.dataset.most);
  const CONTROLS = ["control", "strokes", "blobs"];
  const MARKS = { fails: 2, accepted: 1 };
  const WORDS = ["", "accepted", "reaches"];
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const kinds = [...table.querySelectorAll("thead th")].map((th) => th.querySelector("button")?.dataset.sort ?? "interval");
  let units = null;
  let shown = STEP;
  let order = { kind: "d", down: true };
  let found = new Uint32Array(0);

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const numbers = (text, Kind) => {
    const view = new DataView(bytes(text).buffer);
    const size = Kind.BYTES_PER_ELEMENT;
    const get = size === 2 ? "getUint16" : "getUint32";
    return Kind.from({ length: view.byteLength / size }, (_, i) => view[get](i * size, true));
  };

  // Unpacked when somebody first sorts or filters, so that the page opens fast.
  const unpack = () => {
    if (units) return units;
    const data = JSON.parse(byId("data").textContent);
    const total = data.shown;
    const all = {
      total, blocks: data.blocks, names: data.names,
      lower: data.names.map((group) => group.map((name) => name.toLowerCase())),
      block: new Uint16Array(total), unit: new Uint32Array(total), mark: new Uint8Array(total),
      a: new Uint16Array(total), low: new Uint16Array(total), high: new Uint16Array(total),
      d: new Uint16Array(total),
    };
    for (const kind of CONTROLS) all[kind] = new Int16Array(total).fill(-1);
    let start = 0;
    data.blocks.forEach((block, place) => {
      const kept = block.units === null ? null : numbers(block.units, Uint32Array);
      const marks = new Map();
      for (const kind of ["fails", "accepted"]) block[kind].forEach((unit) => marks.set(unit, MARKS[kind]));
      for (const name of ["a", "low", "high"]) all[name].set(numbers(block[name], Uint16Array), start);
      for (const [kind, areas] of Object.entries(block.controls)) all[kind].set(numbers(areas, Uint16Array), start);
      for (let i = 0; i < block.count; i++) {
        const at = start + i;
        all.block[at] = place;
        all.unit[at] = kept ? kept[i] : i;
        all.mark[at] = marks.get(all.unit[at]) ?? 0;
        all.d[at] = Math.max(all.a[at], 1000 - all.a[at]);
      }
      start += block.count;
    });
    units = all;
    return units;
  };

  const label = (at) => {
    const group = units.blocks[units.block[at]].names;
    return group === null ? `unit ${units.unit[at]}` : `${units.names[group][units.unit[at]]} [${units.unit[at]}]`;
  };
  const places = (words) => {
    const sorted = [...new Set(words)].sort(collator.compare);
    const place = new Map(sorted.map((word, i) => [word, i]));
    return words.map((word) => place.get(word));
  };
  const keys = (kind) => {
    const { total, block, blocks } = units;
    if (kind === "d" || kind === "a" || CONTROLS.includes(kind)) return units[kind];
    if (kind === "gate") return units.mark;
    if (kind === "reaction") return Uint8Array.from(units.a, (a) => (a >= 500 ? 0 : 1));
    if (kind === "unit") {
      const names = Array.from({ length: total }, (_, at) => label(at));
      return Uint32Array.from(places(names));
    }
    const of = places(blocks.map((one) => one[kind]));
    return Uint32Array.from(block, (place) => of[place]);
  };

  const asked = () => ({
    text: byId("search").value.trim().toLowerCase(),
    model: byId("model")?.value ?? "", scenario: byId("scenario")?.value ?? "", layer: byId("layer")?.value ?? "",
    fails: byId("fails")?.checked ?? false,
  });

  const select = () => {
    const { text, model, scenario, layer, fails } = asked();
    const { total, blocks, block, unit, lower, mark } = units;
    const fits = blocks.map((b) => (!model || b.model === model) && (!scenario || b.scenario === scenario) && (!layer || b.layer === layer));
    const chosen = new Uint32Array(total);
    let count = 0;
    for (let at = 0; at < total; at++) {
      const place = block[at];
      if (!fits[place] || (fails && mark[at] !== 2)) continue;
      if (text !== "") {
        const group = blocks[place].names;
        const name = group === null ? `unit ${unit[at]}` : `${lower[group][unit[at]]} [${unit[at]}]`;
        if (!name.includes(text)) continue;
      }
      chosen[count++] = at;
    }
    found = chosen.subarray(0, count);
    const key = keys(order.kind);
    const { d } = units;
    const sign = order.down ? -1 : 1;
    found.sort((x, y) => sign * (key[x] - key[y]) || d[y] - d[x] || x - y);
  };

  const thousandths = (value) => (value / 1000).toFixed(3);
  const cell = {
    unit: label,
    d: (at) => thousandths(units.d[at]),
    scenario: (at) => units.blocks[units.block[at]].scenario,
    layer: (at) => units.blocks[units.block[at]].layer,
    model: (at) => units.blocks[units.block[at]].model,
    reaction: (at) => (units.a[at] >= 500 ? "fires on" : "silenced"),
    a: (at) => thousandths(units.a[at]),
    interval: (at) => `${thousandths(units.low[at])}–${thousandths(units.high[at])}`,
    gate: (at) => WORDS[units.mark[at]],
  };
  for (const kind of CONTROLS) cell[kind] = (at) => (units[kind][at] < 0 ? "–" : thousandths(units[kind][at]));
  const numeric = new Set(["d", "a", "interval", ...CONTROLS]);
  const heads = [...table.querySelectorAll("thead th")].map((th) => th.textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const drawn = (parent, tag, attributes) => {
    const shape = parent.appendChild(document.createElementNS(SVG, tag));
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    return shape;
  };
  // The same as the macro "bar" of the template.
  const bar = (at) => {
    const d = units.d[at] / 1000;
    const { threshold } = units.blocks[units.block[at]];
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", d >= threshold ? "bar over" : "bar");
    svg.setAttribute("viewBox", "0 0 100 10");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    drawn(svg, "rect", { class: "rail", width: 100, height: 10 });
    drawn(svg, "rect", { class: "fill", width: 200 * d - 100, height: 10 });
    drawn(svg, "path", { class: "line", d: `M${200 * threshold - 100} 0v10` });
    return svg;
  };

  const draw = () => {
    const rows = document.createDocumentFragment();
    for (const at of found.subarray(0, Math.min(shown, MOST))) {
      const row = document.createElement("tr");
      if (units.mark[at] === 2) row.className = "bad";
      kinds.forEach((kind, column) => {
        const one = document.createElement(column === 0 ? "th" : "td");
        if (column === 0) one.scope = "row";
        if (numeric.has(kind)) one.className = "number";
        if (column) one.dataset.label = kind === "interval" ? "95 %" : heads[column];
        one.textContent = cell[kind](at);
        if (kind === "d") one.prepend(bar(at));
        row.append(one);
      });
      rows.append(row);
    }
    table.tBodies[0].replaceChildren(rows);
    const some = Math.min(shown, found.length, MOST).toLocaleString("en");
    byId("found").textContent = found.length === 0 ? "No unit is like that"
      : `${some} of ${found.length.toLocaleString("en")} units${found.length < units.total ? " that are like that" : " on this page"}`;
    byId("more").hidden = Math.min(found.length, MOST) <= shown;
  };

  const refresh = () => {
    unpack();
    select();
    draw();
  };

  const filterStatic = () => {
    const { text, model, scenario, layer } = asked();
    document.querySelectorAll("table.static tbody tr").forEach((row) => {
      const { dataset } = row;
      // The model is chosen, not searched: its name may hold a class's.
      const words = [...row.cells].map((one) => one.textContent).filter((one) => one !== dataset.model).join(" ");
      row.hidden = (model && dataset.model && dataset.model !== model) || (scenario && dataset.scenario !== scenario)
        || (layer && dataset.layer !== layer)
        || (text !== "" && !words.toLowerCase().includes(text));
    });
  };

  const turn = (button, downFirst) => {
    const head = button.closest("th");
    const before = head.getAttribute("aria-sort");
    const down = before === "none" ? downFirst : before === "ascending";
    head.parentElement.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    return down;
  };

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const kind = button.dataset.sort;
    order = { kind, down: turn(button, numeric.has(kind) || kind === "gate") };
    shown = STEP;
    refresh();
  });
  document.querySelectorAll("table.static").forEach((one) => one.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const number = button.dataset.sort === "number";
    const sign = turn(button, number) ? -1 : 1;
    const column = button.closest("th").cellIndex;
    const value = (row) => row.cells[column].textContent.replaceAll(",", "");
    const amount = (row) => parseFloat(value(row));
    const compare = number ? (x, y) => amount(x) - amount(y) : (x, y) => collator.compare(value(x), value(y));
    // What is not known comes last, either way.
    const missing = (row) => number && Number.isNaN(amount(row));
    one.tBodies[0].append(...[...one.tBodies[0].rows].sort((x, y) => missing(x) - missing(y) || sign * compare(x, y)));
  }));

  const filters = document.querySelector(".filters");
  filters.addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { shown = STEP; refresh(); filterStatic(); }, 80);
  };
  filters.addEventListener("input", soon);
  filters.addEventListener("change", soon);
  byId("more").addEventListener("click", () => {
    if (units) shown += STEP;
    refresh();
    if (byId("more").hidden) byId("units-title").focus();
  });
  byId("more").hidden = table.tBodies[0].rows.length >= Number(table.dataset.shown);
  // Fields that the browser filled in again after a reload count.
  const { text, model, scenario, layer, fails } = asked();
  if (text || model || scenario || layer || fails) { refresh(); filterStatic(); }
})();
