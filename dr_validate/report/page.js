// Not needed to read the page: sorts a table by the head that is clicked, and unfolds everything for printing.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.querySelectorAll("tr.names th"));
  heads.forEach(function (head, column) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", function () {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      body.append(...Array.from(body.rows).sort(function (a, b) { return compare(a, b, column, down ? -1 : 1); }));
    });
  });
}

// Rows without a value come last in both directions.
function compare(a, b, column, direction) {
  const left = a.cells[column].dataset.sort || "";
  const right = b.cells[column].dataset.sort || "";
  if (left === "" || right === "") return (left === "" ? 1 : 0) - (right === "" ? 1 : 0);
  const numbers = [Number(left), Number(right)];
  if (numbers.some(Number.isNaN)) return direction * left.localeCompare(right, "en", {numeric: true});
  return direction * (numbers[0] - numbers[1]);
}

window.addEventListener("beforeprint", function () {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
