// The list, and what is told of the node that was chosen

function list() {
  const wanted = $("search").value.trim().toLowerCase();
  const place = $("list");
  place.replaceChildren();
  for (const group of ordered) {
    const some = group.nodes.filter((node) => !wanted || node.id.toLowerCase().includes(wanted) || node.name.toLowerCase().includes(wanted));
    if (!some.length) continue;
    const dot = h("span", { class: "dot" });
    dot.style.background = colour(group);
    const box = h("input", { type: "checkbox", onchange: () => { group.on = box.checked; list(); draw(); } });
    box.checked = group.on;
    const items = some.map((node) => h("button", { type: "button", "data-id": node.id, title: node.id, "aria-pressed": String(node === chosen), onclick: () => choose(node) },
      h("span", {}, node.name), h("span", { class: "degree", title: "may call it · it may call" }, degree(node))));
    place.append(h("div", { class: group.on ? "group" : "group off" },
      h("label", {}, box, dot, h("span", {}, group.name), h("span", { class: "count" }, String(some.length))), h("div", { class: "items" }, items)));
  }
  if (!place.children.length) place.append(h("p", { class: "none" }, "Nothing is called so."));
}
const open = (pairs) => pairs.filter((pair) => pair.verdict !== "denied").length;
const degree = (node) => (node.service ? `${open(node.pairsIn)} → ${open(node.pairsOut)}` : `→ ${new Set(node.from.filter((e) => e.effect !== "deny").map((e) => e.service)).size}`);

function choose(node) {
  chosen = node;
  hovered = null;
  try { history.replaceState(null, "", node ? `#${encodeURIComponent(node.id)}` : location.pathname + location.search); } catch { /* a page without an address of its own */ }
  for (const button of $("list").querySelectorAll("button")) button.setAttribute("aria-pressed", String(node !== null && button.dataset.id === node.id));
  highlight();
  tell();
}

function words(name, texts) {
  const prefix = FIELDS[name] ? `${FIELDS[name]} ` : "";
  return texts.map((text) => h("span", { class: name.endsWith("methods") ? "method" : "path" }, prefix + text));
}
function grants(some) {
  return some.filter(grantFits).map((grant) => {
    const operations = grant.operations.map((op) => h("div", { class: "op" }, Object.entries(op).map(([name, texts]) => words(name, texts))));
    const rule = grant.rule === null ? "" : `#${grant.rule}`;
    return h("div", { class: grant.shadow ? "grant shadow" : "grant" },
      operations.length ? operations : h("div", { class: "op" }, "any request"),
      grant.conditions.map((text) => h("div", {}, `if ${text}`)),
      h("div", { class: "origin" }, [grant.policy + rule, grant.origin, grant.shadow ? "shadow: not enforced" : ""].filter(Boolean).join(" · ")));
  });
}
function row(node, state, kind, some) {
  return h("div", { class: "row", "data-id": node.id },
    h("button", { type: "button", onclick: () => choose(node), title: node.id }, state ? h("span", { class: `state ${state}`, title: state }) : null, h("span", { class: "who" }, node.name), h("span", { class: "kind" }, kind)), grants(some));
}
const section = (classes, title, rows) => (rows.length ? [h("h3", { class: classes }, title, h("span", { class: "count" }, String(rows.length))), rows] : []);
const chip = (node) => h("button", { type: "button", class: "chip", onclick: () => choose(node), title: node.id }, node.name);
const kindOf = (node) => (node.service ? node.group : node.everyone || node.kind === "identity" || node.kind === "no identity" ? KINDS[node.kind] : `${KINDS[node.kind]}, ${node.members.length} known`);
const stateOf = (edge) => (edge.limited || edge.effect === "ask" ? "limited" : "allowed");

function callersOf(node) {
  const edges = node.into.filter(edgeFits).sort((a, b) => byName(nodes.get(a.caller), nodes.get(b.caller)));
  const rows = (effect, state) => edges.filter((edge) => edge.effect === effect).map((edge) => row(nodes.get(edge.caller), state || stateOf(edge), kindOf(nodes.get(edge.caller)), edge.grants));
  const through = node.pairsIn.filter((pair) => pair.verdict !== "denied" && pairFits(pair));
  return [
    section("in", "May call it", rows("allow")),
    section("", "Is asked besides", rows("ask")),
    section("deny", "Denied", rows("deny", "denied")),
    section("", "So these get through", through.length ? [h("div", { class: "chips" }, through.map((pair) => chip(pair.caller)))] : []).map((part, at) => (at === 0 ? renumber(part, through.length) : part)),
  ];
}
function renumber(title, count) { title.lastChild.textContent = String(count); return title; }

function calledBy(node) {
  if (!node.service && node.kind !== "identity") return section("out", "May call", node.from.filter((edge) => edgeFits(edge)).map((edge) => row(nodes.get(edge.service), edge.effect === "deny" ? "denied" : stateOf(edge), nodes.get(edge.service).group, edge.grants)));
  const pairs = node.pairsOut.filter(pairFits).sort((a, b) => byName(a.service, b.service));
  return section("out", "It may call", pairs.map((pair) => row(pair.service, pair.verdict, pair.service.group,
    pair.service.into.filter((edge) => edge.effect !== "deny" && edgeFits(edge) && covers(nodes.get(edge.caller), node)).flatMap((edge) => edge.grants))));
}

function tell() {
  const details = $("details");
  if (!chosen) return details.replaceChildren(...overview());
  const node = chosen;
  const labels = Object.entries(node.labels || {}).map(([name, value]) => h("span", { class: "chip" }, `${name}=${value}`));
  const rest = node.service ? h("span", { class: node.default === "allow" ? "chip open" : "chip deny" }, node.default === "allow" ? "open namespace" : "denies everybody else") : null;
  details.replaceChildren(
    h("h2", {}, node.name), node.id === node.name ? "" : h("p", { class: "id" }, node.id),
    h("div", { class: "chips" }, h("span", { class: "chip" }, node.service ? node.group : KINDS[node.kind]), rest, labels),
    ...callersOf(node).flat(2), ...calledBy(node).flat(2),
    ...section("", "Among them are", (node.members || []).length && node.kind !== "identity" ? [h("div", { class: "chips" }, node.members.map((id) => chip(nodes.get(id))))] : []).flat(2));
  if (details.querySelectorAll(".row").length === 0) details.append(h("p", { class: "help" }, h("br"), "No rule that is shown lets anybody call it, nor it anybody."));
  details.scrollTop = 0;
}

function overview() {
  const services = [...nodes.values()].filter((node) => node.service);
  const most = services.map((node) => [open(node.pairsIn), node]).filter(([count]) => count).sort((a, b) => b[0] - a[0]).slice(0, 8);
  const bars = most.map(([count, node]) => {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${Math.max(3, (count / most[0][0]) * 120)}px`;
    return h("button", { type: "button", class: "top", onclick: () => choose(node), title: node.id }, h("span", { class: "name" }, node.name), bar, h("span", { class: "number" }, String(count)));
  });
  const unreached = services.filter((node) => !open(node.pairsIn) && !node.into.some((edge) => edge.effect === "allow"));
  return [
    h("h2", {}, "Choose a service"),
    h("p", { class: "help" }, "A line goes from who calls to who is called. Click a name, or find one, to see who reaches it and what it reaches."),
    ...section("in", "Reached by most", bars).flat(),
    ...section("", "Reached by nobody", unreached.length ? [h("div", { class: "chips" }, unreached.slice(0, 60).map(chip))] : []).flat().map((part, at) => (at === 0 ? renumber(part, unreached.length) : part)),
    h("dl", { class: "help" }, h("dt", {}, "Keys"), h("dd", {}, "/ finds · ↑ ↓ go through the list · Enter chooses · Esc lets go"),
      h("dt", {}, "Shapes"), h("dd", {}, "● a described workload · ◆ whom a rule names: a namespace, an ending, a network, anybody")),
  ];
}

function keys(event) {
  const typing = /^(INPUT|SELECT)$/.test(event.target.tagName);
  if (event.key === "/" && !typing) { event.preventDefault(); $("search").focus(); $("search").select(); }
  if (event.key === "Escape") { if ($("search").value) { $("search").value = ""; list(); } choose(null); document.activeElement.blur(); }
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const buttons = [...$("list").querySelectorAll(".group:not(.off) .items button")];
  const at = buttons.indexOf(document.activeElement);
  if (event.target.tagName === "SELECT" || !buttons.length || (at < 0 && event.target !== $("search") && event.target !== document.body)) return;
  event.preventDefault();
  const to = event.key === "ArrowDown" ? at + 1 : at - 1;
  if (to < 0) return $("search").focus();
  buttons[Math.min(to, buttons.length - 1)].focus();
}

function start() {
  const root = document.documentElement;
  if (matchMedia("(prefers-color-scheme: dark)").matches) root.classList.add("dark");
  $("theme").addEventListener("click", () => root.classList.toggle("dark"));
  const methods = new Set(data.edges.flatMap((edge) => edge.grants.flatMap((grant) => grant.operations.flatMap((op) => op.methods || []))));
  for (const name of [...methods].filter((text) => !text.includes("*")).sort()) $("method").append(h("option", { value: name }, name));
  const rules = new Set(data.edges.flatMap((edge) => edge.grants.filter((grant) => grant.policy).map((grant) => `${grant.policy}#${grant.rule}`)));
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  $("counts").textContent = [count(data.services.length, "service"), count(data.edges.length, "edge"), count(rules.size, "rule"), data.revision === null ? "" : `revision ${data.revision}`].filter(Boolean).join(" · ");
  $("empty").hidden = data.services.length > 0;
  for (const id of ["method", "denies", "shadow"]) $(id).addEventListener("change", () => { draw(); tell(); });
  $("search").addEventListener("input", list);
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter") $("list").querySelector(".group:not(.off) .items button")?.click(); });
  document.addEventListener("keydown", keys);
  list();
  draw();
  moves();
  let wanted = "";
  try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { /* no name */ }
  choose(nodes.get(wanted) || null);
}
start();
