// Looks again and again, and says how old what it shows is.

const EVERY = 1000, SELDOM = 4000, HIDDEN_EVERY = 5000, WITHIN = 3000, OLD_AFTER = 4;
let view = null, why = Object.create(null), config = null, status = null, me = null;
// When this member last answered, and when it had last seen the DCS then; in ms of this page's clock.
let answered = 0, seen = 0, because = null;

async function get(path) {
  const answer = await fetch(BASE + path, { signal: AbortSignal.timeout(WITHIN), cache: "no-store" });
  const text = await answer.text();
  try {
    return JSON.parse(text);
  } catch {
    return { refused: text || `status ${answer.status}` };
  }
}

async function look() {
  try {
    const [mine, cluster] = await Promise.all([get("/patroni"), get("/cluster")]);
    answered = performance.now();
    status = mine;
    me = mine.patroni?.name ?? me;
    if (Array.isArray(cluster.members)) {
      view = cluster;
      seen = answered - 1000 * (cluster.seen_seconds_ago ?? 0);
      because = cluster.seen_seconds_ago == null ? null : `${me} does not reach the DCS.`;
    } else because = `${me} cannot show the cluster: ${cluster.refused ?? "it does not say why"}.`;
  } catch { /* how long ago the last answer was tells all */ }
  show();
}

async function lookAtWords() {
  let words = null;
  try { words = await get("/why"); } catch { return; }
  if (!Array.isArray(words)) return;
  why = Object.assign(Object.create(null), Object.fromEntries(words.map((word) => [word.member, word])));
  show();
}

async function lookAtRest() {
  try {
    const [past, document] = await Promise.all([get("/history"), get("/config")]);
    if (Array.isArray(past)) rows = past;
    if (document && !document.refused) { config = document; showConfig(document); }
    drawHistory();
  } catch { /* what was shown stays; the banner tells how old it is */ }
}

function show() {
  if (view) {
    document.body.classList.remove("waiting");
    verdict(view);
    facts(view, status);
    members(view);
    topology(view);
    remarks();
    say($("me"), me || "…");
    say($("version"), status?.patroni ? `, PostgreSQL ${status.state} as ${status.role}` : "");
    $("pause").hidden = false;
    say($("pause"), view.pause ? "Resume" : "Pause");
    $("pause").dataset.act = view.pause ? "resume" : "pause";
    $("paused").hidden = !view.pause;
    say($("paused"), "Paused: nobody fails over, and nothing is repaired by itself.");
    const later = view.scheduled_switchover;
    $("scheduled").hidden = !later;
    if (later) say($("scheduled").firstElementChild, `Switchover${later.from ? ` from ${later.from}` : ""}${later.to ? ` to ${later.to}` : ""} at ${moment(Date.parse(later.at))}.`);
  }
  freshness();
}

// What is wrong with what is shown: nothing, it is old, or it may be.
function freshness() {
  const now = performance.now(), who = me || "this member";
  const silence = answered ? (now - answered) / 1000 : now / 1000, age = seen ? (now - seen) / 1000 : 0;
  const limit = document.hidden ? OLD_AFTER + 3 * HIDDEN_EVERY / 1000 : OLD_AFTER;
  let what = because;
  if (silence >= limit) what = answered ? `${who} does not answer.` : "No answer from this member yet.";
  const old = what != null;
  $("stale").hidden = !old;
  if (old) {
    // Read out once; the age goes up every second.
    say($("stale").firstElementChild, what);
    say($("stale").lastElementChild, seen ? `What is shown is ${lasting(age)} old.` : "");
  }
  document.body.classList.toggle("old", old);
  // Nobody acts on what is not so any more.
  for (const node of document.querySelectorAll(".act")) node.disabled = silence >= limit;
  say($("live-text"), old ? "old" : answered ? "live" : "asking …");
  $("live").className = old ? "live bad" : answered ? "live good" : "live";
  if (view) document.title = `${old ? "⚠ old – " : ""}${leaderOf(view)?.name ?? "nobody"} leads ${view.scope}`;
}

const sleepers = new Set();

const sleep = (ms) => new Promise((done) => {
  const up = () => { clearTimeout(timer); sleepers.delete(up); done(); };
  const timer = setTimeout(up, ms);
  sleepers.add(up);
});

// Look now.
function poke() {
  for (const up of [...sleepers]) up();
}

async function forever(work, every) {
  for (;;) {
    await work();
    await sleep(document.hidden ? Math.max(every, HIDDEN_EVERY) : every);
  }
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  try { localStorage.setItem("howdah-theme", root.dataset.theme); } catch { /* then it is forgotten */ }
});
try {
  const kept = localStorage.getItem("howdah-theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
} catch { /* as the system has it */ }

document.addEventListener("visibilitychange", () => { if (!document.hidden) poke(); });
setInterval(freshness, 500);
forever(look, EVERY);
forever(lookAtWords, EVERY);
forever(lookAtRest, SELDOM);
