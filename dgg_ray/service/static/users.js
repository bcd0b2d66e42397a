// Users: add and change one in a dialog; show a new token, once.

import { attempt, call, post } from "./api.js";

const dialog = document.getElementById("user-dialog");
const form = document.getElementById("user-form");
const error = document.getElementById("user-error");
const tokens = document.getElementById("token-dialog");
const LIMITS = [...form.querySelectorAll("[data-limit]")].map((field) => field.name);
let changed = ""; // name of the user who is changed; empty while one is added

for (const button of document.querySelectorAll("[data-edit-user]"))
  button.addEventListener("click", () => {
    changed = button.dataset.editUser;
    const limits = JSON.parse(button.dataset.limits || "{}");
    form.reset();
    form.elements.name.value = changed;
    form.elements.name.readOnly = Boolean(changed);
    form.elements.role.value = button.dataset.role || "run";
    for (const name of LIMITS) form.elements[name].value = limits[name] ?? "";
    document.getElementById("user-title").textContent = changed ? `Change ${changed}` : "Add a user";
    document.getElementById("user-save").textContent = changed ? "Save" : "Add";
    error.textContent = "";
    dialog.showModal();
  });

for (const button of document.querySelectorAll("dialog [data-close]"))
  button.addEventListener("click", () => button.closest("dialog").close());

form.addEventListener("submit", async (submit) => {
  submit.preventDefault();
  error.textContent = "";
  const limits = {};
  for (const name of LIMITS) if (form.elements[name].value !== "") limits[name] = Number(form.elements[name].value);
  const role = form.elements.role.value;
  const button = document.getElementById("user-save");
  await attempt(async () => {
    try {
      if (changed) {
        await call("PATCH", `/api/v1/users/${encodeURIComponent(changed)}`, { role, limits });
        location.reload();
      } else {
        const answer = await post("/api/v1/users", { name: form.elements.name.value.trim(), role, limits });
        dialog.close();
        showToken(answer);
      }
    } catch (problem) {
      error.textContent = problem.message; // beside what has to be mended, and not as a message that goes away
    }
  }, button);
});

document.addEventListener("token", ({ detail }) => showToken(detail));

function showToken({ name, token }) {
  document.getElementById("token-title").textContent = `Token of ${name}`;
  document.getElementById("token-value").textContent = token;
  document.getElementById("token-link").textContent = `${location.origin}/login?token=${encodeURIComponent(token)}`;
  tokens.showModal();
  tokens.addEventListener("close", () => location.reload(), { once: true });
}
