"use strict";
// Building blocks of the page: elements, formatting of numbers, and a colour and a shape for each replica.
// Text from the fleet only ever becomes text nodes and attribute values: there is no markup from text.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

/** Sets text only when it differs, so that screen readers and selections are not disturbed. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const s = Math.max(0, value);
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 100) return Math.round(s) + " s";
  if (s < 6000) return Math.round(s / 60) + " min";
  if (s < 172800) return Math.round(s / 3600) + " h";
  return Math.round(s / 86400) + " d";
}

const DAY_MS = 86400000;

/** A time on the clock, in UTC as in logs; with its date unless it is within a day of `now`. */
function clock(time, now = Date.now()) {
  const at = time instanceof Date ? time : new Date(time);
  if (Number.isNaN(at.getTime())) return "";
  const [date, rest] = at.toISOString().split("T");
  return (Math.abs(now - at.getTime()) < DAY_MS ? "" : date + " ") + rest.slice(0, 8) + " UTC";
}

/** Text in which backticks mark code, as nodes. */
function marked(text) {
  return text.split("`").map((part, i) => (i % 2 ? el("code", { text: part }) : part));
}

/** "shards 0–3, 7 and 12 more": whole numbers in order, of which three or more in a row are a range. */
function shardList(numbers, most = 12) {
  const sorted = [...new Set(numbers)].sort((a, b) => a - b);
  const parts = [];
  for (let i = 0; i < sorted.length; ) {
    let end = i;
    while (end + 1 < sorted.length && sorted[end + 1] === sorted[end] + 1) end += 1;
    if (end - i < 2) end = i;
    parts.push({ text: end > i ? sorted[i] + "–" + sorted[end] : String(sorted[i]), count: end - i + 1 });
    i = end + 1;
  }
  const hidden = parts.slice(most).reduce((all, part) => all + part.count, 0);
  const shown = parts.slice(0, most).map((part) => part.text).join(", ");
  return (sorted.length === 1 ? "shard " : "shards ") + shown + (hidden ? " and " + hidden + " more" : "");
}

function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const mebibytes = value / 1048576;
  if (mebibytes >= 10240) return (mebibytes / 1024).toFixed(1) + " GiB";
  return (mebibytes < 100 ? mebibytes.toFixed(1) : Math.round(mebibytes)) + " MiB";
}

function percent(share) {
  return Number.isFinite(share) ? Math.round(100 * share) + " %" : "–";
}

function whole(value) {
  return Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–";
}

function plural(count, one) {
  return count === 1 ? "1 " + one : count + " " + one + "s";
}

// Seven colours that are distinguishable with any kind of colour vision, and seven shapes for those
// who see no colours, or for more than seven replicas. Red is not among them: red means a problem.
const COLOURS = 7;
const SHAPES = [
  "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0",
  "M0-4.8L4.8 3.8H-4.8Z",
  "M-3.7-3.7H3.7V3.7H-3.7Z",
  "M0-5.2L5.2 0L0 5.2L-5.2 0Z",
  "M-1.6-4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z",
  "M0 4.8L4.8-3.8H-4.8Z",
  "M0-5.4L1.3-1.8L5.1-1.7L2.1.7L3.2 4.4L0 2.2L-3.2 4.4L-2.1.7L-5.1-1.7L-1.3-1.8Z",
];
const slots = new Map();

function hashOf(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i += 1) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/** Gives each replica a slot that it keeps: the one that its name hashes to, or the next free one. */
function assignSlots(identities) {
  if (slots.size > 500) {
    for (const known of [...slots.keys()]) if (!identities.includes(known)) slots.delete(known);
  }
  const taken = new Set(identities.filter((name) => slots.has(name)).map((name) => slots.get(name)));
  for (const name of [...identities].sort()) {
    if (slots.has(name)) continue;
    const wanted = hashOf(name) % COLOURS;
    let slot = wanted;
    for (let tries = 1; taken.has(slot); tries += 1) {
      slot = Math.floor(tries / COLOURS) * COLOURS + ((wanted + tries) % COLOURS);
    }
    slots.set(name, slot);
    taken.add(slot);
  }
}

/** Class of a replica's colour; an unknown replica has none. */
function colourOf(identity) {
  return slots.has(identity) ? "c" + (slots.get(identity) % COLOURS) : "nobody";
}

function shapeOf(identity) {
  const slot = slots.get(identity) ?? 0;
  return SHAPES[(slot + Math.floor(slot / COLOURS)) % SHAPES.length];
}

function swatch(identity) {
  const known = slots.has(identity);
  const box = svg("svg", { class: "swatch " + colourOf(identity), viewBox: "-9 -9 18 18", "aria-hidden": "true" });
  box.append(svg("rect", { x: -9, y: -9, width: 18, height: 18, rx: 4 }));
  if (known) box.append(svg("path", { class: "ink", d: shapeOf(identity) }));
  return box;
}

/** The end of each name that distinguishes it from the others, and is long enough to be a name. */
function shortNames(identities) {
  const parts = identities.map((name) => name.split("-"));
  let same = 0;
  while (parts.length > 1 && parts.every((p) => p.length > same + 1 && p[same] === parts[0][same])) same += 1;
  const tooShort = parts.some((p) => p.slice(same).join("-").length < 4);
  if (tooShort) same = Math.max(0, same - 1);
  return new Map(identities.map((name, i) => [name, parts[i].slice(same).join("-")]));
}
