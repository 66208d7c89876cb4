"use strict";
// Makes the page answer to pointer, touch and keyboard: hints, zoom, the other axis, sorted tables.
// It loads nothing, computes no number and keeps nothing; without it every figure and every number is there.
(() => {
  const ZOOMS = [1, 2, 4, 8];
  const REACH = 28; // pixels around a mark within which it answers
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.max(low, Math.min(value, high));

  function make(name, className, text = "") {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  }

  // Hints. A native title is taken off when it is first needed, so that the browser does not show it as well.

  const bubble = make("div", "hint");
  bubble.setAttribute("role", "status");
  let current = null;
  let pointer = null; // where a mouse was last; what moves beneath it is shown

  function takeHint(element) {
    if (element.matches("svg.chart")) takeMarks(element);
    else if (element.title) {
      element.dataset.hint = element.title;
      element.removeAttribute("title");
    }
    return element.dataset.hint || "";
  }

  function takeMarks(chart) {
    const [own, description] = ["title", "desc"].map((name) => chart.querySelector(`:scope > ${name}`));
    for (const title of all("* > title", chart)) {
      if (title === own) continue;
      title.parentNode.dataset.hint = title.textContent;
      title.remove();
    }
    const owners = all("[data-hint]", chart);
    if (own) {
      const said = description ? `${own.textContent}: ${description.textContent}` : own.textContent;
      chart.dataset.hint = owners.length === 1 ? owners[0].dataset.hint : said;
      chart.setAttribute("aria-label", own.textContent);
      own.remove();
    }
    return owners;
  }

  function distanceTo(element, x, y) {
    const box = element.getBoundingClientRect();
    return Math.hypot(x - clamp(x, box.left, box.right), y - clamp(y, box.top, box.bottom));
  }

  function findAt(target, x, y) {
    if (!target.closest) return null;
    const chart = target.closest("svg.chart[role]");
    if (!chart) return target.closest("[title], [data-hint]");
    const owners = takeMarks(chart);
    if (owners.length < 2) return chart;
    const near = owners.map((owner) => [distanceTo(owner, x, y), owner]);
    const [distance, owner] = near.reduce((best, each) => (each[0] <= best[0] ? each : best));
    return distance <= REACH ? owner : null;
  }

  function hide() {
    if (current) current.classList.remove("at");
    bubble.classList.remove("on");
    current = null;
  }

  function show(element, x) {
    const text = takeHint(element);
    if (!text) return;
    if (current !== element) hide();
    current = element;
    element.classList.add("at");
    if (bubble.textContent !== text) bubble.textContent = text;
    bubble.classList.add("on");
    place(element, x);
  }

  function place(element, x) {
    const box = element.getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) return hide();
    const middle = x === undefined ? (box.left + box.right) / 2 : clamp(x, box.left, box.right);
    const { offsetWidth: wide, offsetHeight: tall } = bubble;
    const above = box.top - tall - 8;
    const top = above >= 4 ? above : Math.min(box.bottom + 8, innerHeight - tall - 4);
    bubble.style.left = `${clamp(middle - wide / 2, 4, document.documentElement.clientWidth - wide - 4)}px`;
    bubble.style.top = `${Math.max(4, top)}px`;
  }

  function showAt(target, x, y) {
    const found = target && findAt(target, x, y);
    if (found) show(found, x);
    else hide();
  }

  function point(event) {
    pointer = event.pointerType === "touch" ? null : [event.clientX, event.clientY];
    showAt(event.target, event.clientX, event.clientY);
  }

  function follow() {
    if (pointer) showAt(document.elementFromPoint(...pointer), ...pointer);
    else if (current) place(current);
  }

  // One stop of the Tab key for a chart, a table, or a rule; the arrow keys go through what has a hint within it.

  const STOPS = ".scroll, .rule, .glance, .bars, .running, table";

  function listItems(stop) {
    if (stop.matches("svg.chart")) return takeMarks(stop);
    const found = all("[title], [data-hint], svg.chart[role]", stop);
    return found.filter((item) => item.getClientRects().length && !item.ownerSVGElement && !("stop" in item.dataset));
  }

  function centre(item) {
    const box = item.getBoundingClientRect();
    return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
  }

  function step(stop, [right, down]) {
    const items = listItems(stop);
    const at = items.indexOf(current);
    if (at < 0) return items[0];
    if (stop.matches("svg.chart")) {
      const order = items.map((item) => [...centre(item), item]).sort((a, b) => a[0] - b[0] || b[1] - a[1]);
      const place = order.findIndex((each) => each[2] === current);
      return (order[place + right - down] || [])[2];
    }
    if (right) return items[at + right];
    const [x, y] = centre(current);
    const beyond = items.map((item) => [...centre(item), item]).filter((each) => (each[1] - y) * down > 4);
    const cost = (each) => Math.abs(each[1] - y) * 1e4 + Math.abs(each[0] - x);
    return beyond.length ? beyond.reduce((best, each) => (cost(each) < cost(best) ? each : best))[2] : undefined;
  }

  function press(event) {
    if (event.key === "Escape") return hide();
    const stop = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || !stop.dataset || !("stop" in stop.dataset)) return;
    const ends = { Home: 0, End: -1 };
    const zoomed = { "+": 1, "=": 1, "-": -1, 0: -ZOOMS.length }[event.key];
    const frame = stop.closest(".frame");
    let next = null;
    if (event.key in ARROWS) next = step(stop, ARROWS[event.key]);
    else if (event.key in ends) next = listItems(stop).at(ends[event.key]);
    else if (zoomed && frame && frame.querySelector(".view")) {
      next = current || listItems(stop)[0];
      zoomBy(frame, zoomed, centre(next)[0]);
    }
    if (!next) return;
    event.preventDefault();
    pointer = null;
    next.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
    show(next);
  }

  function addStops() {
    for (const chart of all("svg.chart[role]")) {
      if (chart.querySelectorAll("title").length < 3) continue;
      chart.setAttribute("role", "application");
      chart.setAttribute("aria-roledescription", "chart");
      addStop(chart);
    }
    for (const stop of all(STOPS)) {
      const inside = stop.parentNode.closest("[data-stop], .scroll");
      if (!inside && stop.querySelector("[title], svg.chart[role=img]")) addStop(stop);
    }
  }

  function addStop(element) {
    element.setAttribute("tabindex", "0");
    element.dataset.stop = "";
  }

  // Zoom makes a drawing wider than its view: its places are shares of its width, so text and lines keep their size.

  function zoomOf(frame) {
    return Number(frame.dataset.zoom || 1);
  }

  function zoomTo(frame, zoom, at = 0.5) {
    frame.dataset.zoom = zoom;
    for (const view of all(".view", frame)) {
      view.classList.remove(...ZOOMS.map((each) => `zoom${each}`));
      if (zoom > 1) view.classList.add(`zoom${zoom}`);
      view.firstElementChild.setAttribute("width", `${100 * zoom}%`);
      view.scrollLeft = at * view.scrollWidth - view.clientWidth / 2;
    }
    const into = frame.querySelector(".controls [data-step]");
    if (into) into.disabled = zoom === ZOOMS.at(-1);
    hide();
  }

  function viewOf(frame) {
    return all(".view", frame).find((view) => view.getClientRects().length);
  }

  function shareAt(view, x) {
    const box = view.getBoundingClientRect();
    return clamp((view.scrollLeft + x - box.left) / view.scrollWidth, 0, 1);
  }

  function zoomBy(frame, steps, x) {
    const view = viewOf(frame);
    const box = view.getBoundingClientRect();
    const at = shareAt(view, x === undefined ? (box.left + box.right) / 2 : x);
    zoomTo(frame, ZOOMS[clamp(ZOOMS.indexOf(zoomOf(frame)) + steps, 0, ZOOMS.length - 1)], at);
  }

  function letSelect(frame, view) {
    let start = null;
    const range = make("div", "range");
    const stopSelecting = () => {
      start = null;
      range.remove();
    };
    view.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) start = event.clientX;
    });
    view.addEventListener("pointermove", (event) => {
      if (start === null || Math.abs(event.clientX - start) < 8) return;
      view.append(range);
      const left = view.getBoundingClientRect().left - view.scrollLeft;
      range.style.left = `${Math.min(start, event.clientX) - left}px`;
      range.style.width = `${Math.abs(event.clientX - start)}px`;
      if (!view.hasPointerCapture(event.pointerId)) view.setPointerCapture(event.pointerId);
    });
    view.addEventListener("pointerup", (event) => {
      if (start !== null && range.isConnected) {
        const [from, to] = [shareAt(view, start), shareAt(view, event.clientX)];
        const fitting = ZOOMS.filter((zoom) => zoom * Math.abs(to - from) <= 1);
        zoomTo(frame, Math.max(zoomOf(frame), fitting.at(-1)), (from + to) / 2);
      }
      stopSelecting();
    });
    view.addEventListener("pointercancel", stopSelecting);
    view.addEventListener("dblclick", () => zoomOf(frame) > 1 && zoomTo(frame, 1));
    let turned = 0;
    view.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey) return; // a wheel alone scrolls the page; with Ctrl, as pinching on a pad, it zooms
        event.preventDefault();
        turned += event.deltaY;
        if (Math.abs(turned) < 60) return;
        zoomBy(frame, turned < 0 ? 1 : -1, event.clientX);
        turned = 0;
      },
      { passive: false },
    );
  }

  function addControls(frame) {
    const controls = make("div", "controls");
    const add = (text, label, act) => {
      const button = make("button", "", text);
      button.type = "button";
      button.setAttribute("aria-label", label);
      button.addEventListener("click", () => act(button));
      controls.append(button);
      return button;
    };
    const panes = all(":scope > .pane", frame);
    if (panes.length > 1) {
      const names = panes.map((pane) => pane.dataset.axis);
      const button = add(`${names[1]} axis`, `vertical axis ${names[1]}`, () => {
        panes.forEach((pane) => (pane.hidden = !pane.hidden));
        button.setAttribute("aria-pressed", String(panes[0].hidden));
        zoomTo(frame, zoomOf(frame));
      });
      button.setAttribute("aria-pressed", "false");
    }
    if (frame.querySelector(".view")) {
      add("whole", "show the whole chart", () => zoomTo(frame, 1)).dataset.zoomed = "";
      add("−", "zoom out", () => zoomBy(frame, -1)).dataset.zoomed = "";
      add("+", "zoom in", () => zoomBy(frame, 1)).dataset.step = "in";
      all(".view", frame).forEach((view) => letSelect(frame, view));
    }
    if (!controls.childElementCount) return;
    frame.prepend(controls);
    zoomTo(frame, 1);
  }

  // Tables: a click on the head of a column sorts by it, another one turns the order round, a third one restores it.

  function valueOf(row, column) {
    const cell = row.cells[column];
    const full = [cell, ...all("[title], [data-hint]", cell)].map(takeHint).find((text) => text && !isNaN(text));
    const text = cell.dataset.value || full || cell.textContent.trim();
    const shown = text.replace(/\u2212/g, "-").replace(/[\u202f\s]|%$|^×/g, "");
    return shown !== "" && !isNaN(shown) ? Number(shown) : text;
  }

  function compare(a, b, direction) {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1; // what has no number stands last
    return direction * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  }

  function sort(body, original, column, direction) {
    const keyed = original.map((row) => [valueOf(row, column), row]);
    if (direction) keyed.sort((a, b) => compare(a[0], b[0], direction));
    body.append(...keyed.map((each) => each[1]));
    hide();
  }

  function letSort(table) {
    const [body] = table.tBodies;
    const heads = table.tHead ? [...table.tHead.rows[0].cells] : [];
    const rows = body ? [...body.rows] : [];
    if (rows.length < 3 || rows.some((row) => row.cells.length !== heads.length)) return;
    heads.forEach((head, column) => {
      if (!head.textContent.trim() || head.classList.contains("draw")) return;
      const button = make("button", "sort");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const turned = { ascending: "descending", descending: "" }[head.getAttribute("aria-sort")] ?? "ascending";
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        if (turned) head.setAttribute("aria-sort", turned);
        sort(body, rows, column, { ascending: 1, descending: -1, "": 0 }[turned]);
      });
    });
  }

  document.body.append(bubble);
  all(".frame").forEach(addControls);
  all(".scroll table:not(.heat)").forEach(letSort);
  addStops();
  document.addEventListener("pointermove", (event) => event.pointerType !== "touch" && point(event));
  document.addEventListener("pointerdown", (event) => event.pointerType === "touch" && point(event));
  document.documentElement.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && hide());
  document.addEventListener("keydown", press);
  document.addEventListener("focusin", (event) => {
    const stop = event.target;
    if (stop.matches("svg.chart[data-stop]:focus-visible")) show(listItems(stop)[0]);
  });
  document.addEventListener("focusout", (event) => event.target.contains(current) && hide());
  addEventListener("scroll", follow, { passive: true, capture: true });
})();
