// Elements of the page.  Whatever comes from the API gets in here as text, and never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** h("a", {href: "#"}, "text", child): an element. */
export const h = (tag, properties = {}, ...children) => filled(document.createElement(tag), properties, children);

/** The same in SVG. */
export const svg = (tag, properties = {}, ...children) => filled(document.createElementNS(SVG, tag), properties, children);

/** Change a text only where it differs, so that what is selected or read aloud stays undisturbed. */
export function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

/** Show or hide. */
export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** Children of `parent` in step with `items`: made once by key, changed in place, moved only when the order changes. */
export function keep(parent, items, key, make, change) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    if (!child) {
      child = make(item);
      child.dataset.key = name;
    }
    known.delete(name);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    change(child, item);
  }
  for (const gone of known.values()) gone.remove();
}

/** Rows of a table in step with `rows`: [key, [text, …]]; the first cell heads its row. */
export function fill(body, rows) {
  keep(body, rows, ([key]) => key,
    ([, cells]) => h("tr", {}, cells.map((_, number) => (number ? h("td") : h("th", { scope: "row" })))),
    (row, [, cells]) => cells.forEach((text, number) => {
      const head = body.parentElement.tHead.rows[0].cells[number].textContent;
      if (row.children[number].dataset.head === undefined) row.children[number].dataset.head = head; // where rows are stacked
      say(row.children[number], text);
    }));
}

/** A table with a caption, scrollable by keyboard where it is too wide; gives [element, body]. */
export function table(caption, heads, kind = "") {
  const body = h("tbody");
  const head = h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name)));
  const element = h("div", { class: `scroll ${kind}`, tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, head), body));
  return [element, body];
}
