"use strict";
// The strip of slices.

const items = [];  // of the strip, by the number of the slice
let sorted = false;  // by how uncertain they are, the least certain first

const editableSlices = () => DATA.slices.filter((slice) => slice.editable && DATA.key);

// The numbers of the decisions on a slice that are open.
function openDecisions({ name, gains, editable }) {
  const done = decided.get(name);
  return editable && DATA.key ? [...(gains ?? []).keys()].filter((n) => !done?.has(n)) : [];
}

const openGain = (slice) => openDecisions(slice).reduce((sum, n) => sum + slice.gains[n], 0);

// Makes an element of the strip; thumbnails come when it is seen.
function makeItem(slice, number, watch) {
  const button = document.createElement("button");
  for (const kind of ["number", "corrected", "bar"]) {
    const span = document.createElement("span");
    span.className = kind;
    button.append(span);
  }
  button.children[0].textContent = number + 1;
  button.title = slice.name;
  button.tabIndex = -1;
  button.onclick = () => show(number);
  watch.observe(button);
  items.push(button);
  return button;
}

// Loads the thumbnails that are seen, and forgets the others.
function loadThumbnails(entries) {
  for (const { target, isIntersecting } of entries) {
    const slice = DATA.slices[items.indexOf(target)];
    target.querySelector("img")?.remove();
    if (!isIntersecting || !slice.kinds.includes("thumb.jpg")) continue;
    const image = document.createElement("img");
    image.src = picturePath(slice, "thumb");
    image.alt = "";
    target.prepend(image);
  }
}

// Shows what is uncertain, corrected and chosen.
function drawStrip() {
  const gains = DATA.slices.map(openGain), most = gains.reduce((a, b) => Math.max(a, b), 1e-9);
  DATA.slices.forEach((slice, number) => {
    const marks = (isCorrected(slice) ? "✎" : "") + (isChosen(slice) ? " T" : "");
    const told = items[number].querySelector(".corrected");
    told.textContent = marks;
    told.hidden = !marks;
    items[number].querySelector(".bar").style.width = `${(100 * gains[number]) / most}%`;
    const count = openDecisions(slice).length;
    items[number].setAttribute("aria-label", `slice ${number + 1}: ${slice.name}, ` +
      `${count} open decisions${isCorrected(slice) ? ", corrected" : ""}` +
      `${isChosen(slice) ? ", in the training set" : ""}`);
  });
}

// Marks the slice shown in the strip.
function markShown() {
  items.forEach((item, number) => {
    item.setAttribute("aria-current", number === shown);
    item.tabIndex = number === shown ? 0 : -1;
  });
  items[shown]?.scrollIntoView({ block: "nearest" });
}

// Orders the strip by slices, or by how uncertain they are.
function orderStrip() {
  sorted = !sorted;
  const gains = DATA.slices.map(openGain), numbers = [...items.keys()];
  if (sorted) numbers.sort((a, b) => gains[b] - gains[a] || a - b);
  $("slices").replaceChildren(...numbers.map((number) => items[number]));
  $("order").textContent = sorted ? "least certain first" : "in order";
  $("order").setAttribute("aria-pressed", sorted);
}

function makeStrip() {
  const seen = { root: $("slices"), rootMargin: "300px" };
  const watch = new IntersectionObserver(loadThumbnails, seen);
  $("slices").append(...DATA.slices.map((slice, number) => makeItem(slice, number, watch)));
  $("strip").hidden = DATA.slices.length < 2;
  $("order").onclick = orderStrip;
}
