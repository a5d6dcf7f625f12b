const root = document.documentElement, theme = document.getElementById("theme");
const remembered = () => { try { return localStorage.getItem("pairstack-theme"); } catch { return null; } };
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const show = () => { theme.textContent = isDark() ? "Light page" : "Dark page"; };
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("pairstack-theme", root.dataset.theme); } catch { /* a file may not store */ }
  show();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
theme.hidden = false;

const table = document.getElementById("class-table");
if (table) {
  const find = document.getElementById("find"), found = document.getElementById("found");
  const body = table.tBodies[0], rows = [...body.rows], all = found.textContent;
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    let n = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      n += row.hidden ? 0 : 1;
    }
    found.textContent = wanted ? n + " of " + rows.length + " classes" : all;
  });
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const text = column === 0, was = head.getAttribute("aria-sort");
    const rising = was ? was === "descending" : text;
    const value = row => text ? row.cells[0].textContent : parseFloat(row.cells[column].textContent.replace(/,/g, ""));
    const order = (a, b) => text ? a.localeCompare(b) : a - b;
    rows.sort((a, b) => (rising ? 1 : -1) * order(value(a), value(b)));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    body.append(...rows);
  }));
}
