// What the page does, after it was confirmed. Requests go to this member only.

// In this page's memory and nowhere else. The browser is never asked to keep or send credentials ("omit"): what it does
// not have, pages of others cannot make it use.
let login = null;

async function send({ method, path, body, within }) {
  const headers = { "Content-Type": "application/json" };
  if (login) headers.Authorization = `Basic ${btoa(String.fromCharCode(...new TextEncoder().encode(`${login.user}:${login.password}`)))}`;
  const answer = await fetch(BASE + path, { method, headers, body: body && JSON.stringify(body), credentials: "omit", cache: "no-store", signal: AbortSignal.timeout(within) });
  return { status: answer.status, text: await answer.text() };
}

function signedIn(who) {
  login = who;
  $("signed").hidden = !who;
  say($("user"), who ? who.user : "");
}

let noted = 0;
// One line about what became of a request; a success goes away by itself.
function note(text, grade) {
  say($("note"), text, `banner ${grade}`);
  $("note").hidden = false;
  const mine = ++noted;
  if (grade === "good") setTimeout(() => { if (noted === mine) $("note").hidden = true; }, 15000);
}

let asking = null;

// Asks once more. Where writes or data are at stake the name has to be typed, else a second click is enough.
function ask(question) {
  asking = question;
  say($("ask-title"), question.title);
  say($("ask-text"), question.text);
  $("ask-label").hidden = !question.word;
  say($("ask-label").firstElementChild, `Type ${question.word} to confirm`);
  $("ask-word").value = "";
  say($("ask-said"), "", "");
  $("ask-login").hidden = true;
  say($("ask-go"), question.go, question.harm ? "danger" : "primary");
  ready();
  $("ask").showModal();
  (question.word ? $("ask-word") : $("ask-no")).focus();
}

function ready() {
  $("ask-go").disabled = !asking || asking.busy || Boolean(asking.word && $("ask-word").value.trim() !== asking.word);
}

async function confirmed() {
  const question = asking;
  if (!question || question.busy) return;
  if (!$("ask-login").hidden) {
    signedIn({ user: $("ask-user").value, password: $("ask-password").value });
    $("ask-password").value = "";
  }
  question.busy = true;
  ready();
  say($("ask-said"), "under way …", "quiet");
  let said;
  try {
    const { status, text } = await send(question.request);
    if (status === 401 && asking === question && $("ask").open) {
      const again = Boolean(login);
      signedIn(null);
      $("ask-login").hidden = false;
      say($("ask-said"), again ? "That was not accepted." : "", "bad");
      question.busy = false;
      ready();
      $("ask-user").focus();
      return;
    }
    const good = status >= 200 && status < 300;
    said = { good, text: good && /^[{[]/.test(text) ? question.done : text || `status ${status}` };
  } catch (error) {
    const late = error.name === "TimeoutError";
    said = { good: false, text: late ? `no answer within ${lasting(question.request.within / 1000)}; it may still happen` : `no answer: ${error.message}` };
  }
  question.busy = false;
  poke();
  if (said.good || asking !== question || !$("ask").open) {
    note(`${question.title}: ${said.text}`, said.good ? "good" : "bad");
    if (asking === question) $("ask").close();
  } else {
    say($("ask-said"), said.text, "bad");
    ready();
  }
}

const CHANGE_OF_LEADER = "The leader stops taking writes, the other is promoted once it has everything. Open connections to the leader end.";

function questions(name) {
  const leader = leaderOf(view)?.name;
  const post = (path, body, within = 60000) => ({ method: "POST", path, body, within });
  return {
    switchover: () => ({ title: `Make ${name} the leader`, text: CHANGE_OF_LEADER, word: name, go: `Switch over to ${name}`, harm: true, request: post("/switchover", { leader, candidate: name }) }),
    "hand over": () => ({ title: `Let ${name} hand over`, text: `${CHANGE_OF_LEADER} Which one is left to the members.`, word: name, go: "Hand over", harm: true, request: post("/switchover", { leader: name }) }),
    restart: () => ({ title: `Restart PostgreSQL on ${name}`, text: name === leader ? "It leads: nothing can be written until it is back, and all connections end." : "Connections to it end.", word: name, go: "Restart", harm: true, request: post("/restart", {}, 600000) }),
    reinitialize: () => ({ title: `Copy ${name} anew`, text: `The data of ${name} is replaced by a copy of another member's.`, word: name, go: "Replace its data", harm: true, request: post("/reinitialize", {}) }),
    pause: () => ({ title: "Pause the cluster", text: "Until it is resumed nobody fails over, and nothing is started or repaired by itself, whatever happens.", go: "Pause", harm: true, done: "paused", request: { method: "PATCH", path: "/config", body: { pause: true }, within: 20000 } }),
    resume: () => ({ title: "Resume the cluster", text: "Members act by themselves again. What was put off is done now.", go: "Resume", done: "resumed", request: { method: "PATCH", path: "/config", body: { pause: null }, within: 20000 } }),
    unschedule: () => ({ title: "Forget the scheduled switchover", text: "The leader stays.", go: "Forget it", request: { method: "DELETE", path: "/switchover", within: 20000 } }),
  };
}

// A button was pressed.
function begin(act, name) {
  if (view) ask(questions(name)[act]());
}

$("ask-form").addEventListener("submit", (event) => { event.preventDefault(); if (!$("ask-go").disabled) confirmed(); });
$("ask-word").addEventListener("input", ready);
$("ask-no").addEventListener("click", () => $("ask").close());
$("ask").addEventListener("close", () => { asking = null; $("ask-password").value = ""; });
$("pause").addEventListener("click", () => begin(view?.pause ? "resume" : "pause"));
$("unschedule").addEventListener("click", () => begin("unschedule"));
$("forget").addEventListener("click", () => signedIn(null));

