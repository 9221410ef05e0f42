"use strict";
// Draws what the stream says. Text goes into the page as text only, so that no name can become markup.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SAMPLES = 60;

/** An element: its tag (`svg:path` for SVG), attributes, children. Strings become text. */
function h(tag, attributes, ...children) {
  const svg = tag.startsWith("svg:");
  const node = svg ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    // Through the object model: style attributes are what the page's policy forbids.
    if (name === "width%") node.style.width = `${value}%`;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child.nodeType ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** Makes `old` what `now` is, and leaves alone what is the same: focus, scrolling and selections stay. */
function morph(old, now) {
  if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName || old.dataset?.key !== now.dataset?.key) {
    old.replaceWith(now);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== now.data) old.data = now.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!now.hasAttribute(name) && name !== "style") old.removeAttribute(name);
  for (const { name, value } of now.attributes) if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.style && now.style && old.style.width !== now.style.width) old.style.width = now.style.width;
  children(old, [...now.childNodes]);
}

function children(parent, wanted) {
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
  wanted.forEach((node, i) => (parent.childNodes[i] ? morph(parent.childNodes[i], node) : parent.append(node)));
}

const show = (id, ...nodes) => children($(id), nodes.flat(Infinity).filter(Boolean));

const digits = (value) => (value >= 100 || value === 0 ? 0 : value >= 10 ? 1 : 2);
function short(value) {
  for (const [limit, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    const scale = unit === "k" ? 1e3 : limit;
    if (value >= limit) return (value / scale).toFixed(digits(value / scale)) + " " + unit;
  }
  return value.toFixed(value < 10 && value % 1 ? 1 : 0);
}
function percent(part) {
  const tenths = Math.round(part * 1000);
  return (tenths / 10).toFixed(tenths % 10 ? 1 : 0) + " %";
}
function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** The last minute of each backend, by service and name; and each pool's counters. */
const rates = new Map();
const counts = new Map();

function remember(map, key, value) {
  const past = map.get(key) || [];
  past.push(value);
  if (past.length > SAMPLES) past.shift();
  map.set(key, past);
  return past;
}

/** What went through a pool in the last minute, or since the page is open. */
function lately(service, pool, what) {
  const past = counts.get(`${service.name}/${pool.name}`) || [];
  return past.length > 1 ? Math.max(0, past[past.length - 1][what] - past[0][what]) : 0;
}

function spark(past, words) {
  const top = Math.max(...past, 1e-9);
  const x = (i) => ((SAMPLES - past.length + i) / (SAMPLES - 1)) * 100;
  const y = (value) => 23 - (value / top) * 21;
  const line = past.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return h("svg:svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": words },
    past.length > 1 && h("svg:path", { class: "area", d: `${line}L100 24L${x(0).toFixed(1)} 24Z` }),
    past.length > 1 && h("svg:path", { d: line }));
}

function stateOf(backend) {
  return backend.terminating ? "drain" : backend.state !== "ready" ? backend.state : backend.health.status;
}

function row(service, pool, backend) {
  const past = remember(rates, `${service.name}/${pool.name}/${backend.name}`, backend.rate.connections_per_second);
  const now = backend.rate.connections_per_second;
  const state = stateOf(backend);
  const all = pool.backends.reduce((sum, it) => sum + it.slots, 0);
  const why = backend.terminating ? "finishes its flows" : backend.health.reason || (!backend.takes_new && backend.why_not);
  const weight = backend.weight === backend.configured_weight || backend.terminating ? backend.weight : `${backend.weight} (file: ${backend.configured_weight})`;
  return h("tr", { "data-key": backend.name },
    h("td", { class: "name" }, h("span", { class: "mono" }, backend.name), why && h("span", { class: "why" }, why)),
    h("td", { class: "is" }, h("span", { class: `state ${state}` }, state)),
    h("td", { class: "num", "data-label": "Weight" }, weight, backend.slow_start_percent ? ` at ${Math.round(backend.slow_start_percent)} %` : null),
    h("td", { class: "num", "data-label": "Gets" }, all ? percent(backend.slots / all) : "–"),
    h("td", { class: "num rate", "data-label": "New a second" }, h("span", { class: "rated" }, short(now), spark(past, `${short(now)} new connections a second; the last minute`))));
}

function pool(service, pool) {
  const all = pool.backends.filter((it) => !it.terminating);
  const takers = all.filter((it) => it.takes_new).length;
  const note = pool.panic ? "Panic: health is ignored" : pool.failed ? "Failed: fewer healthy backends than min_healthy" : null;
  return h("section", { class: `pool ${pool.role}`, "data-key": pool.name, "aria-label": `Pool ${pool.name}` },
    h("div", { class: "top" },
      h("h3", {}, pool.name), h("span", { class: "role" }, pool.role),
      h("span", { class: "share" }, percent(pool.share_percent / 100)),
      h("span", { class: "note" }, all.length ? `${takers} of ${all.length} backend${all.length === 1 ? "" : "s"} ${takers === 1 ? "takes" : "take"} new connections` : "No backends"),
      note && h("span", { class: "note bad" }, note),
      pool.spills_to && h("span", { class: "note bad" }, `Spills to ${pool.spills_to}`)),
    pool.backends.length > 0 && h("table", {},
      h("thead", {}, h("tr", {}, ["Backend", "State", "Weight", "Gets", "New a second"].map((title, i) =>
        h("th", { scope: "col", class: i > 1 ? "num" : null }, title)))),
      h("tbody", {}, pool.backends.map((backend) => row(service, pool, backend)))));
}

function bar(title, share, words) {
  return h("div", { class: "row" }, h("span", {}, title),
    h("div", { class: "bar", role: "img", "aria-label": `${title}: ${words}` },
      share !== null && h("i", { class: "stable", "width%": 100 - 100 * share }),
      share !== null && share > 0 && h("i", { class: "canary", "width%": 100 * share })),
    h("span", {}, words));
}

function split(service) {
  const [stable, canary] = ["stable", "canary"].map((role) => service.pools.find((it) => it.role === role));
  if (!canary) return null;
  const observed = (what) => {
    const [a, b] = [lately(service, stable, what), lately(service, canary, what)];
    return a + b > 0 ? b / (a + b) : null;
  };
  const waits = (counts.get(`${service.name}/${stable.name}`) || []).length < 2;
  const line = (title, share) => bar(title, share, share === null ? (waits ? "no data yet" : "none in the last minute") : `${percent(1 - share)} / ${percent(share)}`);
  return h("div", { class: "split", "aria-label": "Split between the pools" },
    line("Desired", service.split.percent / 100),
    line("In the kernel", service.split.new_ratio),
    line("New connections", observed("connections")),
    line("Active traffic", observed("packets")));
}

function rollout(it) {
  const over = ["promoted", "rolled_back", "rolled-back", "failed"].includes(it.phase);
  const lost = over && it.phase !== "promoted", soaked = [it.phase, it.ended_in].includes("soaking");
  const steps = it.plan.steps.map((step, i) => {
    const at = i + 1;
    const is = it.phase === "promoted" || soaked || at < it.step ? "done" : at > it.step ? "" : lost ? "lost" : "now";
    return h("li", { class: is, "aria-current": is === "now" ? "step" : null }, `${+step.weight} %`);
  });
  const part = (clients) => (clients.tried ? percent(clients.bad / clients.tried) : "–");
  return h("div", { class: "rollout" },
    h("div", { class: "top" },
      h("b", {}, `Rollout ${it.from} → ${it.to}`),
      h("span", { class: `pill ${lost ? "bad" : it.phase === "promoted" ? "good" : "warn"}` }, it.phase.replaceAll(/[_-]/g, " ") + (over ? ` ${duration(it.elapsed_seconds)} ago` : "") + (it.paused ? ", paused" : "")),
      !over && h("span", {}, `verdict: ${it.verdict.replaceAll("-", " ")}`),
      h("span", { class: "left" }, it.left_seconds ? `at least ${duration(it.left_seconds)} left` : null)),
    h("ol", { class: "steps", "aria-label": "Steps" }, steps),
    it.reason && h("p", { class: "why" }, it.reason),
    it.metrics.length > 0 && h("ul", { class: "metrics" }, it.metrics.map((metric) =>
      h("li", {}, `${metric.name}: `, h("b", {}, part(metric.canary)), ` of ${metric.canary.tried} here, `, h("b", {}, part(metric.stable)), ` of ${metric.stable.tried} in ${it.from}`))));
}

function service(it, rollouts) {
  for (const pool of it.pools) remember(counts, `${it.name}/${pool.name}`, pool.traffic);
  // One that went back is past once somebody has set a split again.
  const past = (one) => ["rolled_back", "rolled-back", "failed"].includes(one.phase) && it.split.percent > 0;
  const now = rollouts.find((one) => one.service === it.name && !past(one));
  const port = it.port || "every port";
  const vip = it.vip.includes(":") ? `[${it.vip}]` : it.vip;
  return h("article", { class: "service card", "data-key": it.name, "aria-label": `Service ${it.name}` },
    h("div", { class: "top" },
      h("h2", {}, it.name), h("span", { class: "where" }, h("span", { class: "mono" }, `${vip}:${port}`), ` ${it.protocol}, ${it.mode}`),
      h("span", { class: "rev" }, `revision ${it.revision}`, it.split.settled ? "" : ", settling",
        it.overrides.length ? `, ${it.overrides.length} override${it.overrides.length > 1 ? "s" : ""}` : "")),
    now && rollout(now), split(it),
    h("div", { class: "pools" }, it.pools.map((one) => pool(it, one))));
}

function draw({ status, rollouts, events, more }) {
  const errors = status.findings.filter((it) => it.severity === "error").length;
  const warnings = status.findings.filter((it) => it.severity === "warning").length;
  const word = errors ? `${errors} error${errors > 1 ? "s" : ""}` : warnings ? `${warnings} warning${warnings > 1 ? "s" : ""}` : "all well";
  const health = h("p", { id: "health", class: `pill ${errors ? "bad" : warnings ? "warn" : "good"}`, role: "status" }, word);
  morph($("health"), health);
  document.title = errors ? `(${errors}) lb` : "lb";
  const plane = status.dataplane;
  const drops = Object.values(plane.drops).reduce((sum, count) => sum + count, 0);
  show("facts", [
    ["up", duration(status.uptime_seconds)], ["revision", status.revision],
    ["on", plane.interfaces.map((it) => `${it.name} (${it.mode})`).join(", ") || "nothing"],
    ["tracked", short(plane.flows.used + plane.udp_flows.used), "Flows in the tables: those of slots that change, and of canaries"],
    ["unsettled", short(plane.slots.unsettled), "Slots that have changed and still have flows elsewhere"],
    ["dropped", short(drops), "Packets dropped since the program was loaded"],
  ].map(([name, value, title]) => h("div", { title }, h("dt", {}, name), h("dd", {}, value))));
  show("findings", status.findings.filter((it) => it.severity !== "info").map((it) =>
    h("p", { class: `finding ${it.severity}` }, h("b", {}, it.code), `${it.subject}: ${it.message}`,
      it.remedy && h("span", { class: "remedy" }, it.remedy))));
  show("services",
    status.services.map((it) => service(it, rollouts)),
    !status.services.length && h("p", { class: "empty card" }, $("filter").value ? "No service has that in its name." : "No service is configured."),
    more > 0 && h("p", { class: "empty" }, `${more} more: say which ones above.`));
  show("events", events.map((it) =>
    h("li", { class: it.severity, "data-key": it.seq },
      h("time", { datetime: it.time, title: it.time }, new Date(it.time).toLocaleTimeString([], { hour12: false })),
      h("span", { class: "code mono" }, it.code),
      h("span", { class: "text" }, it.message.replaceAll(" -> ", " → "), it.actor && ` (${it.actor})`))),
    !events.length && h("li", {}, h("span", { class: "text" }, "Nothing yet.")));
  $("version").textContent = `lbd ${status.version}`;
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
}

let source;
function follow() {
  source?.close();
  source = new EventSource("stream?filter=" + encodeURIComponent($("filter").value.trim()));
  const link = (on, words) => {
    $("link").textContent = words;
    $("link").classList.toggle("on", on);
    document.documentElement.classList.toggle("stale", !on);
  };
  source.addEventListener("state", (event) => {
    link(true, "live");
    draw(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    link(false, "not connected: trying again");
    // A refusal ends the stream for good, where a lost connection does not.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 2000);
  });
}

let wait;
$("filter").addEventListener("input", () => {
  clearTimeout(wait);
  wait = setTimeout(follow, 250);
});
follow();
