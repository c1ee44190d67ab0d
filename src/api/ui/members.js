// The verdict in one line, the facts at a glance, and a row for every member.

const LEADS = new Set(["leader", "standby_leader"]);
const ROLE = {
  leader: "Leader",
  standby_leader: "Standby leader",
  sync_standby: "Sync standby",
  quorum_standby: "Quorum standby",
  replica: "Replica",
};

const leads = (member) => LEADS.has(member.role);
const leaderOf = (cluster) => cluster.members.find(leads);
const healthy = (member) => member.state === "streaming" || (leads(member) && member.state === "running");
const silent = (member) => why[member.name]?.candidacy === "unknown";

// "" is fine.
function tone(member) {
  if (silent(member)) return "bad";
  if (healthy(member)) return "";
  return /running|creating|starting|archive|restarting|stopping|initializing/.test(member.state) ? "warn" : "bad";
}

// Why a member could lead or not, as a word with a tone.
function chances(member) {
  const word = why[member.name];
  if (!word) return { text: "", tone: "quiet", because: "" };
  const tones = { leads: "accent", "could lead": "good", "could not lead": "warn", unknown: "bad" };
  return {
    text: word.candidacy === "unknown" ? "no answer" : word.candidacy,
    tone: tones[word.candidacy] || "quiet",
    because: maskedText(word.because || ""),
  };
}

function verdict(cluster) {
  const leader = leaderOf(cluster);
  const replicas = cluster.members.filter((member) => !leads(member));
  const fine = replicas.filter((member) => healthy(member) && !silent(member)).length;
  let grade = "good";
  const said = [];
  if (!leader) { said.push("Nobody leads"); grade = "bad"; }
  else if (tone(leader)) { said.push(`${leader.name} leads and ${silent(leader) ? "does not answer" : `is ${leader.state}`}`); grade = "bad"; }
  else said.push(`${leader.name} leads`);
  if (replicas.length) {
    said.push(`${fine} of ${replicas.length} ${replicas.length === 1 ? "replica" : "replicas"} streaming`);
    if (fine < replicas.length && grade === "good") grade = "warn";
  } else if (leader) said.push("no replica");
  say($("verdict"), said.join(" · "), grade);
  say($("scope"), cluster.scope);
  return said[0];
}

// Numbers at a glance. Only what is known is listed.
function facts(cluster, status) {
  const leader = leaderOf(cluster);
  const lags = cluster.members.filter((member) => !leads(member)).map((member) => member.replay_lag).filter((lag) => typeof lag === "number");
  const version = status?.server_version;
  const rows = [
    ["Leader", leader ? leader.name : "none", leader ? (leader.host ? `${leader.host}:${leader.port}` : "") : "writes fail"],
    ["Timeline", leader?.timeline ?? "?", "one more with every change"],
    ["Farthest behind", lags.length ? bytes(Math.max(...lags)) : "–", "of the replicas, replayed"],
    ["PostgreSQL", version ? (version >= 100000 ? `${Math.floor(version / 10000)}.${version % 10000}` : version) : "?", status?.database_system_identifier ?? ""],
  ];
  if (!news("facts", rows)) return;
  $("facts").replaceChildren(...rows.map(([name, value, more]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value), more ? el("small", {}, String(more)) : null))));
}

// Buttons of a member's row: which there are depends on who it is and who looks.
function actions(member, cluster) {
  const leader = leaderOf(cluster);
  const list = [];
  if (!leads(member) && leader && !silent(member) && member.tags?.nofailover !== true) list.push("switchover");
  if (leads(member) && cluster.members.length > 1 && !cluster.pause) list.push("hand over");
  if (member.name === me) {
    list.push("restart");
    if (!leads(member)) list.push("reinitialize");
  } else if (pageOf(member)) list.push("open");
  return list;
}

// Another member's page; `null` if its address is none that a link may have.
function pageOf(member) {
  try {
    const url = new URL(member.api_url);
    return /^https?:$/.test(url.protocol) ? `${url.origin}/ui` : null;
  } catch {
    return null;
  }
}

const LABEL = { switchover: "Make it leader", "hand over": "Hand over", restart: "Restart", reinitialize: "Copy anew" };

function button(act, member) {
  if (act === "open") return el("a", { href: pageOf(member), rel: "noreferrer", title: `Restart or copy ${member.name} on its own page` }, `${member.name}’s page`);
  const node = el("button", { type: "button", class: "act", "data-act": act, "data-member": member.name }, LABEL[act]);
  node.addEventListener("click", () => begin(act, member.name));
  return node;
}

function newRow(name) {
  const cell = (label, className) => el("td", { "data-label": label, class: className });
  const row = el("tr", { "data-member": name },
    el("th", { scope: "row" }, el("b", {}, name), el("span", { class: "where" })),
    cell("Role"), cell("State"), cell("Timeline", "n"), cell("Behind", "n"), cell("If the lock came free now", "why"), el("td", { class: "acts" }));
  row.cells[1].append(el("span", { class: "pill" }));
  row.cells[2].append(el("span"), el("small"));
  row.cells[4].append(el("span"), el("small"));
  row.cells[5].append(el("b"), el("span", { class: "because" }));
  return row;
}

function fillRow(row, member, cluster) {
  const notes = [member.host && `${member.host}:${member.port}`];
  if (member.pending_restart) notes.push("restart pending");
  if (member.scheduled_restart) notes.push(`restart at ${member.scheduled_restart.schedule}`);
  for (const [key, value] of Object.entries(member.tags || {})) notes.push(`${key}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
  row.dataset.role = member.role;
  row.classList.toggle("mine", member.name === me);
  say(row.cells[0].lastElementChild, notes.filter(Boolean).join(" · "));
  const [, role, state, timeline, behind, chance, acts] = row.cells;
  say(role.firstElementChild, ROLE[member.role] || member.role, `pill ${leads(member) ? "leads" : member.role}`);
  say(state.firstElementChild, member.state, tone(member) || "good");
  const failure = why[member.name]?.failure;
  say(state.lastElementChild, [member.reason, failure && maskedText(failure)].filter(Boolean).join(": "));
  say(timeline, member.timeline == null ? "" : String(member.timeline));
  say(behind.firstElementChild, leads(member) ? "–" : bytes(member.replay_lag));
  say(behind.lastElementChild, leads(member) || member.receive_lag === member.replay_lag ? "" : `received ${bytes(member.receive_lag)}`);
  const word = chances(member);
  say(chance.firstElementChild, word.text, word.tone);
  say(chance.lastElementChild, word.because);
  const wanted = actions(member, cluster);
  if (news(`acts ${member.name}`, [wanted, member.api_url])) {
    const focused = acts.contains(document.activeElement) ? document.activeElement.dataset.act : null;
    acts.replaceChildren(...wanted.map((act) => button(act, member)));
    if (focused) acts.querySelector(`[data-act="${CSS.escape(focused)}"]`)?.focus();
  }
}

function members(cluster) {
  const body = document.querySelector("#members tbody");
  const known = new Map([...body.rows].map((row) => [row.dataset.member, row]));
  cluster.members.forEach((member, index) => {
    let row = known.get(member.name);
    known.delete(member.name);
    if (!row) { changed.delete(`acts ${member.name}`); row = newRow(member.name); }
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] || null);
    fillRow(row, member, cluster);
  });
  for (const row of known.values()) row.remove();
  const words = Object.values(why);
  const promises = [["Replication", words.find((word) => word.promise)?.promise], ["Without the DCS", words.find((word) => word.without_dcs)?.without_dcs]];
  if (news("promise", promises)) {
    $("promise").replaceChildren(...promises.filter(([, text]) => text).map(([name, text]) => el("p", {}, el("b", {}, name), ` ${text}`)));
  }
}

