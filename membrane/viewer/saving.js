"use strict";
// Writes masks, corrections and training sets, into a folder or as one ZIP.

const REACH = 48, UNKNOWN = 128;  // px around corrections where labels are known; elsewhere

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// Where to write files: a folder that the user picks, or a ZIP where the browser has no picker.
async function openTarget(zipName) {
  if (!window.showDirectoryPicker) {
    const zip = new Zip();
    const write = async (path, bytes) => zip.add(path, bytes);
    return { name: zipName, write, close: () => download(zipName, zip.close()) };
  }
  const picked = await window.showDirectoryPicker({ mode: "readwrite" });
  const root = await makeFolder(picked, zipName.replace(".zip", ""));
  const write = async (path, bytes) => {
    const names = path.split("/");
    let folder = root;
    for (const name of names.slice(0, -1)) {
      folder = await folder.getDirectoryHandle(name, { create: true });
    }
    const file = await folder.getFileHandle(names.at(-1), { create: true });
    const stream = await file.createWritable();
    await stream.write(bytes);
    await stream.close();
  };
  return { name: `${picked.name}/${root.name}`, write, close: () => {} };
}

// Makes a new folder in one that the user has picked, so that nothing is overwritten.
async function makeFolder(picked, wanted) {
  for (let n = 1; ; n++) {
    const name = n > 1 ? `${wanted}-${n}` : wanted;
    const known = await picked.getDirectoryHandle(name).catch((error) => {
      if (error.name !== "NotFoundError" && error.name !== "TypeMismatchError") throw error;
      return error.name === "NotFoundError" ? null : error;
    });
    if (!known) return picked.getDirectoryHandle(name, { create: true });
  }
}

// Names of files for slices: without folders, ending in .png, each once.
function nameFiles(slices) {
  const taken = new Set();
  return slices.map((slice) => {
    const plain = (slice.save_as ?? slice.name).replace(/[/\\\p{Cc}]/gu, "_");
    const stem = plain.replace(/\.[^.]*$/, "") || "slice";
    let name = `${stem}.png`;
    for (let n = 2; taken.has(name); n++) name = `${stem}-${n}.png`;
    taken.add(name);
    return name;
  });
}

// Opens slices one after the other and writes files of them; returns what was saved of each, and
// into what.
async function writeSlices(slices, zipName, filesOf) {
  if (!slices.length) throw new Error("no slice to save; correct one first");
  const target = await openTarget(zipName), names = nameFiles(slices), written = {};
  for (const [n, slice] of slices.entries()) {
    say(`Saving ${n + 1} of ${slices.length} …`);
    const open = await openSlice(DATA.slices.indexOf(slice));
    if (!open) throw new Error(`${slice.name}: cannot be read from about/page`);
    written[slice.name] = checksumOf(slice.name);  // what comes while it is written is not saved
    for (const [folder, grey] of await filesOf(open, operationsOn(slice.name))) {
      await target.write(folder + names[n], await encodePng(grey, open));
    }
  }
  await target.close();
  return { written, into: target.name };
}

const checksumsNow = () =>
  Object.fromEntries(DATA.slices.map(({ name }) => [name, checksumOf(name)]));

// Notes that so much of each slice is saved: checksums by the slices' names.
function noteSaved(checksums = checksumsNow()) {
  Object.assign(kept.saved, checksums);
  keep();
  tellUnsaved();
}

const count = (list, what) => `${list.length} ${what}${list.length === 1 ? "" : "s"}`;

async function saveMasks() {
  const all = $("which").value === "all";
  const slices = editableSlices().filter(
    (slice) => all || isCorrected(slice) || isUnsaved(slice.name));
  const { written, into } = await writeSlices(slices, "masks.zip", ({ now }) => [["", now]]);
  noteSaved(written);
  say(`${count(Object.keys(written), "mask")} saved in ${into}.`);
}

async function saveCorrections() {
  download("corrections.json", new Blob([writeCorrections()], { type: "application/json" }));
  noteSaved();
  say(`Corrections of ${count([...ofSlice.keys()], "slice")} saved in corrections.json.`);
}

// The label of a slice for training: the mask, unknown where it is far from all corrections.
function makeLabel(slice, operations) {
  if (!$("near").checked) return slice.now;
  const near = findNear(operations, slice, REACH);
  return slice.now.map((value, index) => near[index] ? value : UNKNOWN);
}

async function saveTraining() {
  const near = $("near").checked;
  const slices = editableSlices().filter(
    (slice) => isChosen(slice) && (!near || isCorrected(slice)));
  const { written, into } = await writeSlices(slices, "training.zip", async (slice, operations) => [
    ["train/imgs/", await readGrey(slice.image, slice)],
    ["train/labels/", makeLabel(slice, operations)],
  ]);
  say(`${count(Object.keys(written), "slice")} saved in ${into}. As MINE, train on them by: ` +
    `python train.py --data MINE --init ${DATA.model ?? "pretrained"}` +
    `${slices[0].pixel_size ? ` --pixel-size ${slices[0].pixel_size}` : ""}` +
    `${near ? ` --ignore ${UNKNOWN}` : ""}`);
}

// Takes the corrections of a file, in place of those that there are.
async function loadCorrections(file) {
  const { slices, strange } = readCorrections(await file.text());
  const some = kept.log.length > 0;
  if (some && !confirm("Replace the corrections that are here by those of the file?")) return;
  [kept.log, undone] = [[], []];
  for (const [name, operations] of slices) {
    const number = DATA.slices.findIndex((slice) => slice.name === name);
    kept.taken[name] = true;
    const content = await readContent(number);
    putBefore(name, operations, content?.decisions ?? []);
  }
  leaveQueue();
  change(keep);
  noteSaved();
  say(`Corrections of ${count(slices, "slice")} loaded.` + (strange ? " They were made on another " +
    "prediction; where its borders lay elsewhere, predict.py --corrections finds them." : ""));
}

// Does something that may fail, and says why it did.
async function attempt(work) {
  const buttons = $("saving").querySelectorAll("button, input, select");
  for (const button of buttons) button.disabled = true;
  try {
    await work();
  } catch (error) {
    say(error.name === "AbortError" ? "Nothing was saved." : `Not done: ${error.message}.`);
  }
  for (const button of buttons) button.disabled = false;
}

function openSaving() {
  dropStroke();
  $("told").textContent = "";
  $("saving").showModal();
  attempt(() => readEarlier(true));  // now: a click must lead to the picker of folders at once
}

function listenToSaving() {
  $("save").onclick = openSaving;
  $("save-masks").onclick = () => attempt(saveMasks);
  $("save-corrections").onclick = () => attempt(saveCorrections);
  $("save-training").onclick = () => attempt(saveTraining);
  $("load").onchange = async () => {
    const [file] = $("load").files;
    if (file) await attempt(() => loadCorrections(file));
    $("load").value = "";
  };
}
