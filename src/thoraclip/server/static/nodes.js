// Elements from text. Text never becomes HTML here: it is put into nodes as text.

/** An element with properties and children, which are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Text in which no line breaks at the hyphen of a short name. */
export function unbroken(text) {
  const parts = text.split(/(?<!\S)([^\s-]{1,12}-[^\s-]{1,12})(?!\S)/);
  return parts.map((part, number) => number % 2 ? make("span", {className: "whole"}, part) : part);
}

/** A bundle's card: the Markdown that cards use, without its front matter. Images and HTML are shown as text. */
export function card(markdown) {
  const lines = markdown.replace(/^---\n[^]*?\n---\n/, "").split("\n"), nodes = [];
  const take = pattern => {
    const taken = [];
    while (lines.length && pattern.test(lines[0])) taken.push(lines.shift());
    return taken;
  };
  while (lines.length) {
    const heading = /^(#{1,6}) +(.*)$/.exec(lines[0]);
    if (!lines[0].trim()) lines.shift();
    else if (heading) {
      lines.shift();
      nodes.push(make(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2]))); // below the page's own
    } else if (lines[0].startsWith("```")) {
      lines.shift();
      nodes.push(make("pre", {}, make("code", {}, take(/^(?!```)/).join("\n"))));
      lines.shift();
    } else if (/^[-*] /.test(lines[0])) {
      nodes.push(make("ul", {}, ...take(/^[-*] /).map(line => make("li", {}, ...inline(line.slice(2))))));
    } else if (lines[0].startsWith("|")) {
      nodes.push(table(take(/^\|/)));
    } else {
      const first = lines.shift();
      nodes.push(make("p", {}, ...inline([first, ...take(/^(?!#|```|[-*] |\|)./)].join(" "))));
    }
  }
  return nodes;
}

function table([head, , ...rows]) {
  const cells = (row, tag) => {
    const texts = row.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);
    return make("tr", {}, ...texts.map(text => make(tag, {}, ...inline(text.trim()))));
  };
  const body = rows.map(row => cells(row, "td"));
  return make("table", {}, make("thead", {}, cells(head, "th")), make("tbody", {}, ...body));
}

const SPAN = /\\([^\w\s])|&(amp|lt|gt);|`([^`]+)`|\*\*(.+?)\*\*|\[([^\]]*)\]\((https?:\/\/[^\s)]+)\)/;

function inline(text) {
  const nodes = [];
  for (let found; (found = SPAN.exec(text)); text = text.slice(found.index + found[0].length)) {
    const [, escaped, entity, code, bold, link, href] = found;
    nodes.push(text.slice(0, found.index));
    if (escaped) nodes.push(escaped);
    else if (entity) nodes.push({amp: "&", lt: "<", gt: ">"}[entity]);
    else if (code) nodes.push(make("code", {}, code));
    else if (bold) nodes.push(make("strong", {}, ...inline(bold)));
    else nodes.push(make("a", {href, target: "_blank", rel: "noopener noreferrer nofollow"}, ...inline(link)));
  }
  return [...nodes, text];
}
