"use strict";
/* Sorting, filtering and saving. Without it the page has the same tables, figures and rows. */
(() => {
  const value = (cell) => {
    const given = cell.dataset.v;
    const found = given === undefined ? cell.textContent.trim() : given;
    const number = Number(found);
    return found === "" ? null : Number.isNaN(number) ? found : number;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
        rows.sort((a, b) => {
          if (a[0] === null || b[0] === null) return compare(a[0], b[0]);
          return up ? compare(a[0], b[0]) : compare(b[0], a[0]);
        });
        table.classList.add("sorted");
        body.append(...rows.map((pair) => pair[1]));
      });
    });
  };

  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 8) return;
    const label = document.createElement("label");
    label.className = "filter";
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "all of these words";
    const count = document.createElement("output");
    count.textContent = `${rows.length} rows`;
    label.append("Filter ", field, " ", count);
    table.closest(".scroll").before(label);
    let texts = null;
    field.addEventListener("input", () => {
      texts = texts || rows.map((row) => row.textContent.toLowerCase());
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      rows.forEach((row, index) => {
        const shown = words.every((word) => texts[index].includes(word));
        row.hidden = !shown;
        left += shown;
      });
      table.classList.toggle("filtered", words.length > 0);
      count.textContent = words.length ? `${left} of ${rows.length} rows` : `${rows.length} rows`;
    });
  };

  document.querySelectorAll("table.data").forEach((table) => {
    sortable(table);
    filterable(table);
  });

  const embedded = () => document.getElementById("rows").textContent;
  const flat = (row) => {
    const found = {};
    for (const [key, item] of Object.entries(row)) {
      if (item && typeof item === "object" && !Array.isArray(item)) {
        for (const [inner, thing] of Object.entries(item)) found[`${key}.${inner}`] = thing;
      } else found[key] = item;
    }
    return found;
  };
  const csv = () => {
    const rows = JSON.parse(embedded()).map(flat);
    const names = [...new Set(rows.flatMap(Object.keys))];
    const quote = (item) => {
      const told = item === null || item === undefined ? "" : typeof item === "object" ? JSON.stringify(item) : String(item);
      return /[",\r\n]/.test(told) ? `"${told.replaceAll('"', '""')}"` : told;
    };
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(quote).join(",")).join("\r\n") + "\r\n";
  };
  const keep = (name, type, data) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  document.querySelectorAll("button[data-keep]").forEach((button) => {
    button.addEventListener("click", () => {
      if (button.dataset.keep === "csv") keep("rows.csv", "text/csv", csv());
      else keep("rows.json", "application/json", embedded());
    });
    button.hidden = false;
  });

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
})();
