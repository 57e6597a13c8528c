// Dialogs: a question with fields, asked until the daemon agrees or the person gives up.

import { h, say } from "./dom.js";

const sentence = (one) => [one.parameter, one.message, one.hint].filter(Boolean).join(" · ");

/** A problem with what to do about it, as an element that is read aloud. */
export function trouble(error) {
  const [first, ...more] = error.errors || [];
  if (first && !more.length) return trouble({ message: sentence(first), hint: error.hint });
  const lines = (error.errors || []).map((one) => h("li", {}, sentence(one)));
  return h("div", { class: "banner bad", role: "alert" },
    h("strong", {}, error.message), error.hint ? h("p", {}, error.hint) : null, lines.length ? h("ul", {}, lines) : null);
}

/**
 * Ask.  `fields`: {name, of, label, hint, ...attributes of its input}; `of` is what the API calls it.  `act(values)`
 * does it; what it throws is shown, beside its field where it has one, and the dialog stays.  Resolves to true when it was done, false when it was given up.
 */
export function ask({ title, text, fields, verb, danger = false, insist = false, act }) {
  return new Promise((resolve) => {
    const wrong = h("div");
    const inputs = fields.map(({ name, of, label, hint, ...rest }) => {
      const described = hint ? `hint-${name}` : null;
      const input = h("input", { id: `field-${name}`, name, autocomplete: "off", "aria-describedby": described, ...rest });
      return h("div", {}, h("label", { for: input.id }, label), input, hint ? h("p", { id: described, class: "quiet" }, hint) : null);
    });
    function tell(error) {
      const beside = (one) => fields.find(({ name, of }) => [of, name].includes(one.pointer?.split("/").pop()));
      const errors = error.errors || [];
      for (const one of errors.filter(beside)) {
        const input = form.elements[beside(one).name];
        input.setAttribute("aria-invalid", "true");
        input.parentElement.append(h("p", { class: "wrong", role: "alert" }, [one.message, one.hint].filter(Boolean).join(" · ")));
        input.focus();
      }
      const others = errors.filter((one) => !beside(one));
      if (others.length || !errors.length) wrong.replaceChildren(trouble({ message: error.message, hint: error.hint, errors: others }));
    }
    const go = h("button", { type: "submit", class: danger ? "danger" : "primary" }, verb);
    const leave = insist ? null : h("button", { type: "button", onclick: () => dialog.close() }, "Leave it");
    const form = h("form", { onsubmit: submit }, h("h2", { id: "ask-title" }, title), text ? h("p", {}, text) : null, inputs, wrong, h("div", { class: "row end" }, leave, go));
    const dialog = h("dialog", { "aria-labelledby": "ask-title" }, form);
    let done = false;
    async function submit(event) {
      event.preventDefault();
      go.disabled = true;
      wrong.replaceChildren();
      form.querySelectorAll(".wrong").forEach((one) => one.remove());
      form.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
      try {
        await act(Object.fromEntries(new FormData(form)));
        done = true;
        dialog.close();
      } catch (error) {
        tell(error);
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
