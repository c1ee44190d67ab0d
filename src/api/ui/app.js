"use strict";
// Everything shown comes from this member's REST API and is put in as text, never as markup.
const $ = (id) => document.getElementById(id);
const el = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
};
const svg = (name, attributes = {}, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  return node;
};
const WITHIN = 4000;
let view = null, why = {}, seen = 0, login = null;

async function get(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(WITHIN), cache: "no-store", credentials: "omit" });
  const text = await answer.text();
  try { return JSON.parse(text); } catch { throw new Error(`${path}: ${answer.status} ${text}`); }
}

// ---- what is shown -------------------------------------------------------------------------------------------

const LEADS = new Set(["leader", "standby_leader"]);
const ROLE = { leader: "Leader", standby_leader: "Standby leader", sync_standby: "Sync standby", quorum_standby: "Quorum standby", replica: "Replica" };
const healthy = (member) => LEADS.has(member.role) ? member.state === "running" : member.state === "streaming";
const tone = (member) => healthy(member) ? "" : member.state === "running" || /creating|starting|archive/.test(member.state) ? "warn" : "bad";
const bytes = (n) => {
  if (typeof n !== "number") return n == null ? "" : String(n);
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at += 1; }
  return `${at ? n.toFixed(1) : n} ${units[at]}`;
};
const parent = (member, leader) => {
  const wanted = member.tags && member.tags.replicatefrom;
  const found = wanted && view.members.find((other) => other.name === wanted && other !== member);
  return found || leader;
};

function verdict() {
  const leader = view.members.find((member) => LEADS.has(member.role));
  const ill = view.members.filter((member) => !healthy(member));
  const said = [];
  let grade = "ok";
  if (!leader) { said.push("nobody leads"); grade = "bad"; }
  else if (!healthy(leader)) { said.push(`${leader.name} leads and is ${leader.state}`); grade = "bad"; }
  else said.push(`${leader.name} leads`);
  const others = view.members.length - (leader ? 1 : 0);
  const fine = others - ill.filter((member) => member !== leader).length;
  said.push(`${fine} of ${others} ${others === 1 ? "replica" : "replicas"} streaming`);
  if (fine < others && grade === "ok") grade = "warn";
  if (view.pause) { said.push("paused: nobody fails over"); if (grade === "ok") grade = "warn"; }
  if (view.scheduled_switchover) said.push(`switchover scheduled at ${view.scheduled_switchover.at}`);
  $("verdict").textContent = said.join(" · ");
  $("verdict").className = grade;
  document.title = `${view.scope}: ${said[0]}`;
  $("scope").textContent = view.scope;
  $("pause").hidden = false;
  $("pause").textContent = view.pause ? "Resume" : "Pause";
}

// Followers below whom they follow, depth first; a circle hangs below nobody.
function tree() {
  const leader = view.members.find((member) => LEADS.has(member.role));
  const rows = [], left = new Set(view.members);
  const place = (member, depth, above) => {
    left.delete(member);
    rows.push({ member, depth, above });
    const at = rows.length - 1;
    for (const other of view.members) if (left.has(other) && other !== leader && parent(other, leader) === member) place(other, depth + 1, at);
  };
  if (leader) place(leader, 0, null);
  for (const member of view.members) if (left.has(member)) place(member, leader ? 1 : 0, null);
  return rows;
}

function topology() {
  const rows = tree(), W = 250, H = 46, GAP = 16, INDENT = 64;
  const depth = Math.max(0, ...rows.map((row) => row.depth));
  const width = W + depth * INDENT + 4, height = rows.length * (H + GAP) - GAP + 4;
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Who follows whom" });
  const x = (row) => 2 + row.depth * INDENT, y = (index) => 2 + index * (H + GAP);
  rows.forEach((row, index) => {
    if (row.above == null) return;
    const from = rows[row.above], sx = x(from) + 22, ty = y(index) + H / 2;
    picture.append(svg("path", { class: healthy(row.member) ? "edge" : "edge off", d: `M${sx} ${y(row.above) + H} V${ty - 8} Q${sx} ${ty} ${sx + 8} ${ty} H${x(row)}` }));
  });
  rows.forEach((row, index) => {
    const { member } = row, left = x(row), top = y(index);
    picture.append(
      svg("rect", { class: LEADS.has(member.role) ? "box leads" : "box", x: left, y: top, width: W, height: H, rx: 9 }),
      svg("circle", { class: `dot ${tone(member)}`, cx: left + 18, cy: top + H / 2, r: 5 }),
      svg("text", { x: left + 34, y: top + 20, "font-weight": 600 }, member.name),
      svg("text", { x: left + 34, y: top + 37, class: "quiet" }, `${ROLE[member.role] || member.role} · ${member.state}${member.timeline ? ` · timeline ${member.timeline}` : ""}`));
  });
  $("topology").replaceChildren(picture);
}

function members() {
  const leader = view.members.find((member) => LEADS.has(member.role));
  const rows = view.members.map((member) => {
    const word = why[member.name], mine = member.name === me, replica = !LEADS.has(member.role);
    const act = (label, work) => el("button", { type: "button", "data-act": label.toLowerCase(), "data-member": member.name, onclick: work }, label);
    const acts = el("div", { class: "acts" });
    if (replica && leader) acts.append(act("Switch over", () => switchover(leader, member)));
    if (mine) {
      acts.append(act("Restart", () => restart(member)));
      if (replica) acts.append(act("Reinitialize", () => reinit(member)));
    } else if (/^https?:/.test(member.api_url)) {
      acts.append(el("a", { href: new URL("/ui", member.api_url).href, rel: "noreferrer" }, "Open"));
    }
    const notes = [];
    if (member.pending_restart) notes.push("restart pending");
    for (const [key, value] of Object.entries(member.tags || {})) notes.push(`${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
    return el("tr", { "data-member": member.name, "data-role": member.role },
      el("td", {}, el("b", {}, member.name), el("div", { class: "quiet" }, [member.host && `${member.host}:${member.port}`, ...notes].filter(Boolean).join(" · "))),
      el("td", {}, el("span", { class: replica ? "pill" : "pill leads" }, ROLE[member.role] || member.role)),
      el("td", { class: { "": "good", warn: "warn", bad: "bad" }[tone(member)] }, member.state),
      el("td", { class: "n" }, member.timeline == null ? "" : String(member.timeline)),
      el("td", { class: "n" }, replica ? bytes(member.replay_lag) : ""),
      el("td", { class: "why" }, word ? el("b", {}, word.candidacy) : "", word && word.because ? `: ${word.because}` : ""),
      el("td", {}, acts));
  });
  // Not under somebody's finger or focus.
  const body = document.querySelector("#members tbody");
  const focused = document.activeElement && body.contains(document.activeElement) ? document.activeElement.dataset : null;
  body.replaceChildren(...rows);
  if (focused && focused.act) {
    const again = body.querySelector(`button[data-act="${CSS.escape(focused.act)}"][data-member="${CSS.escape(focused.member)}"]`);
    if (again) again.focus();
  }
  const first = leader && why[leader.name];
  $("promise").textContent = first ? [first.promise, first.without_dcs].filter(Boolean).join(" — ") : "";
}

function history(rows) {
  if (!rows.length) { $("history").replaceChildren(el("p", { class: "quiet" }, "The leader has not changed since the cluster began.")); return; }
  const events = rows.map(([timeline, lsn, reason, at, name]) => ({ timeline: timeline + 1, reason, at: Date.parse(at), when: at, name })).filter((event) => !Number.isNaN(event.at)).slice(-24);
  if (!events.length) return;
  const W = 1000, H = 108, L = 8, R = 12, now = Date.now(), first = events[0].at, begin = first - Math.max((now - first) * 0.08, 1000);
  const x = (at) => L + (W - L - R) * (at - begin) / (now - begin);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: "100%", role: "img", "aria-label": `${events.length} changes of the leader, the last to ${events.at(-1).name || "unknown"}` });
  picture.style.minWidth = "640px";
  let free = -Infinity;
  events.forEach((event, index) => {
    const left = x(event.at), right = index + 1 < events.length ? x(events[index + 1].at) : W - R;
    const span = svg("rect", { class: "span", x: left, y: 40, width: Math.max(right - left, 1), height: 26, rx: 3 });
    span.append(svg("title", {}, `timeline ${event.timeline}: ${event.name || "?"} since ${event.when}: ${event.reason}`));
    picture.append(span, svg("circle", { class: "mark", cx: left, cy: 53, r: 4 }));
    if (left > free) {
      picture.append(svg("text", { x: left, y: 30 }, event.name || "?"), svg("text", { x: left, y: 86, class: "quiet" }, `timeline ${event.timeline}`), svg("text", { x: left, y: 102, class: "quiet" }, new Date(event.at).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" })));
      free = left + 120;
    }
  });
  $("history").replaceChildren(picture);
}

// Strings that look like connection settings may hold a password.
const SECRET = /pass(word)?|secret|token/i;
function masked(value, key = "") {
  if (value && typeof value === "object" && !Array.isArray(value)) return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, masked(v, k)]));
  if (Array.isArray(value)) return value.map((one) => masked(one, key));
  if (SECRET.test(key)) return "•••";
  return typeof value === "string" ? value.replace(/(password\s*=\s*)('[^']*'|\S+)/gi, "$1•••") : value;
}
function yaml(value, indent = "") {
  if (value === null || typeof value !== "object") return typeof value === "string" && !/^[\w./ -]+$/.test(value) ? JSON.stringify(value) : String(value);
  const entries = Array.isArray(value) ? value.map((one) => ["-", one]) : Object.entries(value).sort(([a], [b]) => a < b ? -1 : 1).map(([k, v]) => [`${k}:`, v]);
  if (!entries.length) return Array.isArray(value) ? "[]" : "{}";
  return entries.map(([k, v]) => v && typeof v === "object" && Object.keys(v).length ? `${indent}${k}\n${yaml(v, `${indent}  `)}` : `${indent}${k} ${yaml(v)}`).join("\n");
}

// ---- what is done --------------------------------------------------------------------------------------------

async function send(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (login) headers.Authorization = `Basic ${btoa(String.fromCharCode(...new TextEncoder().encode(login)))}`;
  const answer = await fetch(path, { method, headers, body: JSON.stringify(body), credentials: "omit" });
  return { status: answer.status, text: await answer.text() };
}

// A word has to be typed: the name of what will be without a leader, a server or its data for a moment.
function ask(title, text, word, work) {
  const dialog = $("ask"), go = $("ask-go"), field = $("ask-word"), said = $("ask-said");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-label").firstElementChild.textContent = `Type ${word} to confirm`;
  field.value = ""; said.textContent = ""; said.className = "";
  $("ask-login").hidden = true;
  go.disabled = true;
  field.oninput = () => { go.disabled = field.value !== word; };
  field.onkeydown = (event) => { if (event.key === "Enter") { event.preventDefault(); if (!go.disabled) go.click(); } };
  go.onclick = async () => {
    go.disabled = true;
    if (!$("ask-login").hidden) login = `${$("ask-user").value}:${$("ask-password").value}`;
    said.className = "quiet"; said.textContent = "under way …";
    try {
      const { status, text: answer } = await work();
      if (status === 401) { login = null; $("ask-login").hidden = false; said.className = "warn"; said.textContent = answer; go.disabled = false; $("ask-user").focus(); return; }
      said.className = status < 300 ? "good" : "bad";
      said.textContent = status < 300 && answer.startsWith("{") ? "done" : answer || `status ${status}`;
      if (status < 300) setTimeout(() => { if (dialog.open) dialog.close(); }, 1200);
    } catch (error) { said.className = "bad"; said.textContent = `no answer: ${error.message}`; }
    look();
  };
  dialog.showModal();
  field.focus();
}
const switchover = (leader, member) => ask(`Switch over to ${member.name}`, `${leader.name} hands the lock over and stops taking writes; ${member.name} is promoted.`, member.name, () => send("POST", "/switchover", { leader: leader.name, candidate: member.name }));
const restart = (member) => ask(`Restart ${member.name}`, `PostgreSQL of ${member.name} is stopped and started again.`, member.name, () => send("POST", "/restart", {}));
const reinit = (member) => ask(`Reinitialize ${member.name}`, `The data of ${member.name} is copied anew from another member, and what is there now is replaced.`, member.name, () => send("POST", "/reinitialize", {}));
$("pause").addEventListener("click", () => {
  const pause = !view.pause;
  ask(pause ? "Pause the cluster" : "Resume the cluster", pause ? "Nobody fails over until it is resumed, whatever happens." : "Members fail over by themselves again.", view.scope, () => send("PATCH", "/config", { pause: pause || null }));
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});

// ---- again and again -----------------------------------------------------------------------------------------

let me = null;
async function look() {
  try {
    const status = await get("/patroni");
    me = status.patroni.name;
    $("me").textContent = me;
    const cluster = await get("/cluster");
    if (!cluster.members) throw new Error("the cluster is not known here");
    view = cluster;
    seen = Date.now() - 1000 * (cluster.seen_seconds_ago || 0);
    verdict(); topology(); members();
  } catch (error) { $("stale").dataset.because = error.message; }
  stale();
}
async function lookAtRest() {
  try { why = Object.fromEntries((await get("/why")).map((word) => [word.member, word])); } catch { why = {}; }
  try { history(await get("/history")); } catch { /* what was shown stays; the banner tells how old it is */ }
  try { $("config").textContent = yaml(masked(await get("/config"))); } catch { /* the same */ }
  if (view) members();
}
function stale() {
  const age = Math.round((Date.now() - seen) / 1000), old = age >= 5;
  $("stale").hidden = !old;
  if (old) $("stale").textContent = seen ? `What is shown is ${age} s old: this member does not answer, or does not reach the DCS` : "This member does not answer yet";
}
async function forever(work, every) {
  for (;;) {
    if (!document.hidden) await work();
    await new Promise((done) => setTimeout(done, every));
  }
}
setInterval(stale, 1000);
forever(look, 1000);
forever(lookAtRest, 4000);
