// Who reads from whom: cards in columns, the lines between them drawn beneath.

// For every member whom it follows and whether it really does: those who send WAL name their readers.
function upstreams(cluster) {
  const leader = leaderOf(cluster);
  const byName = new Map(cluster.members.map((member) => [member.name, member]));
  const found = new Map();
  for (const member of cluster.members) {
    if (leads(member)) continue;
    const from = cluster.members.find((other) => other !== member && why[other.name]?.followers?.includes(member.name));
    const wanted = byName.get(member.tags?.replicatefrom);
    const up = from || (wanted !== member && wanted) || leader;
    if (up) found.set(member.name, { up: up.name, real: Boolean(from) });
  }
  return found;
}

// `{name, below: [...]}` of those who follow nobody. Who is part of a circle follows nobody, too.
function forest(cluster, ups) {
  const tops = [], placed = new Set();
  const grow = (name) => {
    placed.add(name);
    const below = [];
    for (const member of cluster.members) {
      if (!placed.has(member.name) && ups.get(member.name)?.up === name) below.push(grow(member.name));
    }
    return { name, below };
  };
  for (const member of cluster.members) if (!ups.has(member.name)) tops.push(grow(member.name));
  for (const member of cluster.members) if (!placed.has(member.name)) tops.push(grow(member.name));
  return tops;
}

const cards = new Map();

function card(member) {
  let node = cards.get(member.name);
  if (!node) {
    node = el("article", { class: "card", "data-member": member.name },
      el("header", {}, el("span", { class: "dot", "aria-hidden": "true" }), el("b", {}, member.name), el("span", { class: "pill" })),
      el("p", { class: "state" }), el("footer", {}, el("span"), el("span")));
    cards.set(member.name, node);
  }
  const [head, state, foot] = node.children;
  node.classList.toggle("leads", leads(member));
  say(head.children[0], "", `dot ${tone(member)}`);
  say(head.children[2], ROLE[member.role] || member.role, `pill ${leads(member) ? "leads" : member.role}`);
  const lag = leads(member) ? null : typeof member.replay_lag === "number" ? `${bytes(member.replay_lag)} behind` : "position unknown";
  say(state, [member.state, lag].filter(Boolean).join(" · "));
  const word = chances(member);
  say(foot.children[0], word.text, word.tone);
  say(foot.children[1], member.timeline ? `timeline ${member.timeline}` : "");
  return node;
}

let edges = [];

function topology(cluster) {
  const ups = upstreams(cluster);
  const tops = forest(cluster, ups);
  const byName = new Map(cluster.members.map((member) => [member.name, member]));
  const remote = config?.standby_cluster;
  for (const name of [...cards.keys()]) if (!byName.has(name)) cards.delete(name);
  const place = ({ name, below }) => el("li", {}, card(byName.get(name)), below.length ? el("ul", {}, ...below.map(place)) : null);
  cluster.members.forEach(card);
  edges = cluster.members.flatMap((member) => {
    const up = ups.get(member.name);
    return up ? [{ from: up.up, to: member.name, flows: up.real && healthy(member) && !silent(member) }] : [];
  });
  if (news("forest", [tops, remote && masked(remote)])) {
    let list = tops.map(place);
    if (remote) {
      const far = el("article", { class: "card far" }, el("header", {}, el("b", {}, "another cluster")), el("p", { class: "state" }, [remote.host, remote.port].filter(Boolean).join(" : ")));
      list = [el("li", {}, far, el("ul", {}, ...list))];
    }
    $("topology").replaceChildren(svg("svg", { class: "lines", "aria-hidden": "true" }), el("ul", { class: "tree", "aria-label": "Who reads from whom" }, ...list));
    watch.disconnect();
    watch.observe($("topology").lastElementChild);
  }
  lines();
}

// From the side of a card to the side of the next, or down along the left where cards are below each other.
function lines() {
  const picture = document.querySelector("#topology .lines");
  if (!picture) return;
  const frame = $("topology").getBoundingClientRect();
  const narrow = getComputedStyle($("topology")).getPropertyValue("--below").trim() === "1";
  const drawn = edges.map(({ from, to, flows }) => {
    const a = cards.get(from)?.getBoundingClientRect(), b = cards.get(to)?.getBoundingClientRect();
    if (!a || !b) return null;
    const end = [b.left - frame.left, b.top + b.height / 2 - frame.top];
    const start = narrow ? [a.left + 18 - frame.left, a.bottom - frame.top] : [a.right - frame.left, a.top + a.height / 2 - frame.top];
    const middle = (start[0] + end[0]) / 2;
    const d = narrow
      ? `M${start} V${end[1] - 10} q0 10 10 10 H${end[0]}`
      : `M${start} C${middle} ${start[1]} ${middle} ${end[1]} ${end}`;
    return { d, flows, from, to };
  });
  if (!news("lines", [drawn, frame.width, frame.height])) return;
  picture.setAttribute("width", frame.width);
  picture.setAttribute("height", frame.height);
  picture.replaceChildren(...drawn.filter(Boolean).flatMap(({ d, flows, from, to }) => {
    const edge = svg("path", { class: flows ? "edge flows" : "edge off", d, "data-from": from, "data-to": to });
    return flows ? [edge, svg("path", { class: "flow", d })] : [edge];
  }));
}

const watch = new ResizeObserver(lines);

