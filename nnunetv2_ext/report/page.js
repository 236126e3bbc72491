"use strict";
// Tables are whole without this: it sorts them by a click on a heading, and filters the rows of the longest one.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim().replace("\u2212", "-").replace("<", "");
    const number = parseFloat(text);
    return text === "\u2013" ? NaN : Number.isNaN(number) || /^[^-\d]/.test(text) ? text : number;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      const known = rows.filter(([key]) => !Number.isNaN(key)), last = rows.filter(([key]) => Number.isNaN(key));
      known.sort(([a], [b]) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
      if (down) known.reverse();
      body.append(...[...known, ...last].map(([, row]) => row));
    });
  });
  if (table.classList.contains("filtered")) {
    const label = document.createElement("label"), input = document.createElement("input");
    label.className = "filter";
    input.type = "search";
    label.append("Show rows with ", input);
    table.parentElement.before(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of body.rows) {
        const text = [0, 1, 2].map((column) => row.cells[column].textContent.toLowerCase()).join(" ");
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
}
