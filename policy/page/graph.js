"use strict";
// Names come from policies and may be anything: they are only ever set as text, and elements are made one by one.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const VERDICTS = ["allowed", "limited", "denied"];
const FIELDS = { methods: "", paths: "", hosts: "host", ports: "port", not_methods: "not", not_paths: "not", not_hosts: "not host", not_ports: "not port" };
const KINDS = { identity: "identity without a workload", namespace: "everybody of a namespace", pattern: "whoever's ID fits", "service account": "service account", "trust domain": "everybody of a trust domain", network: "whoever calls from there", token: "whoever has such a token", "any identity": "whoever has an identity", "no identity": "whoever has no certificate", anyone: "anybody at all" };

const SHORT = { namespace: "ns ", "service account": "sa ", "trust domain": "domain ", network: "net ", token: "token " };

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) if (child !== null && child !== undefined && child !== "") element.append(child);
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const data = JSON.parse($("data").textContent);
const nodes = new Map();
const last = (id) => id.slice(id.lastIndexOf("/") + 1) || id;

for (const one of data.services) nodes.set(one.id, { ...one, service: true, name: last(one.id), group: one.namespace || "no namespace" });
for (const one of data.callers) nodes.set(one.id, { ...one, service: false, name: one.kind === "identity" ? last(one.id) : (SHORT[one.kind] || "") + one.label, group: "named by rules" });
for (const node of nodes.values()) Object.assign(node, { into: [], from: [], pairsIn: [], pairsOut: [] });
for (const edge of data.edges) {
  edge.shadow = edge.grants.every((grant) => grant.shadow);
  edge.limited = !edge.grants.some((grant) => !grant.shadow && !grant.operations.length && !grant.conditions.length);
  nodes.get(edge.service).into.push(edge);
  nodes.get(edge.caller).from.push(edge);
}
for (const [who, whom, verdict] of data.pairs) {
  const pair = { caller: nodes.get(data.everybody[who]), service: nodes.get(data.everybody[whom]), verdict: VERDICTS[verdict] };
  pair.caller.pairsOut.push(pair);
  pair.service.pairsIn.push(pair);
}
const byName = (a, b) => a.name.localeCompare(b.name);
const groups = new Map();
for (const node of [...nodes.values()].sort(byName)) {
  if (!groups.has(node.group)) groups.set(node.group, { name: node.group, callers: !node.service, nodes: [], on: true });
  groups.get(node.group).nodes.push(node);
}
const ordered = [...groups.values()].sort((a, b) => a.callers - b.callers || a.name.localeCompare(b.name));
ordered.forEach((group, number) => { group.hue = (222 + number * 137.508) % 360; });
const colour = (group) => (group.callers ? "var(--faint)" : `oklch(var(--l) var(--c) ${group.hue.toFixed(1)})`);

let chosen = null;
let hovered = null;
let view = null;

// What is shown

const method = () => $("method").value;
function grantFits(grant) {
  if (grant.shadow && !$("shadow").checked) return false;
  const wanted = method();
  if (!wanted || !grant.operations.length) return true;
  const fits = (text) => text === "*" || text === wanted || (text.endsWith("*") && wanted.startsWith(text.slice(0, -1)));
  return grant.operations.some((op) => (!op.methods || op.methods.some(fits)) && !(op.not_methods || []).some(fits));
}
const visible = (node) => groups.get(node.group).on;
function edgeFits(edge) {
  if (edge.effect === "deny" && !$("denies").checked) return false;
  return visible(nodes.get(edge.caller)) && visible(nodes.get(edge.service)) && edge.grants.some(grantFits);
}
const covers = (caller, who) => caller.id === who.id || (!caller.service && (caller.everyone || caller.members.includes(who.id)));
function pairFits(pair) {
  if (!visible(pair.caller) || !visible(pair.service) || (pair.verdict === "denied" && !$("denies").checked)) return false;
  if (!method()) return true;
  return pair.service.into.some((edge) => edge.effect !== "deny" && edgeFits(edge) && covers(nodes.get(edge.caller), pair.caller));
}

// The ring

function layout() {
  const shown = ordered.filter((group) => group.on && group.nodes.length);
  const count = shown.reduce((sum, group) => sum + group.nodes.length, 0);
  const gap = shown.length > 1 ? Math.min(2.5, count / shown.length / 2 + 0.6) : 0;
  const slots = count + gap * shown.length;
  const radius = Math.max(190, (slots * 11.5) / (2 * Math.PI));
  const font = Math.min(15, Math.max(8.5, ((2 * Math.PI * radius) / slots) * 0.78));
  let at = gap / 2;
  for (const group of shown) {
    group.start = angle(at - 0.4, slots);
    for (const node of group.nodes) {
      node.angle = angle(at + 0.1, slots);
      node.x = radius * Math.cos(node.angle);
      node.y = radius * Math.sin(node.angle);
      at += 1;
    }
    group.end = angle(at - 0.4, slots);
    at += gap;
  }
  return { shown, radius, font };
}
const angle = (slot, slots) => (slot / slots) * 2 * Math.PI - Math.PI / 2;

function curve(a, b, radius) {
  const apart = Math.hypot(a.x - b.x, a.y - b.y) / (2 * radius);
  const pull = 0.72 - 0.62 * apart;
  return `M${a.x.toFixed(1)} ${a.y.toFixed(1)}C${(a.x * pull).toFixed(1)} ${(a.y * pull).toFixed(1)} ${(b.x * pull).toFixed(1)} ${(b.y * pull).toFixed(1)} ${b.x.toFixed(1)} ${b.y.toFixed(1)}`;
}

function line(a, b, radius, classes) {
  const path = s("path", { class: `edge ${classes}`, d: curve(a, b, radius) });
  path.style.stroke = colour(groups.get(a.group));
  return path;
}

function draw() {
  const { shown, radius, font } = layout();
  const picture = $("picture");
  const reach = (node) => (radius + 20 + Math.min(26, node.name.length) * font * 0.6) * Math.max(Math.abs(Math.cos(node.angle)), Math.abs(Math.sin(node.angle)));
  const margin = Math.max(radius * 1.08, ...shown.flatMap((group) => group.nodes.map(reach))) + 12;
  picture.style.setProperty("--line", String(Math.min(0.42, Math.max(0.13, 6 / Math.sqrt(data.edges.length + 1)))));
  picture.replaceChildren();
  if (!view) view = { x: 0, y: 0, half: margin };
  view.fit = margin;
  const lines = s("g", {});
  for (const edge of data.edges) {
    if (edge.caller === edge.service || !edgeFits(edge)) continue;
    lines.append(line(nodes.get(edge.caller), nodes.get(edge.service), radius, `${edge.effect === "deny" ? "deny" : edge.shadow ? "shadow" : ""} rest`));
  }
  picture.append(lines, s("g", { id: "focus" }));
  for (const group of shown) picture.append(band(group, radius, font));
  for (const group of shown) for (const node of group.nodes) picture.append(mark(node, group, radius, font));
  picture.dataset.radius = radius;
  frame();
  highlight();
}

function band(group, radius, font) {
  const inner = radius - 13;
  const point = (r, a) => `${(r * Math.cos(a)).toFixed(1)} ${(r * Math.sin(a)).toFixed(1)}`;
  const wide = group.end - group.start > Math.PI ? 1 : 0;
  const arc = s("path", { class: "band", d: `M${point(inner, group.start)}A${inner} ${inner} 0 ${wide} 1 ${point(inner, group.end - 1e-4)}` }, s("title", {}, group.name));
  arc.style.stroke = colour(group);
  const middle = (group.start + group.end) / 2;
  const room = (group.end - group.start) * (inner - 20);
  const size = Math.max(11, radius * 0.036);
  if (room < group.name.length * size * 0.68) return s("g", {}, arc);
  const id = `arc-${ordered.indexOf(group)}`;
  const below = Math.sin(middle) > 0;
  const r = inner - (below ? 8 : 8 + size * 0.75);
  const [from, to] = below ? [group.end, group.start] : [group.start, group.end];
  const guide = s("path", { id, fill: "none", d: `M${point(r, from)}A${r} ${r} 0 ${wide} ${below ? 0 : 1} ${point(r, to)}` });
  const text = s("text", { class: "band-name", "font-size": size, "text-anchor": "middle" }, s("textPath", { href: `#${id}`, startOffset: "50%" }, group.name));
  return s("g", {}, arc, guide, text);
}

function mark(node, group, radius, font) {
  const left = Math.cos(node.angle) < 0;
  const degrees = (node.angle * 180) / Math.PI + (left ? 180 : 0);
  const size = Math.min(6.5, Math.max(3, font * 0.42));
  const name = node.name.length > 26 ? `${node.name.slice(0, 25)}…` : node.name;
  const shape = node.service
    ? s("circle", { class: "mark", r: size, cx: node.x, cy: node.y })
    : s("rect", { class: "mark", x: node.x - size, y: node.y - size, width: size * 2, height: size * 2, rx: 1.5, transform: `rotate(45 ${node.x} ${node.y})` });
  shape.style.fill = colour(group);
  const at = left ? -(radius + 11) : radius + 11;
  const text = s("text", { "font-size": font, x: at, dy: "0.34em", "text-anchor": left ? "end" : "start", transform: `rotate(${degrees.toFixed(2)})` }, name);
  return s("g", {
    class: "node", role: "button", tabindex: "-1", "data-id": node.id, "aria-label": `${node.name}, ${node.group}`,
    onclick: () => choose(node), onmouseenter: () => { hovered = node; highlight(); }, onmouseleave: () => { hovered = null; highlight(); },
    onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(node); } },
  }, s("title", {}, node.id), s("circle", { class: "hit", r: Math.max(size + 4, 7), cx: node.x, cy: node.y }), shape, text);
}

function reached(node) {
  const classes = (edge) => (edge.effect === "deny" ? "deny" : edge.limited ? "limited" : "");
  const of = { allowed: "", limited: "limited", denied: "deny" };
  const callers = new Map();
  const called = new Map();
  for (const edge of node.into.filter(edgeFits)) if (!nodes.get(edge.caller).service || edge.effect === "deny") callers.set(edge.caller, [nodes.get(edge.caller), node, classes(edge)]);
  for (const edge of node.from.filter(edgeFits)) if (!node.service || edge.effect === "deny") called.set(edge.service, [node, nodes.get(edge.service), classes(edge)]);
  for (const pair of node.pairsIn.filter(pairFits)) callers.set(pair.caller.id, [pair.caller, node, of[pair.verdict]]);
  for (const pair of node.pairsOut.filter(pairFits)) called.set(pair.service.id, [node, pair.service, of[pair.verdict]]);
  return { to: [...callers.values()], from: [...called.values()] };
}

function highlight() {
  const node = hovered || chosen;
  const picture = $("picture");
  const focus = $("focus");
  const radius = Number(picture.dataset.radius);
  focus.replaceChildren();
  picture.classList.toggle("chosen", Boolean(node && visible(node)));
  const roles = new Map();
  if (node && visible(node)) {
    const { to, from } = reached(node);
    for (const [a, b, classes] of to) { focus.append(line(a, b, radius, `${classes} to`)); if (classes !== "deny") roles.set(a.id, "to"); }
    for (const [a, b, classes] of from) { focus.append(line(a, b, radius, `${classes} from`)); if (classes !== "deny") roles.set(b.id, roles.has(b.id) ? "both" : "from"); }
    roles.set(node.id, "self");
  }
  for (const element of picture.querySelectorAll(".node")) element.setAttribute("class", `node ${roles.get(element.dataset.id) || "rest"}`);
}

// Nearer and farther

function frame() { $("picture").setAttribute("viewBox", `${view.x - view.half} ${view.y - view.half} ${2 * view.half} ${2 * view.half}`); }
function zoom(factor, x = view.x, y = view.y) {
  const half = Math.min(view.fit * 1.6, Math.max(40, view.half * factor));
  const moved = half / view.half;
  view.x = x + (view.x - x) * moved;
  view.y = y + (view.y - y) * moved;
  view.half = half;
  frame();
}
function place(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform($("picture").getScreenCTM().inverse());
  return [point.x, point.y];
}
function moves() {
  const picture = $("picture");
  let from = null;
  picture.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(event.deltaY * 0.0012), ...place(event)); }, { passive: false });
  picture.addEventListener("pointerdown", (event) => { from = { x: event.clientX, y: event.clientY, moved: false }; });
  picture.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return;
    const scale = picture.getScreenCTM().a;
    const [dx, dy] = [event.clientX - from.x, event.clientY - from.y];
    if (!from.moved && Math.hypot(dx, dy) < 4) return;
    view.x -= dx / scale;
    view.y -= dy / scale;
    from = { x: event.clientX, y: event.clientY, moved: true };
    frame();
  });
  picture.addEventListener("click", (event) => { if (!event.target.closest(".node") && !(from && from.moved)) choose(null); });
  $("in").addEventListener("click", () => zoom(0.75));
  $("out").addEventListener("click", () => zoom(1.33));
  $("fit").addEventListener("click", () => { view = { x: 0, y: 0, half: view.fit, fit: view.fit }; frame(); });
}
