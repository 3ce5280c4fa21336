// The script of the console: live parts, charts, heat maps, questions before actions. Every page works without it.
"use strict";

const LIVE_MS = 4000;

// ---- Live parts: the same page is fetched again, and its parts with `data-live` replace those shown.

function isBusy(part) {
  const selection = document.getSelection();
  if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) return true;
  if (part.querySelector("details[open]") || part.matches(":has(.chart:hover, .chart:focus)")) return true;
  const active = document.activeElement;
  return part.contains(active) && active.matches("input, select, textarea, button, summary");
}

function replacePart(part, fresh) {
  const active = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  if (part.innerHTML === fresh.innerHTML) return;
  part.replaceChildren(...fresh.childNodes);
  if (active) part.querySelector(`a[href="${CSS.escape(active)}"]`)?.focus();
  setUp(part);
}

async function refresh() {
  if (document.hidden || document.querySelector("dialog[open]")) return;
  const reply = await fetch(location.href, { headers: { accept: "text/html" } });
  if (reply.redirected) location.reload(); // the session has ended
  if (reply.status >= 500) throw new Error(`status ${reply.status}`); // Redis is away, for instance
  if (!reply.ok) return;
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (other && !isBusy(part)) replacePart(part, other);
  }
}

async function keepLive() {
  for (;;) {
    await new Promise((done) => setTimeout(done, LIVE_MS));
    try {
      await refresh();
      document.documentElement.classList.remove("is-stale");
    } catch {
      document.documentElement.classList.add("is-stale"); // nothing new can be fetched; try again
    }
  }
}

// ---- Charts: the values at the pointer, or at the arrow keys.

function setUpChart(chart) {
  const points = JSON.parse(chart.dataset.chart);
  const svg = chart.querySelector("svg");
  const cursor = chart.querySelector(".cursor");
  const reading = chart.querySelector(".reading");
  const names = [...chart.querySelectorAll(".legend-name")].map((name) => name.textContent);
  let place = points.length - 1;

  const show = (next) => {
    place = Math.max(0, Math.min(points.length - 1, next));
    const point = points[place];
    const hair = cursor.querySelector(".hair");
    hair.setAttribute("x1", point.x);
    hair.setAttribute("x2", point.x);
    cursor.querySelectorAll("circle").forEach((dot, line) => {
      const y = point.y[line];
      dot.setAttribute("visibility", y === null ? "hidden" : "inherit");
      if (y !== null) {
        dot.setAttribute("cx", point.x);
        dot.setAttribute("cy", y);
      }
    });
    cursor.setAttribute("visibility", "visible");
    reading.hidden = false;
    reading.textContent = `${point.at} UTC · ` + names.map((name, line) => `${name} ${point.values[line]}`).join(" · ");
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    reading.hidden = true;
  };

  if (!points.length) return;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let nearest = 0;
    points.forEach((point, index) => {
      if (Math.abs(point.x - x) < Math.abs(points[nearest].x - x)) nearest = index;
    });
    show(nearest);
  });
  svg.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(place + step);
  });
}

// ---- Heat maps: the alternatives of the token at the pointer or in focus.

function tokenCard() {
  let card = document.getElementById("token-card");
  if (!card) {
    card = document.createElement("div");
    card.id = "token-card";
    card.setAttribute("role", "status");
    card.hidden = true;
    document.body.append(card);
  }
  return card;
}

function bar(width) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 100 6");
  svg.setAttribute("preserveAspectRatio", "none");
  const rect = document.createElementNS(ns, "rect");
  rect.setAttribute("width", Math.max(0.5, width));
  rect.setAttribute("height", 6);
  rect.setAttribute("class", "fill");
  svg.append(rect);
  return svg;
}

function showToken(token) {
  const card = tokenCard();
  const list = document.createElement("ol");
  for (const each of JSON.parse(token.dataset.alts)) {
    const row = document.createElement("li");
    if (each.chosen) row.className = "chosen";
    const text = document.createElement("code");
    text.textContent = each.text;
    const share = document.createElement("span");
    share.textContent = each.shown;
    row.append(text, bar(each.width), share);
    list.append(row);
  }
  card.replaceChildren(list);
  card.hidden = false;
  const at = token.getBoundingClientRect();
  const { width, height } = card.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
  const below = at.bottom + 6;
  const top = below + height > window.innerHeight ? Math.max(8, at.top - height - 6) : below;
  card.style.left = `${left}px`;
  card.style.top = `${top}px`;
}

function setUpHeatMap(map) {
  const tokens = [...map.querySelectorAll(".heat")];
  if (!tokens.length) return;
  tokens[0].tabIndex = 0;
  const go = (from, to) => {
    const next = tokens[to];
    if (!next) return;
    from.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  map.addEventListener("pointerover", (event) => {
    const token = event.target.closest(".heat");
    if (token) showToken(token);
  });
  map.addEventListener("pointerleave", () => { tokenCard().hidden = true; });
  map.addEventListener("focusin", (event) => { if (event.target.matches(".heat")) showToken(event.target); });
  map.addEventListener("focusout", () => { tokenCard().hidden = true; });
  map.addEventListener("click", (event) => {
    const token = event.target.closest(".heat");
    if (token) go(tokens.find((each) => each.tabIndex === 0) ?? tokens[0], tokens.indexOf(token));
  });
  map.addEventListener("keydown", (event) => {
    const here = tokens.indexOf(event.target);
    const to = {
      ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: tokens.length - 1,
    }[event.key];
    if (event.key === "Escape") tokenCard().hidden = true;
    if (here < 0 || to === undefined) return;
    event.preventDefault();
    go(tokens[here], to);
  });
}

// ---- Questions before actions that cannot be taken back.

function setUpForm(form) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.confirmed) return;
    event.preventDefault();
    const dialog = document.getElementById("confirm");
    document.getElementById("confirm-question").textContent = form.dataset.confirm;
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "yes") return;
      form.dataset.confirmed = "yes";
      form.requestSubmit();
    }, { once: true });
    dialog.showModal();
  });
}

function setUpCopy(element) {
  if (!navigator.clipboard) return; // only over https, or on this machine
  element.title = "Click to copy";
  element.addEventListener("click", async () => {
    if (!document.getSelection().isCollapsed) return;
    await navigator.clipboard.writeText(element.textContent);
    element.dataset.copied = "yes";
    setTimeout(() => delete element.dataset.copied, 1200);
  });
}

function setUpTheme(button) {
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    try {
      localStorage.setItem("batchmill-theme", root.dataset.theme);
    } catch {
      // The browser keeps nothing: the choice holds for this page.
    }
  });
}

function setUp(part) {
  part.querySelectorAll("[data-chart]").forEach(setUpChart);
  part.querySelectorAll("[data-heat]").forEach(setUpHeatMap);
  part.querySelectorAll("form[data-confirm]").forEach(setUpForm);
  part.querySelectorAll("[data-copy]").forEach(setUpCopy);
}

setUp(document);
document.querySelectorAll("#theme").forEach(setUpTheme);
// The notice of an action is not shown again when the page is loaded again.
const here = new URL(location.href);
if (here.searchParams.has("done")) {
  here.searchParams.delete("done");
  history.replaceState(null, "", here);
}
if (document.querySelector("[data-live]")) keepLive();
