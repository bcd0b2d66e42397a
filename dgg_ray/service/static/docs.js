// The page of the API: a link to a request opens it.

function openAsked() {
  const asked = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (asked?.matches("details")) {
    asked.open = true;
    asked.scrollIntoView();
    asked.querySelector("summary").focus({ preventScroll: true });
  }
}

addEventListener("hashchange", openAsked);
openAsked();
