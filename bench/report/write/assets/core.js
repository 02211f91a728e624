// Elements, numbers, colours, and the document behind the page. Text from records becomes text nodes and nothing else.

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'on') for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ''));
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
const announce = (text) => { byId('live').textContent = text; };
const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);
const unique = (values) => [...new Set(values)];
const collator = new Intl.Collator('en', { numeric: true, sensitivity: 'base' });

// --- the document ---------------------------------------------------------------------------------------------

const data = JSON.parse(byId('data').textContent);

for (const cell of data.cells) {
  for (const name of ['spec', 'metrics', 'timings', 'history']) cell[name] ??= {};
  for (const name of ['log', 'reason', 'model']) cell[name] ??= '';
  cell.environment = data.environments[cell.environment];
  cell.family = data.codes[cell.code].family;
}
data.rows.forEach((row, i) => {
  row.family = data.codes[row.code].family;
  row.first = [...row.cells, ...row.other][0];
  for (const place of [...row.cells, ...row.other]) data.cells[place].row = i;
});

const families = unique(data.codes.map((code) => code.family)).sort(collator.compare);
const cellsByKey = new Map(data.cells.map((cell) => [cell.key, cell]));
const cellLink = (cell) => `#/cell/${cell.key}`;
// A figure's name for a model: the short one, unless the row is a version of it (other weights, another plug-in).
const shortName = (label, code) => (label === data.codes[code].name ? data.codes[code].short : label);

// --- numbers --------------------------------------------------------------------------------------------------

function significant(value, digits = 3) {
  if (!isNumber(value)) return '–';
  if (value === 0) return '0';
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size < -4 || size > 12) return value.toExponential(digits - 1);
  const decimals = Math.max(0, digits - 1 - size);
  return value.toLocaleString('en', { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

const fixed = (value, digits = 3) => (isNumber(value) ? value.toFixed(digits) : '–');
const percent = (value) => (isNumber(value) ? `${significant(100 * value, 2)} %` : '–');

function span(low, high) {
  return isNumber(low) && isNumber(high) ? `${fixed(low)} to ${fixed(high)}` : '–';
}

// --- families: a colour and a shape each, never the colour alone ---------------------------------------------

const SHAPES = ['circle', 'square', 'triangle', 'diamond', 'cross', 'down', 'plus'];
const DASHES = ['', '7 3', '2 3', '9 3 2 3', '5 2 1 2 1 2', '12 3', '4 4'];
const colourOf = (family) => `var(--c${families.indexOf(family) % 7})`;
const shapeOf = (family) => SHAPES[(families.indexOf(family) + Math.floor(families.indexOf(family) / 7)) % 7];
const dashOf = (family) => DASHES[families.indexOf(family) % 7];

function marker(kind, x, y, size, colour) {
  const s = size;
  const outlines = {
    square: `M${x - s},${y - s}h${2 * s}v${2 * s}h${-2 * s}z`,
    triangle: `M${x},${y - 1.25 * s}L${x + 1.2 * s},${y + s}H${x - 1.2 * s}z`,
    down: `M${x},${y + 1.25 * s}L${x + 1.2 * s},${y - s}H${x - 1.2 * s}z`,
    diamond: `M${x},${y - 1.4 * s}L${x + 1.4 * s},${y}L${x},${y + 1.4 * s}L${x - 1.4 * s},${y}z`,
    cross: `M${x - s},${y - s}L${x + s},${y + s}M${x + s},${y - s}L${x - s},${y + s}`,
    plus: `M${x - 1.3 * s},${y}H${x + 1.3 * s}M${x},${y - 1.3 * s}V${y + 1.3 * s}`,
  };
  if (kind === 'circle') return shape('circle', { cx: x, cy: y, r: s * 1.1, fill: colour });
  const open = kind === 'cross' || kind === 'plus';
  return shape('path', { d: outlines[kind], fill: open ? 'none' : colour, stroke: colour, 'stroke-width': open ? 3 : 0 });
}

// Buttons that take a family out of the figures and put it back.
function familyChips(shown, hidden, redraw) {
  const list = element('ul', { class: 'chips', 'aria-label': 'Families shown' });
  for (const family of families.filter((name) => shown.includes(name))) {
    const button = element('button', { type: 'button', 'aria-pressed': String(!hidden.has(family)) },
      shape('svg', { width: 16, height: 16, 'aria-hidden': 'true' }, marker(shapeOf(family), 8, 8, 4.5, colourOf(family))),
      family);
    button.addEventListener('click', () => {
      if (!hidden.delete(family)) hidden.add(family);
      button.setAttribute('aria-pressed', String(!hidden.has(family)));
      redraw();
    });
    list.append(element('li', {}, button));
  }
  return list;
}

// --- controls -------------------------------------------------------------------------------------------------

// A labelled select; options are [value, text]. The value is kept if it is still among them.
function select(label, options, value, change) {
  const control = element('select', { on: { change: () => change(control.value) } });
  for (const [key, text] of options) control.append(element('option', { value: String(key) }, text));
  if (options.some(([key]) => String(key) === String(value))) control.value = String(value);
  return field(label, control);
}

let fields = 0;

function field(label, control) {
  fields += 1;
  control.id = `field-${fields}`;
  return element('div', { class: 'field' }, element('label', { for: control.id }, label), control);
}

function segmented(label, options, value, change) {
  const group = element('div', { class: 'segmented', role: 'group', 'aria-label': label });
  for (const [key, text] of options) {
    group.append(element('button', {
      type: 'button', 'aria-pressed': String(key === value),
      on: { click: (event) => {
        for (const other of group.children) other.setAttribute('aria-pressed', String(other === event.currentTarget));
        change(key);
      } },
    }, text));
  }
  return group;
}

function facts(entries) {
  return element('dl', { class: 'facts' }, entries.map(([name, value]) =>
    element('div', {}, element('dt', {}, name), element('dd', {}, value))));
}

function scrollable(label, table) {
  return element('div', { class: 'scroll', role: 'region', tabindex: 0, 'aria-label': label }, table);
}

// --- theme ----------------------------------------------------------------------------------------------------

function stored(name, value) {
  try { // a page opened from a file may have no storage
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch { /* then the choice lasts as long as the page */ }
  return null;
}

function startTheme() {
  const button = byId('theme');
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const current = () => document.documentElement.dataset.theme ?? (dark.matches ? 'dark' : 'light');
  const name = () => { button.textContent = current() === 'dark' ? 'Light theme' : 'Dark theme'; };
  const kept = stored('medbench-theme');
  if (kept === 'dark' || kept === 'light') document.documentElement.dataset.theme = kept;
  button.addEventListener('click', () => {
    document.documentElement.dataset.theme = current() === 'dark' ? 'light' : 'dark';
    stored('medbench-theme', document.documentElement.dataset.theme);
    name();
  });
  dark.addEventListener('change', name);
  button.hidden = false;
  name();
}
