"use strict";
// Writes ZIP archives, whose files are stored as they are.

const ZIP_LIMIT = 2 ** 32 - 1;  // bytes

// A number for ZIP, its lowest byte first.
const little = (size, value) =>
  Array.from({ length: size }, (_, n) => Math.floor(value / 2 ** (8 * n)) % 256);

class Zip {
  constructor() {
    this.parts = [];  // of the archive
    this.entries = [];  // of the list at its end
    this.length = 0;
    const now = new Date();
    const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
    const day = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
    this.stamp = [...little(2, time), ...little(2, day)];
  }

  // Adds a file.
  add(path, bytes) {
    const name = new TextEncoder().encode(path), size = little(4, bytes.length);
    const about = [...little(2, 20), ...little(2, 0x800), 0, 0, ...this.stamp,  // names are UTF-8
      ...little(4, crc32(bytes)), ...size, ...size, ...little(2, name.length), 0, 0];
    const head = Uint8Array.from([0x50, 0x4b, 3, 4, ...about, ...name]);
    this.entries.push(Uint8Array.from([0x50, 0x4b, 1, 2, ...little(2, 20), ...about,
      ...Array(10).fill(0), ...little(4, this.length), ...name]));
    this.parts.push(new Blob([head, bytes]));
    this.length += head.length + bytes.length;
    if (this.length > ZIP_LIMIT) throw new Error("a ZIP holds 4 GB; save fewer slices at once");
  }

  // The archive.
  close() {
    const count = little(2, this.entries.length), list = new Blob(this.entries);
    const end = [0x50, 0x4b, 5, 6, 0, 0, 0, 0, ...count, ...count, ...little(4, list.size),
      ...little(4, this.length), 0, 0];
    return new Blob([...this.parts, list, Uint8Array.from(end)], { type: "application/zip" });
  }
}
