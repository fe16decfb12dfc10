// A folder's photos as a grid: what speaks against each, and what shall become of it. The kernel holds the marks; this only shows a page of them.
const KEEP = "<Keep>", DELETE = "<Delete>"
const make = (tag, props = {}, ...inner) => {
  const e = Object.assign(document.createElement(tag), props)
  e.dataset.lmSuppressShortcuts = "true"  // JupyterLab's own keys, which it looks for on what has the focus: "x" would cut the cell
  e.append(...inner.filter(x => x !== null && x !== undefined))
  return e
}

function render({ model, el }) {
  const root = make("div", { className: "bearclf-cleaner" })
  const select = (name, label) => {
    const box = make("select", { ariaLabel: label, name })
    box.addEventListener("change", () => ask({ [name]: box.value, page: 0 }))
    return box
  }
  const boxes = { label: select("label", "Label"), split: select("split", "Split"), reason: select("reason", "Reason"), marked: select("marked", "Marks") }
  const button = (text, act, label) => {
    const b = make("button", { type: "button", textContent: text })
    if (label) b.ariaLabel = label
    b.addEventListener("click", act)
    return b
  }
  const back = button("‹", () => turn(-1), "Page before"), forth = button("›", () => turn(1), "Next page")
  const where = make("span", { className: "where" })
  const apply = button("Apply", () => send("apply")), undo = button("Undo", () => send("undo"))
  const said = make("p", { className: "said", role: "status" })
  const grid = make("div", { className: "grid", role: "list", ariaLabel: "Photos" })
  const keys = make("p", { className: "keys" })
  root.append(make("div", { className: "bar" }, ...Object.values(boxes), make("span", { className: "pages" }, back, where, forth), make("span", { className: "act" }, apply, undo)), said, grid, keys)
  el.append(root)

  let state = { page: 0, pages: 1, rows: [], options: [] }, urls = [], wanted = null, waiting = null, busy = false
  const send = (kind, more = {}) => {
    if (busy && kind !== "mark") return
    if (kind === "apply" || kind === "undo") { busy = true; root.ariaBusy = "true" }
    model.send({ kind, ...more })
    clearTimeout(waiting)
    waiting = setTimeout(() => { said.textContent = "The kernel does not answer: it is busy, or has ended. If it has ended, run the cell again; what was applied stays." }, 4000)
  }
  const ask = (view, focus = null) => { wanted = focus; send("show", { view }) }
  const turn = (by, focus = 0) => { const page = state.page + by; if (page >= 0 && page < state.pages) ask({ page }, focus) }

  const fill = (box, options, value) => {
    box.replaceChildren(...options.map(([v, text]) => make("option", { value: v, textContent: text })))
    box.value = value
    box.hidden = options.length < 3
  }
  const picture = (n, alt) => urls[n] ? make("img", { src: urls[n], alt }) : make("span", { className: "gone", textContent: "cannot be shown" })

  const mark = (card, row, value) => {
    if (value === row.mark) return
    row.mark = value
    show(card, row)
    send("mark", { id: row.id, mark: value })
  }
  const show = (card, row) => {
    card.classList.toggle("delete", row.mark === DELETE)
    card.classList.toggle("change", row.mark !== DELETE && row.mark !== KEEP)
    const box = card.querySelector("select")
    box.value = row.mark
    card.ariaLabel = `${row.file}: ${row.mark === KEEP ? "keep" : row.mark === DELETE ? "delete" : "change to " + row.mark}. ${row.why}`
  }
  const cardOf = (row, i) => {
    const choice = make("select", { ariaLabel: `What to do with ${row.file}`, tabIndex: -1 }, ...state.options.map(o => make("option", { value: o, textContent: o === row.label ? `${o} (as it is)` : o })))
    const twin = row.twin ? make("figure", {}, picture(row.twin_image, `Its twin ${row.twin}`), make("figcaption", { textContent: row.twin })) : null
    const card = make("div", { className: "card", tabIndex: i ? -1 : 0 },
      make("div", { className: "pictures" }, make("figure", {}, picture(row.image, row.file), make("figcaption", { textContent: row.file })), twin),
      make("p", { className: "why", textContent: row.why }), choice)
    card.setAttribute("role", "listitem")
    choice.addEventListener("change", () => mark(card, row, choice.value === row.label ? KEEP : choice.value))
    card.addEventListener("focusin", () => { for (const c of grid.children) c.tabIndex = c === card ? 0 : -1 })
    show(card, row)
    return card
  }

  const columns = () => [...grid.children].filter(c => c.offsetTop === grid.firstElementChild?.offsetTop).length || 1
  const move = (from, by) => {
    const to = from + by
    if (to < 0) return turn(-1, "last")
    if (to >= grid.children.length) return by === 1 || from + 1 === grid.children.length ? turn(1, 0) : grid.lastElementChild.focus()
    grid.children[to].focus()
  }
  const KEYS = {
    ArrowRight: i => move(i, 1), ArrowLeft: i => move(i, -1), ArrowDown: i => move(i, columns()), ArrowUp: i => move(i, -columns()),
    PageDown: () => turn(1), PageUp: () => turn(-1), Home: () => grid.firstElementChild.focus(), End: () => grid.lastElementChild.focus(),
    d: (i, c, r) => mark(c, r, DELETE), Delete: (i, c, r) => mark(c, r, DELETE), k: (i, c, r) => mark(c, r, KEEP), s: (i, c, r) => r.suggested && mark(c, r, r.suggested),
  }
  grid.addEventListener("keydown", e => {
    const card = e.target.closest(".card"), i = [...grid.children].indexOf(card)
    if (!card || e.target !== card || e.ctrlKey || e.metaKey || e.altKey) return
    const row = state.rows[i], label = state.options[Number(e.key) + 1]  // after Keep and Delete
    const act = KEYS[e.key] || (/^[1-9]$/.test(e.key) && label && (() => mark(card, row, label === row.label ? KEEP : label)))
    if (!act) return
    e.preventDefault(); e.stopPropagation()
    act(i, card, row)
  })

  const tell = n => {
    apply.textContent = n ? `Apply ${n} ${n === 1 ? "mark" : "marks"}` : "Apply"
    apply.disabled = !n
  }
  model.on("msg:custom", (m, buffers) => {
    clearTimeout(waiting)
    if (m.kind === "marks") return tell(m.marks)
    if (m.kind !== "page") return
    busy = false; root.ariaBusy = "false"
    urls.forEach(URL.revokeObjectURL)
    urls = buffers.map(b => b.byteLength ? URL.createObjectURL(new Blob([b], { type: "image/jpeg" })) : null)
    const held = root.contains(document.activeElement) && grid.contains(document.activeElement)
    state = m
    for (const [name, box] of Object.entries(boxes)) fill(box, m.choices[name], m.view[name])
    grid.replaceChildren(...m.rows.map(cardOf))
    if (!m.rows.length) grid.append(make("p", { className: "none", textContent: "No photo is like that." }))
    where.textContent = `${m.page + 1} of ${m.pages} · ${m.total} ${m.total === 1 ? "photo" : "photos"}`
    back.disabled = m.page === 0; forth.disabled = m.page + 1 >= m.pages
    undo.disabled = !m.undo
    undo.textContent = m.undo ? `Undo the last step (${m.undo} ${m.undo === 1 ? "photo" : "photos"})` : "Undo"
    tell(m.marks)
    said.textContent = m.said
    keys.replaceChildren(...[["←↑↓→", "go"], ["d", "delete"], ["k", "keep"], ["s", "as suggested"], ...m.options.slice(2, 11).map((o, i) => [String(i + 1), o]), ["Page ↓ ↑", "turn"]].flatMap(([k, what]) => [make("kbd", { textContent: k }), ` ${what}  `]))
    const to = wanted === "last" ? grid.lastElementChild : wanted !== null || held ? grid.children[wanted ?? 0] : null
    if (to?.classList.contains("card")) to.focus()
    wanted = null
  })
  ask({})
  return () => { clearTimeout(waiting); urls.forEach(URL.revokeObjectURL) }
}

export default { render }
