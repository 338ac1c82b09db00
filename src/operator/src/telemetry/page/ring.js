// The hash circle: one arc for each shard, in the colour and with the shape of its holder.

const RING = { size: 440, outer: 188, inner: 126, next: 118, label: 203 };

function point(radius, turn) {
  const angle = turn * 2 * Math.PI - Math.PI / 2;
  return (radius * Math.cos(angle)).toFixed(2) + " " + (radius * Math.sin(angle)).toFixed(2);
}

/** A piece of a ring, from one part of a turn to another. A whole turn is two halves. */
function piece(outer, inner, from, to) {
  if (to - from > 0.999) return piece(outer, inner, 0, 0.5) + piece(outer, inner, 0.5, 0.998);
  const large = to - from > 0.5 ? 1 : 0;
  return "M" + point(outer, from) + "A" + outer + " " + outer + " 0 " + large + " 1 " + point(outer, to) +
    "L" + point(inner, to) + "A" + inner + " " + inner + " 0 " + large + " 0 " + point(inner, from) + "Z";
}

class Ring {
  constructor(place, detail) {
    this.place = place;
    this.detail = detail;
    this.shards = [];
    this.current = 0;
    this.only = null;
  }

  /** Draws the arcs again if their number has changed; otherwise only their differences. */
  update(shards, facts) {
    this.facts = facts;
    if (shards.length !== this.shards.length) this.draw(shards.length);
    this.shards = shards;
    shards.forEach((shard, i) => this.paint(shard, i));
    this.highlight(this.only);
    if (this.described !== undefined) this.describe(this.described);
    const held = shards.filter((shard) => shard.owned).length;
    say(this.middle, held + " / " + shards.length);
    this.root.classList.toggle("trouble", held < shards.length);
    this.root.setAttribute("aria-label", "Hash circle: " + held + " of " + plural(shards.length, "shard") + " held. Arrow keys go from shard to shard.");
  }

  draw(count) {
    const half = RING.size / 2;
    this.root = svg("svg", { viewBox: [-half, -half, RING.size, RING.size].join(" "), role: "group" });
    const stripes = svg("pattern", { id: "stripes", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
    stripes.append(svg("rect", { class: "stripe-ground", width: 8, height: 8 }), svg("rect", { class: "stripe", width: 4, height: 8 }));
    const veil = svg("pattern", { id: "veil", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(-45)" });
    veil.append(svg("rect", { class: "veil", width: 2.4, height: 6 }));
    this.root.append(svg("defs", {}, stripes, veil));
    const gap = count > 128 ? 0.0003 : count > 1 ? 0.0011 : 0;
    const every = Math.max(1, count / 32);
    this.arcs = [];
    for (let i = 0; i < count; i += 1) this.drawArc(i, count, gap, i % every === 0);
    this.middle = svg("text", { class: "middle", y: 2 });
    this.root.append(this.middle, svg("text", { class: "under", y: 28, text: "shards held" }));
    this.place.replaceChildren(this.root);
    this.current = Math.min(this.current, Math.max(0, count - 1));
    if (this.arcs.length) this.arcs[this.current].group.setAttribute("tabindex", "0");
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  drawArc(i, count, gap, labelled) {
    const [from, to, centre] = [i / count + gap, (i + 1) / count - gap, (i + 0.5) / count];
    const group = svg("g", { role: "img", tabindex: "-1" });
    const body = svg("path", { d: piece(RING.outer, RING.inner, from, to) });
    const veil = svg("path", { class: "over", d: piece(RING.outer, RING.inner, from, to) });
    const next = svg("path", { d: piece(RING.next, RING.next - 8, from, to) });
    const fresh = svg("path", { class: "fresh", d: piece(RING.outer + 6, RING.outer + 2, from, to) });
    const scale = Math.min(1.5, 34 / count * 1.25);
    const shape = svg("path", { class: "ink", transform: "translate(" + point((RING.outer + RING.inner) / 2, centre) + ") scale(" + scale.toFixed(2) + ")" });
    group.append(body, veil, shape, next, fresh);
    if (labelled) {
      const [x, y] = point(RING.label, centre).split(" ");
      group.append(svg("text", { class: "number", x, y, text: String(i) }));
    }
    group.addEventListener("pointerenter", () => this.describe(i));
    group.addEventListener("pointerdown", () => this.describe(i));
    group.addEventListener("pointerleave", () => this.clearDescription());
    group.addEventListener("focus", () => { this.current = i; this.describe(i); });
    group.addEventListener("blur", () => this.clearDescription());
    this.arcs.push({ group, body, veil, shape, next, fresh });
    this.root.append(group);
  }

  paint(shard, i) {
    const arc = this.arcs[i];
    arc.group.setAttribute("class", "arc" + (shard.owned ? "" : " unowned"));
    arc.body.setAttribute("class", "body " + (shard.owned ? colourOf(shard.holder) : "striped"));
    arc.shape.setAttribute("class", "ink " + colourOf(shard.holder));
    arc.shape.setAttribute("d", shard.owned ? shapeOf(shard.holder) : "");
    arc.veil.classList.toggle("on", shard.owned && shard.uneasy);
    arc.next.setAttribute("class", "next " + (shard.successor ? colourOf(shard.successor) : "off"));
    arc.fresh.classList.toggle("on", shard.moved);
    arc.group.setAttribute("aria-label", shard.text);
  }

  describe(i) {
    this.described = i;
    const shard = this.shards[i];
    if (shard) say(this.detail, shard.text);
  }

  clearDescription() {
    this.described = undefined;
    say(this.detail, this.facts);
  }

  /** Dims the shards of all other replicas; `null` shows all. */
  highlight(identity) {
    this.only = identity;
    this.arcs.forEach((arc, i) => {
      arc.group.classList.toggle("dim", identity !== null && this.shards[i].holder !== identity);
    });
  }

  key(event) {
    const last = this.arcs.length - 1;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    let next = this.current;
    if (event.key in steps) next = (this.current + steps[event.key] + last + 1) % (last + 1);
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = last;
    else return;
    event.preventDefault();
    this.arcs[this.current].group.setAttribute("tabindex", "-1");
    this.arcs[next].group.setAttribute("tabindex", "0");
    this.arcs[next].group.focus();
  }
}
