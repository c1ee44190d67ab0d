// The configuration as YAML, which is how people write it; passwords are left out before.

const plain = (text) => /^[\w.\/@%+-][\w.\/@%+ -]*$/.test(text) && !/^(true|false|null|yes|no|on|off|[\d.+-]+)$/i.test(text) && !/\s$/.test(text);

function scalar(value) {
  if (typeof value === "string") return el("span", { class: "text" }, plain(value) ? value : JSON.stringify(value));
  return el("span", { class: "value" }, String(value));
}

const empty = (value) => !Object.keys(value).length;

// Lines as nodes: `key: value`, nested ones further in.
function yaml(value, depth = 0) {
  const list = Array.isArray(value);
  const entries = list ? value.map((one) => ["-", one]) : Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return entries.flatMap(([key, one]) => {
    const name = el("span", { class: list ? "dash" : "key" }, list ? "-" : `${key}:`);
    const line = (...rest) => el("span", { class: `line in-${Math.min(depth, 6)}` }, name, ...rest, "\n");
    if (one && typeof one === "object") {
      if (empty(one)) return [line(" ", Array.isArray(one) ? "[]" : "{}")];
      return [line(), ...yaml(one, depth + 1)];
    }
    return [line(" ", scalar(one))];
  });
}

function showConfig(document) {
  if (news("config", document)) $("config").replaceChildren(...yaml(masked(document)));
}

// What members do not use of it as it was written.
function remarks() {
  const said = Object.values(why).flatMap((word) => (word.config || []).map((text) => `${word.member}: ${maskedText(text)}`));
  if (!news("remarks", said)) return;
  $("remarks").hidden = !said.length;
  $("remarks").replaceChildren(...said.map((text) => el("li", {}, text)));
}

