// Requests the fleet periodically, and shows it.

const POLL_MS = 2000;
const PATIENCE_MS = 4000;
const PAUSE_MS_MAX = 15000;
/** Answers older than this are shown as stale, whatever the reason. */
const STALE_MS = 7000;
/** Moves of one kind between the same replicas are one line if no more time than this lies between two of them. */
const GROUP_SECONDS = 30;
/** How long a move is marked on the circle. */
const FRESH_SECONDS = 30;
const MOVES_SHOWN = 8;
const HISTORY_MAX = 60;

const ring = new Ring(byId("ring"), byId("detail"));
const rows = new Map();
const histories = new Map();
const link = { answered: null, failures: 0, reason: "", next: null, timer: null };
let fleet = null;

const MOVE_REASONS = {
  created: "its Lease is new",
  vacant: "it had no holder",
  given_up: "released, and not taken yet",
  takeover: "takeover: its holder died",
  leaving: "handover: its holder leaves",
  planned: "handover: planned by the fleet leader",
  restarted: "restart: same replica, new incarnation",
  raised: "epoch raised above the shard table",
  unknown: "changed hands, for an unknown reason",
};
const MARKS = {
  ok: "M4 12.5l5.5 5.5L20 7",
  warning: "M12 3L22 20H2ZM12 9.5V14.5M12 16.6V17.6",
  critical: "M7.8 2.5H16.2L21.5 7.8V16.2L16.2 21.5H7.8L2.5 16.2V7.8ZM8.5 8.5L15.5 15.5M15.5 8.5L8.5 15.5",
  note: "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M12 11V16.5M12 7.2V8.2",
};
const WORDS = { critical: "Critical", warning: "Warning", note: "Note" };

function mark(level) {
  return svg("svg", { class: "mark", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: MARKS[level] ?? MARKS.note }));
}

/** A name with its colour and shape. */
function who(identity, names) {
  if (!identity) return el("span", { class: "who none", text: "nobody" });
  return el("span", { class: "who", title: identity }, swatch(identity), el("span", { class: "name", text: names.get(identity) ?? identity }));
}

// The data of the JSON in the form that the page needs.

function digest(view) {
  const members = view.members ?? [];
  const identities = members.map((member) => member.identity);
  assignSlots(identities);
  const byName = new Map(members.map((member) => [member.identity, member]));
  const names = shortNames(identities);
  const count = view.shard_count ?? (view.shards ?? []).length;
  const moved = new Map();
  for (const move of view.moves ?? []) {
    if (move.seconds_ago < FRESH_SECONDS && !moved.has(move.shard)) moved.set(move.shard, move);
  }
  const known = new Map((view.shards ?? []).map((shard) => [shard.shard, shard]));
  const shards = [];
  for (let number = 0; number < count; number += 1) {
    shards.push(shardOf(number, known.get(number), byName, moved.get(number)));
  }
  return { view, members, byName, names, shards, odd: (view.shards ?? []).filter((shard) => shard.shard === null) };
}

function shardOf(number, lease, byName, move) {
  const holder = lease?.holder ?? null;
  const member = byName.get(holder);
  const owned = Boolean(holder && member && !lease.orphaned && member.live !== false);
  const lifetime = member?.lease_seconds ?? 0;
  const late = lifetime > 0 && (member?.heartbeat_age_seconds ?? 0) > lifetime / 2;
  const state = [];
  if (!lease) state.push("no Lease");
  else if (!holder) state.push("vacant");
  else if (lease.orphaned) state.push("its holder's incarnation is dead");
  else if (!owned) state.push("its holder is silent");
  if (owned && late) state.push("its holder is late");
  if (owned && member.draining) state.push("its holder is leaving");
  if (lease?.successor) state.push("moves to " + lease.successor);
  if (lease?.damage) state.push("damaged: " + lease.damage);
  if (move) state.push("moved " + seconds(move.seconds_ago) + " ago");
  const parts = ["Shard " + number, holder ? "held by " + holder : "vacant"];
  if (lease?.held_seconds > 0 && holder) parts.push("for " + seconds(lease.held_seconds));
  if (lease) parts.push("epoch " + lease.epoch, "buckets " + (lease.buckets ?? "unknown"));
  return {
    number, lease, holder, owned, uneasy: Boolean(member && (member.draining || late)),
    successor: lease?.successor ?? null, moved: Boolean(move), state, text: parts.concat(state).join(" · "),
  };
}

/** Whether the replica is dead, or silent for so long: what it reported last is of the past. */
function isGone(member) {
  return member.vacated || member.live === false;
}

function sum(members, stat) {
  return members.filter((m) => !isGone(m)).reduce((all, m) => all + (m.stats[stat] ?? 0), 0);
}

// The parts of the page.

function showVerdict({ view, members, shards }) {
  const problems = view.problems ?? [];
  const worst = problems.length ? problems[0].severity : "ok";
  const level = worst === "note" ? "ok" : worst;
  const serious = problems.filter((problem) => problem.severity !== "note").length;
  byId("verdict").dataset.level = level;
  byId("verdict-mark").setAttribute("d", MARKS[level] ?? MARKS.note);
  const text = { ok: "All is well", warning: plural(serious, "thing") + " to check", critical: plural(serious, "problem") };
  say(byId("verdict-text"), text[level] ?? "");
  document.title = { ok: "✓ ", warning: "▲ ", critical: "✖ " }[level] + text[level] + " · fleet";
  const clusters = Object.values(view.clusters ?? {}).reduce((all, count) => all + count, 0);
  const live = members.filter((member) => !isGone(member));
  const totals = [
    ["Shards held", shards.filter((shard) => shard.owned).length + " of " + shards.length],
    ["Live replicas", String(live.length)],
    ["Clusters Ready", whole(view.clusters?.Ready ?? 0) + " of " + whole(clusters)],
    ...(view.clusters?.Unknown ? [["Clusters unknown", whole(view.clusters.Unknown)]] : []),
    ["Waiting in queues", whole(sum(members, "queue_depth"))],
    ["Fleet leader", view.leader?.identity ?? "none"],
  ];
  byId("totals").replaceChildren(...totals.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }))));
  const list = problems.map((problem) => el("li", { class: problem.severity }, mark(problem.severity),
    el("span", { class: "what" }, el("span", { class: "hidden", text: (WORDS[problem.severity] ?? "") + ": " }), ...marked(problem.what)),
    ...(problem.clusters?.length ? [el("span", { class: "links" }, ...links(problem.clusters, view.clusters?.Degraded ?? 0))] : []),
    el("span", { class: "hint" }, ...marked(problem.hint))));
  const key = JSON.stringify(problems);
  if (byId("problems").dataset.key !== key) {
    byId("problems").dataset.key = key;
    byId("problems").replaceChildren(...list);
  }
}

function rowOf(cluster) {
  return "cluster/" + cluster;
}

/** A link from each name to its reason, further down. */
function links(clusters, total) {
  const all = clusters.map((cluster) => el("a", { href: "#" + rowOf(cluster), class: "name", text: cluster }));
  return total > all.length ? [...all, "and " + whole(total - all.length) + " more"] : all;
}

function showRing({ shards, members, names, view }) {
  const epochs = shards.map((shard) => shard.lease?.epoch ?? 0);
  const moving = shards.filter((shard) => shard.successor).length;
  const facts = "Highest epoch " + Math.max(0, ...epochs) + " · " + (moving ? plural(moving, "shard") + " planned to move" : "no move planned");
  ring.update(shards, facts);
  if (ring.described === undefined) say(byId("detail"), facts);
  const key = members.map((m) => m.identity + m.held + m.vacated).join();
  if (byId("legend").dataset.key === key) return;
  byId("legend").dataset.key = key;
  if (!members.some((member) => member.identity === ring.only)) ring.highlight(null);
  const buttons = members.filter((member) => member.held > 0 || !member.vacated).map((member) => {
    const button = el("button", { type: "button", "aria-pressed": String(ring.only === member.identity), title: member.identity }, swatch(member.identity),
      el("span", { class: "name", text: names.get(member.identity) }), el("span", { class: "count", text: plural(member.held, "shard") }));
    button.addEventListener("click", () => {
      ring.highlight(ring.only === member.identity ? null : member.identity);
      for (const other of byId("legend").children) other.setAttribute("aria-pressed", String(other === button && ring.only !== null));
    });
    return button;
  });
  byId("legend").replaceChildren(...buttons);
}

function remember(member) {
  const history = histories.get(member.identity) ?? [];
  const { queue_depth: queue, cpu_cores: cpu, cpu_seconds: spent } = member.stats;
  // A heartbeat that is shown already adds no point.
  if (spent !== undefined && history.at(-1)?.spent !== spent) history.push({ queue: queue ?? 0, cpu: cpu ?? 0, spent });
  if (history.length > HISTORY_MAX) history.shift();
  histories.set(member.identity, history);
  return history;
}

function spark(history, stat, least) {
  const top = Math.max(least, ...history.map((at) => at[stat]));
  const line = svg("line", { class: "base", x1: 0, x2: 100, y1: 19, y2: 19 });
  const points = history.map((at, i) => (100 - (history.length - 1 - i) * (100 / (HISTORY_MAX - 1))).toFixed(1) + "," + (19 - 17 * at[stat] / top).toFixed(1));
  const box = svg("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  if (points.length > 1) box.append(svg("polyline", { points: points.join(" ") }));
  return box;
}

function meter(share, level) {
  const bar = el("span", { class: "meter " + (level ?? ""), "aria-hidden": "true" }, el("span"));
  bar.firstChild.style.setProperty("width", Math.round(100 * Math.min(1, Math.max(0, share))) + "%");
  return bar;
}

function over(share, warning = 0.75, critical = 0.9) {
  return share >= critical ? "critical" : share >= warning ? "warning" : "";
}

function badges(member, view) {
  const found = [];
  if (member.identity === view.leader?.identity && view.leader.live !== false) found.push(["leader", "fleet leader"]);
  if (member.identity === view.observer?.identity) found.push(["self", "shows this page"]);
  if (member.vacated) found.push(["critical", "dead"]);
  else if (member.live === false) found.push(["critical", "silent"]);
  if (member.draining && !member.vacated) found.push(["warning", "leaving"]);
  if (member.stats.ready === 0 && !member.vacated) found.push(["warning", "not ready"]);
  if (member.shards && view.shard_count && member.shards !== view.shard_count) found.push(["warning", "standby"]);
  else if (member.namespaces && view.namespaces && member.namespaces !== view.namespaces) found.push(["warning", "standby"]);
  if (member.damage) found.push(["warning", "damaged Lease"]);
  return found.map(([kind, text]) => el("span", { class: "badge " + kind, text }));
}

function cells(member, { view, shards }) {
  const gone = isGone(member);
  const stats = gone ? {} : member.stats;
  const history = gone ? [] : remember(member);
  const lifetime = member.lease_seconds ?? 6;
  const age = member.heartbeat_age_seconds;
  const cpuLimit = stats.cpu_limit_cores ?? 1;
  const memoryShare = stats.memory_limit_bytes ? stats.memory_bytes / stats.memory_limit_bytes : null;
  const headAge = stats.queue_head_age_seconds ?? 0;
  const value = (text, more) => [el("span", { class: "value", text }), ...(more ? [el("span", { class: "more", text: more })] : [])];
  const silent = gone && Number.isFinite(age) ? "since " + clock(Date.parse(view.observer?.at) - 1000 * age, Date.parse(view.observer?.at)) : "";
  const revision = member.revision ? [el("span", { class: "more", text: "revision " + member.revision })] : [];
  return [
    [el("span", { class: "who" }, swatch(member.identity), el("span", { class: "name", text: member.identity })), el("span", { class: "badges" }, ...badges(member, view), ...revision)],
    ...(gone ? [value(member.vacated ? "dead" : seconds(age), silent), value(String(member.held)), ...Array.from({ length: 4 }, () => value("–"))] : [
    [...value(seconds(age), "of " + lifetime + " s"), meter((age ?? 0) / lifetime, over((age ?? 0) / lifetime, 0.5, 1))],
    [...value(String(member.held), "of " + shards.length), meter(shards.length ? member.held / shards.length : 0)],
    [...value(whole(stats.queue_depth), headAge >= 0.1 ? "oldest " + seconds(headAge) : "due now"), spark(history, "queue", 5)],
    [...value(whole(stats.busy), "of " + whole(stats.workers)), meter(stats.workers ? stats.busy / stats.workers : 0)],
    [...value(percent(stats.cpu_cores), stats.cpu_limit_cores ? "of " + percent(cpuLimit) : "of a core"), spark(history, "cpu", cpuLimit / 2)],
    [...value(bytes(stats.memory_bytes), memoryShare === null ? "no limit" : "of " + bytes(stats.memory_limit_bytes)), meter(memoryShare ?? 0, over(memoryShare ?? 0))],
    ]),
  ];
}

function showReplicas(all) {
  const heads = [...document.querySelectorAll("#replicas thead th")].map((head) => head.textContent);
  for (const identity of [...rows.keys()]) {
    if (all.byName.has(identity)) continue;
    rows.get(identity).remove();
    rows.delete(identity);
    histories.delete(identity);
  }
  all.members.forEach((member, place) => {
    let row = rows.get(member.identity);
    if (!row) {
      row = el("tr", {}, ...heads.map((head, i) => i === 0 ? el("th", { scope: "row" }) : el("td", { "data-head": head })));
      rows.set(member.identity, row);
    }
    row.className = isGone(member) ? "gone" : "";
    cells(member, all).forEach((content, i) => row.children[i].replaceChildren(...content));
    const table = byId("replica-rows");
    if (table.children[place] !== row) table.insertBefore(row, table.children[place] ?? null);
  });
}

function showClusters({ view }) {
  const phases = Object.entries(view.clusters ?? {}).filter(([phase, count]) => count || phase !== "Unknown");
  const total = phases.reduce((all, [, count]) => all + count, 0);
  const order = ["Ready", "Creating", "Scaling", "Degraded", "Terminating", "Unknown"];
  phases.sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  const bar = el("div", { class: "stack", "aria-hidden": "true" });
  for (const [phase, count] of phases.filter(([, count]) => count > 0)) {
    const part = el("span", { class: "phase-" + phase.toLowerCase() });
    part.style.setProperty("flex-grow", String(count));
    bar.append(part);
  }
  const list = el("ul", {}, ...phases.map(([phase, count]) => el("li", { class: count ? "" : "zero" },
    el("span", { class: "key phase-" + phase.toLowerCase(), "aria-hidden": "true" }), el("span", { text: phase }), el("strong", { text: whole(count) }))));
  byId("phases").replaceChildren(bar, list, ...(total ? [] : [el("p", { class: "quiet", text: "There are none." })]));
  showUnhealthy(view);
}

/** The reasons. The list stays as it is while nothing changes, so that a link's target keeps its mark. */
function showUnhealthy(view) {
  const unhealthy = view.unhealthy ?? [];
  const key = JSON.stringify(unhealthy);
  if (byId("unhealthy").dataset.key === key) return;
  byId("unhealthy").dataset.key = key;
  byId("unhealthy").replaceChildren(...unhealthy.map((found) => el("li", { id: rowOf(found.namespace + "/" + found.name) },
    el("strong", { class: "name", text: found.namespace + "/" + found.name }), el("span", { class: "badge warning", text: found.reason || "Degraded" }),
    el("code", { text: "kubectl dbc explain -n " + found.namespace + " " + found.name }))));
}

/** The latest first, each with its shards. */
function grouped(moves) {
  const groups = [];
  for (const move of moves) {
    const group = groups.find((known) => known.from === move.from && known.to === move.to && known.why === move.why && move.seconds_ago - known.oldest <= GROUP_SECONDS);
    if (group) {
      group.shards.push(move.shard);
      group.oldest = move.seconds_ago;
    } else groups.push({ ...move, shards: [move.shard], oldest: move.seconds_ago });
  }
  return groups;
}

function showMoves({ view, names }) {
  const moves = view.moves ?? [];
  const groups = grouped(moves);
  const now = Date.parse(view.observer?.at);
  const shown = groups.slice(0, MOVES_SHOWN).map((move) => el("li", {},
    el("time", { datetime: move.at }, seconds(move.seconds_ago) + " ago", el("span", { class: "clock", text: clock(move.at, now) })),
    el("span", { class: "path" }, el("span", { class: "shard", text: shardList(move.shards) + ":" }), who(move.from, names), el("span", { class: "arrow", text: "→" }), who(move.to, names)),
    el("span", { class: "why why-" + (move.why in MOVE_REASONS ? move.why : "unknown"), text: MOVE_REASONS[move.why] ?? move.why })));
  const since = view.observer ? seconds(view.observer.watching_seconds) : "";
  if (!moves.length) shown.push(el("li", { class: "quiet", text: since ? "None in the " + since + " that this replica has watched." : "None observed." }));
  const earlier = groups.slice(MOVES_SHOWN).reduce((all, move) => all + move.shards.length, 0);
  if (earlier) shown.push(el("li", { class: "quiet", text: "and " + plural(earlier, "earlier move") }));
  byId("move-rows").replaceChildren(...shown);
}

function showChecks({ view }) {
  const checks = view.observer?.checks ?? [];
  byId("checks").replaceChildren(...checks.map((check) => {
    const level = !check.problem ? "ok" : check.gate ? "critical" : "note";
    return el("li", { class: level + (check.problem ? " long" : "") }, mark(level), el("strong", { text: check.name }), el("span", {}, ...marked(check.problem ?? "ok")));
  }));
}

function showShards({ view, shards, odd, names }) {
  if (!byId("all-shards").open) return;
  const now = Date.parse(view.observer?.at);
  const held = (lease) => (lease?.held_seconds > 0 ? [seconds(lease.held_seconds), el("span", { class: "clock", text: "since " + clock(now - 1000 * lease.held_seconds, now) })] : ["–"]);
  const row = (number, lease, holder, state, bad) => el("tr", { class: bad ? "bad" : "" }, el("th", { scope: "row", text: number }),
    el("td", { text: lease?.buckets ?? "–" }), el("td", {}, who(holder, names)), el("td", {}, ...held(lease)),
    el("td", { text: String(lease?.epoch ?? "–") }), el("td", {}, ...(lease?.successor ? [who(lease.successor, names)] : ["–"])), el("td", { text: state.join(", ") || "held" }));
  const known = shards.map((shard) => row(String(shard.number), shard.lease, shard.holder, shard.state, !shard.owned));
  const others = odd.map((lease) => row(lease.lease, lease, lease.holder, [lease.damage ?? ""], true));
  byId("shard-rows").replaceChildren(...known, ...others);
}

function show(view) {
  fleet = digest(view);
  for (const part of [showVerdict, showRing, showReplicas, showClusters, showMoves, showChecks, showShards]) part(fleet);
  const observer = view.observer;
  say(byId("seen-by"), observer ? "as observed by " + observer.identity + " at " + clock(observer.at, Date.parse(observer.at)) + " · version " + observer.version : "");
}

// The connection: one request at a time, each with a deadline, increasing pauses, none while the page is hidden.

function showLink() {
  const age = link.answered === null ? null : performance.now() - link.answered;
  const old = link.failures > 0 || (age !== null && age > STALE_MS && !document.hidden);
  const state = link.answered === null && !link.failures ? "connecting" : old ? "stale" : "live";
  document.body.dataset.link = state;
  say(byId("link-text"), { connecting: "Connecting", live: "Live", stale: "Not live" }[state]);
  const stale = byId("stale");
  stale.hidden = state !== "stale";
  if (state === "stale") {
    const what = age === null ? "No data yet: " : "This view is " + seconds(age / 1000) + " old, of " + clock(Date.now() - age) + ": ";
    say(stale, what + (link.reason || "no answer yet") + ". Retrying.");
    if (age !== null && !document.title.startsWith("(old)")) document.title = "(old) " + document.title;
  }
}

async function ask() {
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), PATIENCE_MS);
  try {
    const answer = await fetch(location.pathname, { headers: { Accept: "application/json" }, cache: "no-store", signal: patience.signal });
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 200).trim() || "the replica answered " + answer.status);
    const view = await answer.json();
    try {
      show(view);
    } catch (error) {
      throw new Error("this page cannot show the answer (" + error.message + "); reload it");
    }
    link.answered = performance.now();
    link.failures = 0;
    link.reason = "";
  } catch (error) {
    link.failures += 1;
    link.reason = error.name === "AbortError" ? "the replica did not answer within " + PATIENCE_MS / 1000 + " s"
      : error instanceof TypeError ? "the replica does not answer" : error.message;
  } finally {
    clearTimeout(timer);
  }
}

async function poll() {
  clearTimeout(link.timer);
  link.timer = null;
  if (document.hidden || link.asking) return;
  link.asking = true;
  await ask();
  link.asking = false;
  showLink();
  link.timer = setTimeout(poll, Math.min(PAUSE_MS_MAX, POLL_MS * 2 ** Math.max(0, link.failures - 1)));
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
byId("all-shards").addEventListener("toggle", () => { if (fleet) showShards(fleet); });
setInterval(showLink, 1000);
poll();
