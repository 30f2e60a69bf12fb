"""The page on which a person compares clips: all of it, nothing is loaded from elsewhere."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$question</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1d232b; --faint: #68727f; --line: #d5dae1;
          --accent: #2463c4; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #14171c; --card: #1e232a; --ink: #e8ebef; --faint: #98a2af; --line: #39414c; --accent: #7aaaf5; }
  }
  * { box-sizing: border-box; }
  body { margin: 0; min-height: 100vh; background: var(--paper); color: var(--ink);
         font: 16px/1.4 system-ui, sans-serif; display: grid; place-items: center; }
  main { width: min(100%, 1060px); padding: 20px; }
  header, footer { display: flex; align-items: center; gap: 16px; }
  header { margin-bottom: 18px; }
  h1 { font-size: 20px; margin: 0; flex: 1; }
  progress { width: 160px; height: 8px; accent-color: var(--accent); }
  #count { color: var(--faint); font-variant-numeric: tabular-nums; }
  button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
           padding: 9px 16px; cursor: pointer; }
  button:hover:enabled, button:focus-visible { border-color: var(--accent); outline: 1px solid var(--accent); }
  button:disabled { opacity: .45; cursor: default; }
  #clips { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; margin-bottom: 18px; }
  #clips button { padding: 10px; display: flex; flex-direction: column; gap: 10px; align-items: center; }
  #clips img { display: block; width: 100%; height: min(56vh, 46vw); object-fit: contain; }
  footer { justify-content: center; }
  kbd { font: 13px ui-monospace, monospace; color: var(--faint); border: 1px solid var(--line); border-radius: 5px;
        padding: 1px 6px; margin: 0 2px; }
  #message { text-align: center; color: var(--faint); min-height: 24px; margin: 14px 0 0; }
  [hidden] { display: none !important; }
</style>
<main>
  <header><h1>$question</h1><span id="count"></span><progress id="bar" value="0"></progress></header>
  <section id="clips">
    <button id="left"><img id="first" alt="first clip"><span><kbd>&larr;</kbd> Left</span></button>
    <button id="right"><img id="second" alt="second clip"><span>Right <kbd>&rarr;</kbd></span></button>
  </section>
  <footer>
    <button id="equal">Equal <kbd>=</kbd></button>
    <button id="skip">Skip <kbd>s</kbd></button>
    <button id="undo">Undo <kbd>u</kbd></button>
    <button id="finish" hidden>Finish <kbd>Enter</kbd></button>
  </footer>
  <p id="message" role="status"></p>
</main>
<script>
"use strict";
const at = id => document.getElementById(id);
const choices = ["left", "right", "equal", "skip"];
const keys = {ArrowLeft: "left", ArrowRight: "right", "=": "equal", s: "skip", u: "undo", Enter: "finish"};
const clips = new Map();
let state = null;

async function ask(path, body) {
  const reply = await fetch(path, body && {method: "POST", body: JSON.stringify(body)});
  if (!reply.ok) throw new Error(reply.status);
  return reply;
}

function clip(segment) {
  if (!clips.has(segment)) clips.set(segment, ask("clip/" + segment).then(reply => reply.blob()));
  return clips.get(segment);
}

function enable(names) {
  for (const name of [...choices, "undo", "finish"]) at(name).disabled = !names.includes(name);
}

async function show(next) {
  state = next;
  at("count").textContent = `$${state.answered} of $${state.total}`;
  at("bar").max = state.total;
  at("bar").value = state.answered;
  const done = !state.pair, undo = state.undo ? ["undo"] : [];
  at("clips").hidden = at("equal").hidden = at("skip").hidden = done;
  at("finish").hidden = !done;
  at("message").textContent = done ? "All pairs are answered." : "Drawing the clips …";
  enable(done ? ["finish", ...undo] : undo);
  if (done) return;
  for (const known of clips.keys()) if (!state.keep.includes(known)) clips.delete(known);
  const [one, two] = await Promise.all(state.pair.map(clip));
  if (state !== next) return;
  for (const [id, blob] of [["first", one], ["second", two]]) {  // set at once, so that both start together
    URL.revokeObjectURL(at(id).src);
    at(id).src = URL.createObjectURL(blob);
  }
  await Promise.all([at("first").decode(), at("second").decode()]);
  if (state !== next) return;
  at("message").textContent = "";
  enable([...choices, ...undo]);
  state.keep.forEach(clip);
}

function over() {
  enable([]);
  at("message").textContent = "This session has ended; its answers are kept. You may close the page.";
}

async function press(name) {
  if (at(name).disabled || at(name).hidden) return;
  enable([]);
  try {
    const reply = await ask(name === "undo" || name === "finish" ? name : "answer", {pair: state.pair, answer: name});
    if (name === "finish") over(); else await show(await reply.json());
  } catch { over(); }
}

for (const name of [...choices, "undo", "finish"]) at(name).onclick = () => { at(name).blur(); press(name); };
document.onkeydown = event => {
  const name = keys[event.key];
  if (!name || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  press(name);
};
ask("state").then(reply => reply.json()).then(show).catch(over);
</script>
</html>
"""
