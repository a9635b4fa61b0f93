// The page: takes an image, asks the API of the same server, and shows the answers. Addresses are relative, so that
// the page works behind any prefix. A file's bytes and name stay in this tab but for the bytes sent to /v1.
import * as words from "./words.js";
import {card, make, unbroken} from "./nodes.js";

const LOOK_MS = 5000;
const NEIGHBOURS = 5;
const find = (name, where = document) => where.querySelector(`[data-${name}]`);

class Refusal extends Error {}

let views = []; // one for each bundle
let shown = null; // the image on the page: {data, preview}
let built = null; // resolves when the bundles are known
const isBuilt = new Promise(resolve => { built = resolve; });

// The server.

async function ask(path, body) {
  const options = body ? {method: "POST", body, headers: {"content-type": "application/octet-stream"}} : {};
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    look();
    throw new Refusal(words.GONE);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refusal(words.refusal(response.status, problem, response.headers.get("retry-after")));
}

async function look() {
  const isThere = await fetch("health", {cache: "no-store"}).then(response => response.ok, () => false);
  const place = find("gone");
  if (place.hidden === isThere) return;
  place.hidden = isThere;
  place.textContent = isThere ? "" : words.GONE;
}

async function start() {
  try {
    const bundles = await (await ask("v1/bundles")).json();
    build(bundles);
    built(bundles[0].most_bytes);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refuse(error.message);
    setTimeout(start, LOOK_MS);
  }
}

function build(bundles) {
  find("error").hidden = true; // an image that was chosen meanwhile stays
  find("accepted").textContent = words.accepted(bundles[0].most_bytes);
  document.body.classList.toggle("many", bundles.length > 1);
  views = bundles.map(bundle => new View(bundle, bundles.length > 1));
  find("bundles").replaceChildren(...views.map(view => view.section));
  const {phantoms} = bundles[0], button = find("synthetic");
  let next = Math.floor(Math.random() * phantoms);
  button.hidden = !phantoms;
  button.onclick = async () => {
    next = (next + 1) % phantoms;
    try {
      take(await (await ask(`page/phantom-${next}.png`)).blob(), words.SYNTHETIC);
    } catch (error) { refuse(error.message); }
  };
}

// The image.

async function take(file, name) {
  forget();
  const mine = shown = {preview: URL.createObjectURL(file)};
  clear();
  find("name").textContent = name;
  say(words.READING);
  try {
    const most = await isBuilt;
    if (!file.size) throw new Refusal(words.EMPTY);
    if (file.size > most) throw new Refusal(words.tooLarge(file.size, most));
    mine.data = await file.arrayBuffer().catch(() => { throw new Refusal(words.UNREADABLE); });
    const isMine = () => shown === mine;
    const answers = await Promise.all(views.map(view => view.predict(mine, isMine)));
    if (!isMine()) return;
    document.body.classList.add("has-image");
    say(views.map((view, number) => words.spoken(view.bundle, answers[number])).join(" "));
    views.forEach((view, number) => view.show(mine, answers[number]));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (shown === mine) refuse(error.message);
  }
}

/** No image is shown but the reason; an empty reason is none. */
function refuse(reason) {
  forget();
  document.body.classList.remove("has-image");
  clear();
  say("");
  const place = find("error");
  place.textContent = reason;
  place.hidden = !reason;
}

function forget() {
  if (shown) URL.revokeObjectURL(shown.preview);
  shown = null;
}

function clear() {
  find("error").hidden = true;
  for (const view of views) view.clear();
}

function say(text) {
  const place = find("status");
  place.textContent = text;
  place.classList.toggle("sr", text !== words.READING);
}

// A bundle.

class View {
  constructor(bundle, isOneOfMany) {
    this.bundle = bundle;
    this.isOneOfMany = isOneOfMany;
    this.last = {}; // route -> the last question; one at a time, so that no answer overtakes another
    this.section = document.importNode(document.getElementById("bundle").content, true).firstElementChild;
    const fill = (name, ...children) => this.find(name).replaceChildren(...children);
    const spaced = bundle.labels.flatMap(label => [make("span", {className: "class"}, label), " "]);
    const options = names => names.map(value => make("option", {value}, value));
    fill("title", ...(isOneOfMany ? [make("span", {className: "key"}, bundle.name), " "] : []), bundle.title);
    this.section.setAttribute("aria-label", this.find("title").textContent);
    fill("labels", ...spaced);
    fill("facts", ...words.facts(bundle).map(fact => make("li", {}, fact)));
    fill("promise", words.promise(bundle));
    fill("legend", words.legend(bundle));
    fill("class", ...options(bundle.labels));
    fill("method", ...options(bundle.methods));
    this.find("method").parentElement.hidden = bundle.methods.length < 2;
    for (const name of ["class", "method"]) this.find(name).onchange = () => this.explain();
    for (const name of ["opacity", "switch"]) this.find(name).oninput = () => this.tune();
    this.ask("card").then(response => response.text()).then(
      text => fill("card", ...card(text)), error => fill("card", error.message));
  }

  find(name) { return find(name, this.section); }

  ask(route, values = {}, body = null) {
    return ask(`${route}?${new URLSearchParams({bundle: this.bundle.name, ...values})}`, body);
  }

  /** What a route answers, once its earlier questions are answered; null where it is not wanted any more. */
  inTurn(route, values, image, isWanted) {
    const question = async () => isWanted() ? (await this.ask(route, values, image.data)).json() : null;
    const answer = (this.last[route] ?? Promise.resolve()).then(question);
    this.last[route] = answer.catch(() => {});
    return answer;
  }

  async predict(image, isWanted) {
    const told = await this.inTurn("v1/predict", {neighbours: NEIGHBOURS}, image, isWanted);
    return told?.pictures[0];
  }

  clear() {
    this.image = null;
    for (const name of ["answer", "near"]) this.find(name).replaceChildren();
    this.find("result").hidden = true;
    this.find("start").hidden = shown !== null && document.body.classList.contains("has-image");
  }

  show(image, answer) {
    this.image = image;
    this.find("start").hidden = true;
    this.find("result").hidden = false;
    this.find("answer").replaceChildren(...this.answer(answer));
    this.find("near").replaceChildren(...near(answer.neighbours ?? []));
    this.find("class").value = answer.label;
    for (const name of ["heat", "outline", "scale"]) this.find(name).hidden = true;
    const picture = this.find("picture");
    picture.onerror = () => { picture.hidden = true; }; // DICOM: the server's reading comes with the heat map
    Object.assign(picture, {hidden: false, alt: words.CHOSEN, src: image.preview});
    this.find("caption").textContent = "";
    this.explain();
  }

  answer(answer) {
    const {kind, headline, detail} = words.verdict(answer);
    const warning = words.warning(this.isOneOfMany ? this.bundle.name : "");
    const said = make("div", {className: answer.ood ? "said void" : "said"},
      make("h3", {className: "verdict"}, ...unbroken(headline)),
      make("p", {className: "detail"}, ...unbroken(detail)),
      this.bars(answer),
      make("p", {className: "fine"}, words.promise(this.bundle)),
      make("p", {className: "fine"}, answer.ood === null ? words.NO_OOD : ""));
    said.dataset.set = kind;
    return answer.ood ? [make("p", {className: "ood", role: "alert"}, make("strong", {}, warning)), said] : [said];
  }

  bars({scores, set}) {
    const columns = words.COLUMNS.slice(0, set ? 3 : 2);
    const heads = columns.map(text => make("th", {scope: "col", role: "columnheader"}, text));
    const rows = Object.entries(scores).sort(([, a], [, b]) => b - a).map(([name, score]) => {
      const isKept = !set || set.includes(name), exact = score.toFixed(6), bar = make("span");
      bar.style.width = `${100 * score}%`;
      const track = make("td", {className: "track", ariaHidden: "true"}, bar);
      const kept = make("td", {className: "kept", role: "cell"}, words.kept(isKept));
      const number = make("td", {className: "number", role: "cell", title: exact}, words.chance(score));
      const row = make("tr", {className: isKept ? "" : "out", role: "row"},
        make("th", {scope: "row", role: "rowheader"}, name), number, ...(set ? [kept] : []), track);
      Object.assign(row.dataset, {label: name, score: exact});
      return row;
    });
    return make("table", {className: "bars", role: "table"}, make("caption", {}, words.scale(this.bundle)),
      make("thead", {className: "sr", role: "rowgroup"}, make("tr", {role: "row"}, ...heads)),
      make("tbody", {role: "rowgroup"}, ...rows));
  }

  // The heat map.

  async explain() {
    const image = this.image, wait = this.find("wait"), stage = this.find("stage");
    const chosen = () => ({class: this.find("class").value, method: this.find("method").value});
    const asked = chosen();
    const isMine = () => shown === image && chosen().class === asked.class && chosen().method === asked.method;
    wait.textContent = words.EXPLAINING;
    wait.hidden = false;
    stage.ariaBusy = "true";
    this.find("tools").disabled = false;
    let told, reason = "";
    try {
      told = await this.inTurn("v1/explain", asked, image, isMine);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      reason = error.message;
    }
    if (!isMine()) return;
    stage.ariaBusy = "false";
    wait.textContent = reason;
    wait.hidden = !reason;
    if (told) this.lay(told);
  }

  lay(told) {
    for (const [name, alt] of Object.entries(words.layers(told))) {
      const image = this.find(name);
      Object.assign(image, {alt, hidden: !told[name]});
      if (told[name]) image.src = told[name];
      else image.removeAttribute("src");
    }
    this.find("scale").hidden = false;
    this.find("switch").disabled = !told.outline;
    this.find("caption").textContent = words.caption(told);
    this.tune();
  }

  tune() {
    const range = this.find("opacity"), text = words.opacity(range.value);
    this.find("percent").textContent = range.ariaValueText = text;
    this.find("heat").style.opacity = range.value / 100;
    this.find("outline").style.visibility = this.find("switch").checked ? "visible" : "hidden";
  }
}

function near(neighbours) {
  if (!neighbours.length) return [];
  const items = neighbours.map(({label, similarity, picture}) => make("li", {},
    make("img", {src: picture, alt: words.trainingImage(label)}),
    make("span", {className: "near-label"}, label),
    make("span", {className: "near-number", title: similarity.toFixed(6)},
      make("span", {className: "sr"}, words.SIMILARITY), similarity.toFixed(3))));
  const title = make("h3", {className: "near-title"}, words.SIMILAR,
    make("span", {className: "fine"}, words.AND_SIMILARITY));
  return [title, make("ul", {className: "near"}, ...items)];
}

// What a visitor does.

const input = document.getElementById("file");
input.onchange = () => {
  if (input.files.length) take(input.files[0], input.files[0].name);
  input.value = ""; // so that the same file can be chosen again
};
for (const kind of ["dragover", "drop", "dragleave"]) {
  addEventListener(kind, event => {
    event.preventDefault(); // beside the zone, the browser would leave the page for the file
    find("drop").classList.toggle("over", kind === "dragover");
    const [file] = kind === "drop" ? event.dataTransfer.files : [];
    if (file) take(file, file.name);
  });
}
addEventListener("paste", event => {
  const [file] = event.clipboardData?.files ?? [];
  if (file) take(file, words.PASTED);
});
setInterval(() => { if (!document.hidden) look(); }, LOOK_MS);
for (const kind of ["offline", "online"]) addEventListener(kind, look);
start();
