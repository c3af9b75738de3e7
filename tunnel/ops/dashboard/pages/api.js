// How the page asks its process: POST with a token, one answer or a stream of lines.
// The token comes in the URL's fragment, which no server and no log ever sees.

const KEPT = "tunnel.token";
const ANSWER_MS = 30_000; // as long as `tunnel` itself waits for an answer, and then some
const MOST_LINE = 64 << 20; // characters of one line: what is longer was not written by ours

let token = null;
let denied = () => {};

/** Why something was not done: what failed, its cause, and what can be done. */
export class Failed extends Error {
  constructor({ what, cause = "", fix = "" }, status = 0) {
    super(what);
    Object.assign(this, { what, cause, fix, status });
  }
}

/** Read the token from the URL, and erase it there before anything else is done. */
export function readToken() {
  const found = /^#token=([^&]+)/.exec(location.hash);
  if (found) {
    history.replaceState(null, "", location.pathname + location.search);
    keepToken(decoded(found[1]));
  } else token ??= kept();
  return token !== null;
}

/** What a URL says by a text; a text that is not encoded right stands for itself. */
export function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function kept() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return null; // storage may be forbidden: the token lasts as long as the page
  }
}

export function keepToken(text) {
  token = text;
  try {
    if (text === null) sessionStorage.removeItem(KEPT);
    else sessionStorage.setItem(KEPT, text);
  } catch {
    // As above.
  }
}

/** Say what is to be done when the process does not take the token. */
export function onDenied(act) {
  denied = act;
}

async function post(path, args, signal) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify(args),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed({
      what: error.name === "TimeoutError" ? "There was no answer in time" : "The process does not answer",
      cause: "it has ended, or the way to it is interrupted",
      fix: "The page goes on by itself when it is back.",
    });
  }
  if (answer.status === 401) {
    keepToken(null);
    denied();
    throw new Failed({ what: "The token is not right", fix: "tunnel dashboard prints the URL with it." }, 401);
  }
  return answer;
}

/** Ask a command; return what it has done. Throws Failed. */
export async function ask(command, args = {}) {
  const answer = await post(command, args, AbortSignal.timeout(ANSWER_MS));
  let said;
  try {
    said = await answer.json();
  } catch {
    throw new Failed({ what: `The answer cannot be read (HTTP ${answer.status})` }, answer.status);
  }
  if (said.failed) throw new Failed(said.failed, answer.status);
  return said.done;
}

/** Call `take` with each line of a stream, until it ends; `signal` ends it from here. */
export async function stream(path, args, signal, take) {
  const answer = await post(path, args, signal);
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Failed(said.failed ?? { what: `HTTP ${answer.status}` }, answer.status);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = []; // joined once a line is whole: a long one costs no copies
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const [first, ...others] = value.split("\n");
    pieces.push(first);
    length += first.length;
    if (length > MOST_LINE) throw new Failed({ what: "A line of the stream has no end" });
    for (const next of others) {
      const text = pieces.join("");
      if (text) take(JSON.parse(text));
      pieces = [next];
      length = next.length;
    }
  }
}
