"use strict";
// Keys and buttons; then the page begins.

const KEYS = {
  Enter: goToNext, n: goToNext, b: goBack, Backspace: goBack,
  j: () => decide("join"), s: () => decide("separate"), l: () => decide("leave"),
  "[": () => setSize(Number($("size").value) - 1), "]": () => setSize(Number($("size").value) + 1),
  ",": () => show(shown - 1), ".": () => show(shown + 1),
  PageUp: () => show(shown - 10), PageDown: () => show(shown + 10),
  "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), 0: fit,
  p: () => paintAtCursor(false), P: () => paintAtCursor(true),
  t: choose, h: () => document.body.classList.add("bare"),
  "?": () => $("keys").showModal(), Escape: stopAll,
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowDown: [0, 1] };
const REPEATED = ["[", "]", ",", ".", "PageUp", "PageDown", "+", "=", "-"];
TOOLS.forEach((name, n) => { KEYS[n + 1] = () => chooseTool(name); });

const undo = () => follow(change(() => takeBack()), true);
const redo = () => follow(change(makeAgain), false);

// Shows where something was undone, or made again.
function follow(entry, ask) {
  if (entry) goToChanged(entry, ask);
  else say(ask ? "Nothing to undo." : "Nothing to redo.");
}

// Puts the slice shown into the training set, or out of it.
function choose() {
  const slice = DATA.slices[shown];
  if (!slice.editable || !DATA.key) {
    canEdit();
    return;
  }
  kept.chosen[slice.name] = !isChosen(slice);
  keep();
  tellUnsaved();
  say(isChosen(slice) ? "In the training set." : "Not in the training set.");
}

function stopAll() {
  dropStroke();
  leaveQueue();
  clearMarks();
  chooseTool("look");
}

// What Ctrl with a key does.
function controlKey({ key, shiftKey }) {
  const letter = key.toLowerCase();
  return { z: shiftKey ? redo : undo, y: redo, s: openSaving }[letter];
}

function pressKey(event) {
  if ($("saving").open || $("keys").open) return;
  const { key, target } = event, arrow = ARROWS[key];
  const inRange = target.type === "range" && (arrow || /^(Page|Home|End)/.test(key));
  const onButton = target.tagName === "BUTTON" && (key === "Enter" || key === " ");
  if (inRange || onButton || event.altKey) return;
  let action = event.ctrlKey || event.metaKey ? controlKey(event) : KEYS[key];
  if (event.repeat && !event.ctrlKey && !REPEATED.includes(key) && !arrow) action = () => {};
  if (arrow && !(event.ctrlKey || event.metaKey)) {
    const step = event.shiftKey ? 10 : 1, slices = () => show(shown + arrow[0] + arrow[1]);
    action = tool === "look" ? slices : () => moveCursor(step * arrow[0], step * arrow[1]);
  }
  if (key === " ") {
    spaceHeld = true;
    action = () => {};
  }
  if (!action) return;
  event.preventDefault();
  action();
}

function listenToKeys() {
  document.onkeydown = pressKey;
  document.onkeyup = ({ key }) => {
    if (key === " ") spaceHeld = false;
    if (key === "h") document.body.classList.remove("bare");
  };
  window.onblur = () => {
    spaceHeld = false;
    document.body.classList.remove("bare");
  };
  const actions = {
    back: () => show(shown - 1), on: () => show(shown + 1), undo, redo, next: goToNext,
    join: KEYS.j, separate: KEYS.s, leave: KEYS.l, before: goBack, help: KEYS["?"],
  };
  for (const [id, action] of Object.entries(actions)) $(id).onclick = () => action();
  // after the pointer has used a button or a slider, keys are the page's again
  document.addEventListener("click", ({ target, detail }) => {
    if (detail && !target.closest("dialog")) document.activeElement?.blur();
  });
  $("size").oninput = () => setSize($("size").value);
  $("opacity").oninput = () => show(shown, LAYERS[layer][2] === null ? layer : "overlay");
}

function makeButtons() {
  for (const [name, [, over]] of Object.entries(LAYERS)) {
    if (over && !DATA.slices.some((slice) => picturePath(slice, over))) continue;
    const button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => show(shown, name);
    $("layers").append(button, " ");
  }
  TOOLS.forEach((name, n) => {
    const button = document.createElement("button"), key = document.createElement("kbd");
    key.textContent = n + 1;
    button.append(`${name} `, key);
    button.dataset.tool = name;
    button.title = HINTS[name];
    button.onclick = () => chooseTool(name);
    $("tools").append(button, " ");
  });
}

let fitted = "";
$("under").addEventListener("load", () => {  // a slice of another size than the last is fitted
  const size = `${$("under").naturalWidth} ${$("under").naturalHeight}`;
  if (size !== fitted && asked === null) fit();
  fitted = size;
});
window.onresize = () => { if (asked === null) fit(); else frameDecision(); };
window.onbeforeunload = (event) => {
  if (storageFails && DATA.slices.some((slice) => isUnsaved(slice.name))) event.preventDefault();
};
window.onstorage = (event) => {  // the page is open twice
  if (event.key !== STORE || storageFails) return;  // what is kept here alone is not replaced
  undone = [];
  restore();
  if (asked !== null) leaveQueue();
  change(() => {});
};
restore();
makeButtons();
makeStrip();
listenToPointer();
listenToSaving();
listenToKeys();
$("about").textContent = DATA.about;
$("command").textContent = DATA.command;
chooseTool("look");
show(0, "overlay");
tellUnsaved();
readEarlier(false);
