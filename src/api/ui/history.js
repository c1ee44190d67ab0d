// Who led when: a lane for every member that is there or has led, a bar for every timeline.

const SPANS = [["15 min", 900], ["1 h", 3600], ["1 day", 86400], ["1 week", 604800], ["30 days", 2592000], ["All", Infinity]];
const STEPS = [1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];
let rows = [], chosen = null;

// The changes whose time is known; a row tells who began the timeline after the one it is about.
function changes() {
  const all = rows.map(([timeline, lsn, reason, when, name]) => ({ timeline: timeline + 1, lsn, reason, at: Date.parse(when), name: name || "?" }));
  return all.filter((change) => !Number.isNaN(change.at)).sort((one, other) => one.at - other.at);
}

// The shortest span that shows the last few changes, unless somebody has chosen.
function spanFor(list, now) {
  if (chosen != null) return chosen;
  const oldest = list[Math.max(0, list.length - 6)]?.at ?? now;
  return SPANS.find(([, seconds]) => (now - oldest) / 1000 <= seconds * 0.95)[1];
}

const clock = (at, step) => {
  const day = { month: "short", day: "numeric" };
  const time = { hour: "2-digit", minute: "2-digit", ...(step < 60 ? { second: "2-digit" } : {}) };
  const when = new Date(at), midnight = !when.getHours() && !when.getMinutes() && !when.getSeconds();
  return when.toLocaleString([], step >= 86400 || midnight ? { ...day, ...(step >= 7776000 ? { year: "numeric" } : {}) } : time);
};
const moment = (at) => new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });

function ranges(span) {
  if (!$("range").children.length) {
    $("range").append(...SPANS.map(([label, seconds]) => {
      const node = el("button", { type: "button" }, label);
      node.addEventListener("click", () => { chosen = seconds; changed.delete("history"); drawHistory(); });
      return node;
    }));
  }
  SPANS.forEach(([, seconds], index) => $("range").children[index].setAttribute("aria-pressed", String(seconds === span)));
}

function drawHistory() {
  const list = changes(), now = Date.now(), place = $("history");
  $("range").hidden = !list.length;
  if (!list.length) {
    if (news("history", "none")) place.replaceChildren(el("p", { class: "hint" }, rows.length ? "The history does not say when the leader changed." : "The leader has not changed since the cluster began."));
    return;
  }
  const span = spanFor(list, now), width = Math.max(280, place.clientWidth);
  ranges(span);
  // Bars grow with time: not oftener than anybody could see.
  const tick = Math.max(1000, (Number.isFinite(span) ? span * 1000 : now - list[0].at) / width);
  if (!news("history", [list, view?.members.map((member) => member.name), span, width, Math.floor(now / tick)])) return;
  const begin = Number.isFinite(span) ? now - span * 1000 : list[0].at - Math.max((now - list[0].at) * 0.08, 2000);
  const figure = timeAxis(list, begin, now, width);
  const old = place.querySelector("details");
  place.replaceChildren(figure, details(list, old ? old.open : false));
}

function timeAxis(list, begin, now, width) {
  const lanes = [...new Set([...list.map((change) => change.name), ...(view?.members ?? []).map((member) => member.name)])].sort();
  const L = Math.min(160, 24 + 8 * Math.max(...lanes.map((name) => name.length))), R = 14, T = 10, LANE = 38, BAR = 20;
  const foot = T + lanes.length * LANE, height = foot + 28;
  const x = (at) => L + (width - L - R) * (Math.max(at, begin) - begin) / (now - begin);
  const y = (name) => T + lanes.indexOf(name) * LANE + LANE / 2;
  const last = list.at(-1);
  const picture = svg("svg", { class: "history", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${list.length} changes of the leader; the last one to ${last.name}, ${moment(last.at)}` });
  const step = STEPS.find((seconds) => (now - begin) / 1000 / seconds <= (width - L) / 96) ?? STEPS.at(-1);
  const zone = new Date().getTimezoneOffset() * 60000;
  for (let at = Math.ceil((begin - zone) / (step * 1000)) * step * 1000 + zone; at <= now; at += step * 1000) {
    picture.append(svg("line", { class: "grid", x1: x(at), x2: x(at), y1: T, y2: foot }));
    // A label at the very edge would be cut off.
    if (x(at) > L + 18 && x(at) < width - 34) picture.append(svg("text", { class: "tick", x: x(at), y: foot + 18, "text-anchor": "middle" }, clock(at, step)));
  }
  for (const name of lanes) {
    picture.append(svg("line", { class: "lane", x1: L, x2: width - R, y1: y(name), y2: y(name) }), svg("text", { class: "name", x: 0, y: y(name) + 4 }, name));
  }
  list.forEach((change, index) => {
    const until = list[index + 1]?.at ?? now;
    if (until < begin) return;
    const left = x(change.at), wide = Math.max(x(until) - left, 3), middle = y(change.name), current = index + 1 === list.length;
    const before = list[index - 1];
    if (before && change.at >= begin) picture.append(svg("line", { class: "step", x1: left, x2: left, y1: y(before.name), y2: middle }));
    const bar = svg("rect", { class: current ? "span now" : "span", x: left, y: middle - BAR / 2, width: wide, height: BAR, rx: 4 });
    bar.append(svg("title", {}, `${change.name} since ${moment(change.at)}, timeline ${change.timeline}: ${change.reason}`));
    picture.append(bar);
    if (wide > 30) picture.append(svg("text", { class: current ? "tl now" : "tl", x: left + 7, y: middle + 4 }, wide > 90 ? `timeline ${change.timeline}` : String(change.timeline)));
  });
  return picture;
}

// The same in words, newest first.
function details(list, open) {
  const newest = list.slice(-50).reverse();
  const line = (change) => el("tr", {}, el("td", { class: "n" }, String(change.timeline)), el("td", {}, change.name), el("td", {}, moment(change.at)), el("td", { class: "because" }, change.reason));
  const head = el("tr", {}, ...["Timeline", "Leader", "Since", "Because"].map((text, index) => el("th", { scope: "col", class: index ? null : "n" }, text)));
  const summary = el("summary", {}, list.length === 1 ? "The change in words" : `${newest.length} changes in words`);
  return el("details", { open }, summary, el("table", { class: "plain" }, el("thead", {}, head), el("tbody", {}, ...newest.map(line))));
}

new ResizeObserver(() => { if (rows.length) drawHistory(); }).observe($("history"));

