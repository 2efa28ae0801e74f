// The page's only script: the form, the mask's brush, and what comes back while it is drawn.
import { Easel } from "./easel.js";

const $ = (id) => document.getElementById(id);
const room = document.body.dataset.room;
const form = $("form");
const fields = [...form.querySelectorAll("[data-kind]")];
const field = (name) => fields.find((one) => one.dataset.name === name);
const easels = new Map(); // of masks, by field

// Server ------------------------------------------------------------------------------------------

async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  const text = await answer.text();
  let told = {};
  try { told = JSON.parse(text); } catch { told = { error: text }; }
  if (!answer.ok) throw Object.assign(new Error(told.error || `the server answers ${answer.status}`), { status: answer.status });
  return told;
}

async function upload(blob) {
  const most = Number(document.body.dataset.mostBytes);
  if (blob.size > most) throw new Error(`the file is larger than ${most >> 20} MiB: give a smaller one`);
  const headers = { "Content-Type": "application/octet-stream" };
  return ask("/uploads", { method: "POST", body: blob, headers });
}

function complain(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
  // On a narrow screen it stands below the form, out of sight.
  if (message) $("error").scrollIntoView({ block: "nearest" });
}

// Pictures that are given -------------------------------------------------------------------------

function showPicture(one, key) {
  one.dataset.key = key;
  const picture = one.querySelector(".drop img");
  picture.hidden = !key;
  one.querySelector(".remove").hidden = !key;
  if (key) {
    picture.src = `/uploads/${key}`;
    picture.alt = `${one.dataset.name.replaceAll("_", " ")}, as given`;
  } else picture.removeAttribute("src");
  one.querySelector(".drop span").textContent = key ? "another" : one.dataset.kind === "mask" ? "Give a mask; or a picture, and paint on it" : "Choose or drop a picture";
  if (one.dataset.kind === "mask" && key) easels.get(one)?.load(`/uploads/${key}`);
  for (const [mask, easel] of easels)
    if (mask.dataset.paints === one.dataset.name) easel.show(key ? `/uploads/${key}` : "");
}

async function givePicture(one, file) {
  complain("");
  try {
    const { key } = await upload(file);
    showPicture(one, key);
    for (const mask of easels.keys())
      if (mask.dataset.paints === one.dataset.name) unmask(mask);
  } catch (error) { complain(`--${one.dataset.name}: ${error.message}`); }
}

function unmask(one) {
  easels.get(one).clear();
  showPicture(one, "");
}

function preparePicture(one) {
  const drop = one.querySelector(".drop"), input = one.querySelector("input[type=file]");
  if (one.dataset.kind === "mask") easels.set(one, new Easel(one.querySelector(".easel"), () => {
    one.dataset.key = ""; // what is painted counts, once it is asked for
    one.querySelector(".drop img").hidden = true;
  }));
  input.addEventListener("change", () => { if (input.files[0]) givePicture(one, input.files[0]); input.value = ""; });
  one.querySelector(".remove").addEventListener("click", () => { if (easels.has(one)) unmask(one); else showPicture(one, ""); input.focus(); });
  drop.querySelector("img").addEventListener("error", (event) => {
    if (!event.target.src) return;
    showPicture(one, "");
    complain(`--${one.dataset.name}: that picture is not kept any more: give it again`);
  });
  for (const name of ["dragover", "dragleave", "drop"]) drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) givePicture(one, event.dataTransfer.files[0]);
  });
}

// The form's values: {name: [text, …]} ------------------------------------------------------------

async function collect() {
  const values = {};
  for (const one of fields) {
    const { kind, name } = one.dataset;
    let texts = [];
    if (kind === "switch") texts = one.querySelector("input").checked ? ["on"] : [];
    else if (kind === "texts") texts = [...one.querySelectorAll("li input")].map((input) => input.value);
    else if (kind === "picture" || kind === "mask") {
      const easel = easels.get(one);
      texts = [one.dataset.key];
      if (easel?.isPainted && !one.dataset.key) {
        const { strokes } = easel;
        texts = [(await upload(await easel.mask())).key];
        if (easel.strokes === strokes) [one.dataset.key] = texts; // else it was painted on meanwhile
      }
    } else if (kind === "slider") texts = [one.querySelector("input[type=number]").value];
    else texts = [one.querySelector("input, select, textarea").value];
    texts = texts.filter((text) => text.trim());
    if (texts.length) values[name] = texts;
  }
  return values;
}

function fill(values) {
  for (const one of fields) {
    const { kind, name } = one.dataset, texts = values[name] || [];
    if (kind === "switch") one.querySelector("input").checked = texts[0] === "on";
    else if (kind === "texts") setTexts(one, texts);
    else if (kind === "picture" || kind === "mask") {
      if (kind === "mask") easels.get(one)?.clear();
      showPicture(one, texts[0] || "");
    } else for (const input of one.querySelectorAll("input, select, textarea")) input.value = texts[0] ?? "";
  }
}

const query = (values) => new URLSearchParams(Object.entries(values).flatMap(([name, texts]) => texts.map((text) => [name, text]))).toString();

function setTexts(one, texts) {
  const list = one.querySelector("ol"), first = list.querySelector("li");
  while (list.children.length > 1) list.lastChild.remove();
  first.querySelector("input").value = texts[0] ?? "";
  for (const text of texts.slice(1)) addText(one, text);
}

function addText(one, text = "") {
  const list = one.querySelector("ol"), row = list.querySelector("li").cloneNode(true);
  const input = row.querySelector("input");
  input.value = text;
  input.setAttribute("aria-label", `${one.dataset.name.replaceAll("_", " ")} ${list.children.length + 1}`);
  list.append(row);
  return input;
}

// Requests: what is shown, and what came before ---------------------------------------------------

let jobs = []; // newest first: {id, values, told}
let current = null, chosen = null, follows = true, stream = null;

const address = (job, number) => `/jobs/${job.id}/results/${number}`;
const picturesOf = (job) => job.told.results.map((result, number) => ({ ...result, number })).filter((one) => one.picture);
const isOver = (job) => ["done", "failed", "cancelled"].includes(job.told.state);
const isGone = (error) => error.status === 404; // any other failure may pass
const remember = () => sessionStorage.setItem(`vljax ${room}`, JSON.stringify(jobs.map(({ id, values }) => ({ id, values }))));

async function draw() {
  complain("");
  try {
    const values = await collect();
    history.replaceState(null, "", `?${query(values)}`);
    const headers = { "Content-Type": "application/json" };
    const { id } = await ask(`/rooms/${room}/draw`, { method: "POST", body: JSON.stringify(values), headers });
    const job = { id, values, told: { state: "waiting", results: [], place: 0 } };
    jobs = [job, ...jobs].slice(0, 40);
    remember();
    open(job);
    // On a narrow screen what comes is below the form.
    if (window.innerWidth <= 800) $("results").scrollIntoView({ block: "start" });
  } catch (error) { complain(error.message); }
}

function open(job) {
  stream?.close();
  [current, chosen, follows] = [job, null, true];
  show();
  if (!isOver(job)) follow(job);
}

function follow(job) {
  stream = new EventSource(`/jobs/${job.id}/events`);
  const own = stream;
  stream.onmessage = (event) => { job.told = JSON.parse(event.data); if (isOver(job)) own.close(); if (job === current) show(); };
  stream.onerror = async () => {
    if (own.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    await look(job);
    if (own !== stream) return;
    show();
    if (!isOver(job)) setTimeout(() => { if (own === stream) follow(job); }, 2000);
  };
}

async function look(job) {
  try { job.told = await ask(`/jobs/${job.id}`); } catch (error) { if (isGone(error)) job.told = { ...job.told, state: "failed", message: error.message }; }
}

// Requests that are not looked at are asked about now and then: browsers open few streams. So are
// those of other rooms, for the server draws only what somebody waits for.
async function watchOthers() {
  for (const job of jobs.filter((one) => one !== current && !isOver(one))) {
    await look(job);
    showHistory();
  }
  for (const job of elsewhere.filter((one) => !isOver(one))) await look(job);
  setTimeout(watchOthers, 2000);
}

function status({ state, what, seconds, message }) {
  if (state === "waiting") return "Waiting";
  if (state === "drawing") return what ? "Drawing" : "Preparing; a first drawing of its size is compiled";
  if (state === "done") return `Done in ${seconds} s`;
  if (state === "cancelled") return message ? `Cancelled: ${message}` : "Cancelled";
  return message ? "It could not be drawn" : "Failed";
}

// How far it is; apart from the state, which is read aloud whenever it changes.
function tally({ state, place, what, done, total }) {
  if (state === "waiting" && place) return `${place} before you`;
  return state === "drawing" && what ? `${what} · ${done} of ${total} steps` : "";
}

function show() {
  const { told } = current;
  if ($("told").textContent !== status(told)) $("told").textContent = status(told);
  $("tally").textContent = tally(told);
  $("cancel").hidden = isOver(current);
  $("progress").hidden = isOver(current);
  if (told.total && told.state === "drawing") $("progress").value = told.done / told.total; else $("progress").removeAttribute("value");
  $("compiled").textContent = `${told.compiled || 0} programs compiled for this request`;
  if (told.state === "failed" && told.message) complain(told.message);
  const pictures = picturesOf(current);
  if (follows && pictures.length) choose(isOver(current) ? best(pictures) : pictures.at(-1));
  if (!pictures.length) $("stage").hidden = true;
  showStrip(pictures);
  showTexts();
  showHistory();
}

// Of what was made of a picture, the first that is no step on the way; else the last, a sheet of all.
function best(pictures) {
  if (!given(current)) return pictures.at(-1);
  return pictures.find((one) => !field(one.name.replace(/\.png$/, ""))) || pictures[0];
}

function choose(one) {
  if (chosen?.job === current && chosen.number === one.number) return;
  chosen = { ...one, job: current };
  $("stage").hidden = false;
  setImage($("after"), address(current, one.number), one.label || one.name, one);
  $("caption").textContent = one.label;
  $("download").href = `${address(current, one.number)}?download`;
  $("download").download = `${room}_${one.name}`;
  $("made").querySelector("dl").replaceChildren(...Object.entries(one.settings).flatMap(([name, text]) => [element("dt", name.replaceAll("_", " ")), element("dd", text)]));
  $("onward").hidden = !fields.some((one) => one.dataset.kind === "picture");
  compare($("compare").getAttribute("aria-pressed") === "true");
  markChosen();
}

function setImage(image, source, alt, { width, height }) {
  image.src = source;
  image.alt = alt;
  image.width = width;
  image.height = height;
  // Small pictures are shown large, by whole pixels.
  const most = Math.min(640, $("results").clientWidth - 34), factor = Math.max(1, Math.floor(Math.min(most / width, 560 / height)));
  image.classList.toggle("small", factor > 1);
  $("frame").style.setProperty("--shown", `${width * factor}px`);
}

const given = (job) => { const one = fields.find(({ dataset }) => dataset.kind === "picture" && job.values[dataset.name]); return one && job.values[one.dataset.name][0]; };

// What to hold a picture against: what was given, or what the request before made.
function before() {
  if (given(current)) return { source: `/uploads/${given(current)}`, alt: "the picture as it was given" };
  const earlier = jobs.slice(jobs.indexOf(current) + 1).find((job) => picturesOf(job).some((one) => one.name === chosen.name));
  if (!earlier) return null;
  const { number } = picturesOf(earlier).find((one) => one.name === chosen.name);
  return { source: address(earlier, number), alt: "the same picture of the request before" };
}

function compare(wanted) {
  const other = before(), shown = wanted && other !== null;
  $("compare").disabled = other === null;
  $("compare").setAttribute("aria-pressed", String(Boolean(wanted)));
  $("before").hidden = $("wipe").hidden = !shown;
  if (shown) setImage($("before"), other.source, other.alt, chosen);
}

function element(kind, text = "", attributes = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function showStrip(pictures) {
  const strip = $("strip"), key = current.id;
  if (strip.dataset.key !== key) { strip.replaceChildren(); strip.dataset.key = key; }
  for (const one of pictures.slice(strip.children.length)) {
    const button = element("button", "", { type: "button", "data-number": one.number });
    const small = element("img", "", { src: address(current, one.number), alt: `${one.name} ${one.label}`.trim(), class: one.width < 76 ? "small" : "" });
    button.append(small);
    button.addEventListener("click", () => { follows = false; choose(one); });
    const row = element("li");
    row.append(button);
    strip.append(row);
  }
  strip.hidden = pictures.length < 2;
  markChosen();
}

function markChosen() {
  for (const button of $("strip").querySelectorAll("button")) button.setAttribute("aria-current", String(Number(button.dataset.number) === chosen?.number));
}

function showTexts() {
  const box = $("texts"), results = current.told.results.map((one, number) => ({ ...one, number })).filter((one) => !one.picture);
  if (box.dataset.key !== current.id) { box.replaceChildren(); box.dataset.key = current.id; }
  for (const one of results.slice(box.children.length)) {
    const made = element("div", "", { class: "text" }), more = element("details"), all = element("pre");
    made.append(element("p", one.label));
    more.append(element("summary", one.name), all);
    more.addEventListener("toggle", async () => { if (more.open && !all.textContent) all.textContent = await (await fetch(address(current, one.number))).text(); });
    made.append(more, element("a", "Download", { class: "button", href: `${address(current, one.number)}?download`, download: "" }));
    box.append(made);
  }
}

// A button stays the same while its request goes on, lest a click or the focus on it be lost.
function showHistory() {
  $("past").hidden = jobs.length < 2;
  const list = $("history");
  for (const row of [...list.children]) if (!jobs.some((job) => job.row === row)) row.remove();
  jobs.forEach((job, place) => {
    job.row ??= historyRow(job);
    if (list.children[place] !== job.row) list.insertBefore(job.row, list.children[place] || null);
    const pictures = picturesOf(job), button = job.row.firstChild;
    const looks = `${job.told.state} ${pictures.length} ${job === current}`;
    if (button.dataset.looks === looks) return;
    button.dataset.looks = looks;
    const words = Object.values(job.values).flat().find((text) => /\s|[a-z]{3}/i.test(text) && !/^[0-9a-f]{20}$/.test(text)) || "";
    const label = words || `seed ${job.values.seed || 0}`;
    button.setAttribute("aria-current", String(job === current));
    button.setAttribute("aria-label", `${label}, ${job.told.state}`);
    button.replaceChildren(pictures.length ? element("img", "", { src: address(job, bestOf(job, pictures).number), alt: "" }) : element("span", job.told.state, { class: "blank" }), element("span", label, { class: "words" }));
  });
}

function historyRow(job) {
  const row = element("li"), button = element("button", "", { type: "button" });
  button.addEventListener("click", () => { complain(""); fill(job.values); history.replaceState(null, "", `?${query(job.values)}`); open(job); });
  row.append(button);
  return row;
}

function bestOf(job, pictures) { const kept = current; current = job; const one = best(pictures); current = kept; return one; }

// Going on from a picture: it is given, and the next turn begins where this one ended.
async function onward() {
  try {
    const { key } = await upload(await (await fetch($("after").src)).blob());
    showPicture(fields.find((one) => one.dataset.kind === "picture"), key);
    for (const mask of easels.keys()) unmask(mask);
    for (const one of fields.filter(({ dataset }) => dataset.kind === "texts")) setTexts(one, []);
    const turn = field("turn")?.querySelector("input");
    if (turn && chosen.settings.turn) turn.value = Number(chosen.settings.turn) + 1;
    form.querySelector("textarea, .texts input")?.focus();
    form.scrollIntoView({ block: "start" });
  } catch (error) { complain(error.message); }
}

// Start -------------------------------------------------------------------------------------------

for (const one of fields) {
  const { kind } = one.dataset;
  if (kind === "picture" || kind === "mask") preparePicture(one);
  if (kind === "texts") {
    one.querySelector(".more").addEventListener("click", () => addText(one).focus());
    one.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.ctrlKey && event.target.matches("input")) { event.preventDefault(); addText(one).focus(); } });
  }
  if (kind === "slider") {
    const [range, number] = one.querySelectorAll("input");
    range.addEventListener("input", () => { number.value = range.value; });
    number.addEventListener("input", () => { range.value = number.value; });
  }
}
for (const one of fields.filter(({ dataset }) => dataset.key)) showPicture(one, one.dataset.key);
form.addEventListener("submit", (event) => { event.preventDefault(); draw(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); draw(); }
  if (event.key === "Escape" && current && !isOver(current)) $("cancel").click();
});
$("again").addEventListener("click", () => { field("seed").querySelector("input").value = Math.floor(Math.random() * 2 ** 31); draw(); });
$("again").hidden = !field("seed");
$("link").addEventListener("click", async () => {
  try {
    history.replaceState(null, "", `?${query(await collect())}`);
    await navigator.clipboard.writeText(location.href);
    $("link").textContent = "Copied";
  } catch { $("link").textContent = "See the address"; }
  setTimeout(() => { $("link").textContent = "Copy link"; }, 2000);
});
$("cancel").addEventListener("click", () => ask(`/jobs/${current.id}/cancel`, { method: "POST" }).catch((error) => complain(error.message)));
$("compare").addEventListener("click", () => compare($("compare").getAttribute("aria-pressed") !== "true"));
$("wipe").querySelector("input").addEventListener("input", (event) => $("frame").style.setProperty("--wipe", `${event.target.value}%`));
$("onward").addEventListener("click", onward);

// What this tab asked before, as far as the server still has it; and the address's own result.
const unknown = { state: "waiting", results: [], place: 0 };
const remembered = (name) => JSON.parse(sessionStorage.getItem(name) || "[]").map((job) => ({ ...job, told: unknown }));
const elsewhere = Object.keys(sessionStorage).filter((name) => name.startsWith("vljax ") && name !== `vljax ${room}`).flatMap(remembered);
for (const job of remembered(`vljax ${room}`)) {
  try { job.told = await ask(`/jobs/${job.id}`); } catch (error) { if (isGone(error)) continue; }
  jobs.push(job);
}
const same = jobs.find((job) => `?${query(job.values)}` === location.search);
if (same) open(same); else if (jobs.length) showHistory();
if (!same && jobs.length) $("past").hidden = false;
watchOthers();
