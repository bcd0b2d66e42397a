// Colours: as the system has them, light, or dark. The choice is a cookie, so that the server sends it with the page.

const NEXT = { "": "light", light: "dark", dark: "" };
const WORDS = { "": "as the system has them", light: "light", dark: "dark" };
const root = document.documentElement;

const chosen = () => root.dataset.theme || "";
const cookie = () => document.querySelector("[data-theme-switch]").dataset.themeSwitch; // its name

function label(button) {
  button.setAttribute("aria-label", `Colours: ${WORDS[chosen()]}. Change`);
  button.title = `Colours: ${WORDS[chosen()]}`;
}

function setTheme(theme) {
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  const age = theme ? 365 * 86400 : 0;
  document.cookie = `${cookie()}=${theme}; path=/; max-age=${age}; samesite=lax`;
  document.dispatchEvent(new CustomEvent("themechange"));
}

export function startTheme() {
  for (const button of document.querySelectorAll("[data-theme-switch]")) {
    button.hidden = false;
    label(button);
    button.addEventListener("click", () => {
      setTheme(NEXT[chosen()]);
      label(button);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (!chosen()) document.dispatchEvent(new CustomEvent("themechange"));
  });
}

/** The present colours of app.css for what a style sheet cannot reach, such as a chart: colours("ink", "good"). */
export function colours(...names) {
  const swatch = document.createElement("span");
  swatch.hidden = true;
  document.body.append(swatch);
  const found = names.map((name) => {
    swatch.style.color = `var(--${name})`;
    return getComputedStyle(swatch).color;
  });
  swatch.remove();
  return found;
}
