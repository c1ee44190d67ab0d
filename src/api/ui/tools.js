// Everything shown comes from this member's REST API and is put in as text, never as markup.

const $ = (id) => document.getElementById(id);

// An element; attributes that are null or false are left out, children that are null too.
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function svg(name, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text != null) node.textContent = text;
  return node;
}

// Writes only what has changed: what somebody reads, selects or is about to click stays where it is.
function say(node, text, className) {
  if (node.textContent !== text) node.textContent = text;
  if (className != null && node.className !== className) node.className = className;
}

const changed = new Map();
// Whether `value` differs from the last one under this key.
function news(key, value) {
  const text = JSON.stringify(value);
  if (changed.get(key) === text) return false;
  changed.set(key, text);
  return true;
}

// The page may be served below a prefix.
const BASE = location.pathname.replace(/\/ui(\/.*)?$/, "");

const bytes = (n) => {
  if (typeof n !== "number") return n == null ? "" : String(n);
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) { n /= 1024; at += 1; }
  return `${at ? n.toFixed(1) : n} ${units[at]}`;
};

// 75 → `1 min 15 s`.
function lasting(seconds) {
  const parts = [];
  let left = Math.max(0, Math.round(seconds));
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    if (left >= size) { parts.push(`${Math.floor(left / size)} ${unit}`); left %= size; }
  }
  return parts.slice(0, 2).join(" ") || "0 s";
}

// Settings that people put passwords into: whole values by their names, parts of texts by their shape.
const SECRET = /pass|secret|token|credential|private_?key|access_?key/i;
const NO_SECRET = /^(password_encryption|md5_password_warnings|passwordcheck\..*)$/i;
const QUOTED = String.raw`'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|[^\s,;&]+`;
const WORDS = "(?:pass(?:word|wd|phrase)?|secret|token|access_?key)";
const ASSIGNED = new RegExp(`([\\w-]*${WORDS}[\\w-]*["']?\\s*[=:]\\s*)(${QUOTED})`, "gi");
const OPTION = new RegExp(`(--?[\\w-]*${WORDS}[\\w-]*\\s+)(${QUOTED})`, "gi");
const IN_URL = /([a-z][a-z0-9+.-]*:\/\/[^\s:@\/]*:)\S*@/gi;
const HIDDEN = "•••";

const maskedText = (text) => text.replace(ASSIGNED, `$1${HIDDEN}`).replace(OPTION, `$1${HIDDEN}`).replace(IN_URL, `$1${HIDDEN}@`);

function masked(value, hide = false) {
  if (Array.isArray(value)) return value.map((one) => masked(one, hide));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, masked(one, hide || (SECRET.test(name) && !NO_SECRET.test(name)))]));
  }
  if (hide && value !== null && typeof value !== "boolean") return HIDDEN;
  return typeof value === "string" ? maskedText(value) : value;
}

