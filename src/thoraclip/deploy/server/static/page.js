// The page's own script: reads the picture in the browser, asks through Gradio's events, shows what comes back.
"use strict";

const thoraclip = (() => {
  const RUN = "/gradio_api/run/predict";
  const LOOK_MS = 5000;
  const READING = "Reading the picture…";
  const GONE = "The server does not answer: it was stopped, or the connection is lost. This page goes on by itself once it answers.";
  const boxes = {}; // name -> what asks; see box()
  let page = null, shown = null, count = 0;

  const find = (name, where = page) => where.querySelector(`[data-${name}]`);
  const bundles = () => [...page.querySelectorAll("[data-bundle]")];

  // Questions. A box asks one question at a time, so that no answer overtakes another.

  function box(name, trigger, value, watch) {
    const waiting = new Map();
    let last = Promise.resolve();
    watch("value", () => {
      const told = value();
      if (told && waiting.has(told.number)) {
        waiting.get(told.number)(told);
        waiting.delete(told.number);
      }
    });
    boxes[name] = (question, isWanted) => {
      const ask = () => isWanted() ? new Promise(resolve => {
        const number = ++count;
        waiting.set(number, resolve);
        trigger({...question, number});
      }) : null;
      return last = last.then(ask);
    };
  }

  // Whatever keeps an answer from coming becomes an answer that says so.
  const plainFetch = window.fetch.bind(window);
  window.fetch = async (target, options) => {
    const address = new URL(target instanceof Request ? target.url : target, location.href);
    if (!address.pathname.endsWith(RUN)) return plainFetch(target, options);
    let reason = GONE;
    try {
      const response = await plainFetch(target, options);
      if (response.ok) return response;
      const told = await response.json().catch(() => ({}));
      reason = told.detail ? `The server refuses: ${told.detail}.` : `The server failed (${response.status}); its log has more.`;
    } catch { look(); }
    const number = JSON.parse(options.body).event_data?.number;
    return new Response(JSON.stringify({data: [{number, refused: reason}]}), {headers: {"content-type": "application/json"}});
  };

  // The picture.

  function size(bytes) { return `${(bytes / 1e6).toFixed(bytes < 1e6 ? 2 : 0)} MB`; }

  function take(file, name) {
    const most = Number(page.dataset.most);
    if (!file.size) return refuse("This file is empty.");
    if (file.size > most) return refuse(`This file has ${size(file.size)}; the server takes up to ${size(most)}.`);
    const reader = new FileReader();
    reader.onerror = () => refuse("The browser cannot read this file.");
    reader.onload = () => look_at(reader.result.slice(reader.result.indexOf(",") + 1), file, name);
    reader.readAsDataURL(file);
  }

  async function look_at(data, file, name) {
    const mine = shown = {data, number: ++count, preview: URL.createObjectURL(file)};
    const isMine = () => shown === mine;
    clear();
    find("name").textContent = name;
    say(READING);
    const told = await boxes.predict({picture: data}, isMine);
    if (!isMine()) return;
    if (told.refused) return refuse(told.refused);
    say(told.bundles.map(one => one.spoken).join(" "));
    page.classList.add("tc-has");
    bundles().forEach((bundle, number) => {
      const one = told.bundles[number];
      find("start", bundle).hidden = true;
      find("result", bundle).hidden = false;
      find("answer", bundle).innerHTML = one.answer; // escaped by the server, as is what is near
      find("near", bundle).innerHTML = one.near;
      find("class", bundle).value = one.label;
      preview(bundle, mine.preview);
      explain(bundle);
    });
  }

  function refuse(reason) {
    shown = null;
    page.classList.remove("tc-has");
    clear();
    say("");
    const place = find("error");
    place.hidden = false;
    place.textContent = reason;
  }

  function clear() {
    const place = find("error");
    place.hidden = true;
    place.textContent = "";
    for (const bundle of bundles()) {
      for (const name of ["answer", "near"]) find(name, bundle).replaceChildren();
      find("result", bundle).hidden = true;
      find("start", bundle).hidden = shown !== null && page.classList.contains("tc-has");
    }
  }

  function say(text) {
    const place = find("status");
    place.textContent = text;
    place.classList.toggle("tc-sr", text !== READING);
  }

  // The heat map.

  function preview(bundle, address) {
    for (const name of ["heat", "outline", "scale"]) find(name, bundle).hidden = true;
    const picture = find("picture", bundle);
    picture.onerror = () => { picture.hidden = true; }; // DICOM
    picture.hidden = false;
    picture.alt = "The chosen picture";
    picture.src = address;
    find("caption", bundle).textContent = "";
  }

  async function explain(bundle) {
    const mine = shown, asked = {class: find("class", bundle).value, method: find("method", bundle).value};
    const isMine = () => shown === mine && mine !== null
      && asked.class === find("class", bundle).value && asked.method === find("method", bundle).value;
    const wait = find("wait", bundle), stage = find("stage", bundle);
    wait.textContent = "Looking for the evidence…";
    wait.hidden = false;
    stage.setAttribute("aria-busy", "true");
    find("tools", bundle).disabled = false;
    const told = await boxes[`explain-${bundle.dataset.bundle}`]({...asked, picture: mine.data}, isMine);
    if (!isMine() || !told) return;
    stage.setAttribute("aria-busy", "false");
    if (told.refused) {
      wait.textContent = told.refused;
      return;
    }
    wait.hidden = true;
    lay(bundle, told);
  }

  function lay(bundle, told) {
    const texts = {
      picture: "The radiograph, as the server reads it",
      heat: `Heat map: evidence for ${told.explained}, by ${told.method}`,
      outline: "Outline of the lungs",
    };
    for (const [name, text] of Object.entries(texts)) {
      const image = find(name, bundle);
      image.hidden = !told[name];
      image.alt = text;
      if (told[name]) image.src = told[name];
      else image.removeAttribute("src");
    }
    find("scale", bundle).hidden = false;
    find("switch", bundle).disabled = !told.outline;
    find("caption", bundle).textContent = told.words.join(" ");
    tune(bundle);
  }

  function tune(bundle) {
    const range = find("opacity", bundle), text = `${range.value} %`;
    find("percent", bundle).textContent = text;
    range.setAttribute("aria-valuetext", text);
    find("heat", bundle).style.opacity = range.value / 100;
    const outline = find("outline", bundle);
    outline.style.visibility = find("switch", bundle).checked ? "visible" : "hidden";
  }

  // The server.

  let isGone = false;
  async function look() {
    let isThere = false;
    try { isThere = (await plainFetch(new URL("health", document.baseURI), {cache: "no-store"})).ok; } catch { /* told below */ }
    if (isGone === !isThere) return;
    isGone = !isThere;
    const place = find("gone");
    place.hidden = !isGone;
    place.textContent = isGone ? GONE : "";
  }

  function start(element) {
    page = element.querySelector(".tc");
    const input = page.querySelector("#tc-file"), drop = find("drop");
    input.addEventListener("change", () => {
      if (input.files.length) take(input.files[0], input.files[0].name);
      input.value = ""; // so that the same file can be chosen again
    });
    for (const kind of ["dragover", "drop", "dragleave"]) window.addEventListener(kind, event => {
      event.preventDefault(); // beside the zone, the browser would leave the page for the file
      drop.classList.toggle("tc-over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
    });
    window.addEventListener("paste", event => {
      if (event.clipboardData?.files.length) take(event.clipboardData.files[0], "from the clipboard");
    });
    let next = Math.floor(Math.random() * Number(page.dataset.phantoms));
    find("synthetic").addEventListener("click", async () => {
      next = (next + 1) % Number(page.dataset.phantoms);
      try {
        const response = await plainFetch(new URL(`page/phantom-${next}.png`, document.baseURI));
        take(await response.blob(), "a synthetic radiograph, drawn by a program: no patient");
      } catch { refuse(GONE); }
    });
    for (const bundle of bundles()) {
      for (const name of ["class", "method"]) find(name, bundle).addEventListener("change", () => explain(bundle));
      for (const name of ["opacity", "switch"]) find(name, bundle).addEventListener("input", () => tune(bundle));
    }
    setInterval(() => { if (!document.hidden) look(); }, LOOK_MS);
    window.addEventListener("offline", look);
    window.addEventListener("online", look);
  }

  return {box, start};
})();
window.thoraclip = thoraclip;
