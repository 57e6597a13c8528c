// Dialogs: a question with fields, asked until the daemon agrees or the person gives up.

import { h, say } from "./dom.js";

/** A problem with what to do about it, as an element that is read aloud. */
export function trouble(error) {
  const lines = (error.errors || []).map((one) => h("li", {}, [one.pointer || one.parameter, one.message, one.hint].filter(Boolean).join(" · ")));
  return h("div", { class: "banner bad", role: "alert" },
    h("strong", {}, error.message), error.hint ? h("p", {}, error.hint) : null, lines.length ? h("ul", {}, lines) : null);
}

/**
 * Ask.  `fields`: {name, label, hint, ...attributes of its input}.  `act(values)` does it; what it throws is shown, and
 * the dialog stays.  Resolves to true when it was done, false when it was given up.
 */
export function ask({ title, text, fields, verb, danger = false, insist = false, act }) {
  return new Promise((resolve) => {
    const wrong = h("div");
    const inputs = fields.map(({ name, label, hint, ...rest }) => {
      const described = hint ? `hint-${name}` : null;
      const input = h("input", { id: `field-${name}`, name, autocomplete: "off", "aria-describedby": described, ...rest });
      return h("div", {}, h("label", { for: input.id }, label), input, hint ? h("p", { id: described, class: "quiet" }, hint) : null);
    });
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, verb);
    const leave = insist ? null : h("button", { type: "button", onclick: () => dialog.close() }, "Leave it");
    const form = h("form", { onsubmit: submit }, h("h2", { id: "ask-title" }, title), text ? h("p", {}, text) : null, inputs, wrong, h("div", { class: "row end" }, leave, go));
    const dialog = h("dialog", { "aria-labelledby": "ask-title" }, form);
    let done = false;
    async function submit(event) {
      event.preventDefault();
      go.disabled = true;
      wrong.replaceChildren();
      try {
        await act(Object.fromEntries(new FormData(form)));
        done = true;
        dialog.close();
      } catch (error) {
        wrong.replaceChildren(trouble(error));
      }
      go.disabled = false;
    }
    dialog.addEventListener("cancel", (event) => insist && event.preventDefault());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A command to copy; where the browser does not allow it, it is selected. */
export function command(text) {
  const code = h("code", {}, text);
  const button = h("button", { type: "button", class: "small", onclick: copy }, "Copy");
  async function copy() {
    try {
      await navigator.clipboard.writeText(text);
      say(button, "Copied");
    } catch {
      getSelection().selectAllChildren(code);
      say(button, "Selected");
    }
    setTimeout(() => say(button, "Copy"), 2000);
  }
  return h("div", { class: "command" }, code, button);
}
