// Tables that are sorted by real buttons and filtered by labelled controls; the boards of the page get the buttons too.

const STEP = 100; // lines shown at a time

// Puts a button into each heading of `table`; `sort(column, ascending)` orders the lines.
function sortable(table, sort) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    const button = element('button', { type: 'button' }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const before = head.getAttribute('aria-sort');
      const ascending = before ? before === 'descending' : !head.classList.contains('n'); // numbers: the highest first
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
      sort(i, ascending);
      announce(`sorted by ${button.textContent}, ${ascending ? 'ascending' : 'descending'}`);
    });
  });
}

// What is not known stays last in both directions.
function compare(a, b, ascending) {
  const none = (value) => value === null || value === undefined || value === '' || value === '–';
  if (none(a) || none(b)) return none(a) - none(b);
  const order = isNumber(a) && isNumber(b) ? a - b : collator.compare(String(a), String(b));
  return ascending ? order : -order;
}

// What a reader of a line of the efficiency table must know; null if nothing.
function flagsOf(metrics) {
  const noise = metrics.noisy ? 'noisy' : metrics.noisy_evidence?.length ? 'disturbed' : null;
  return [noise, metrics.launch_bound ? 'launch-bound' : null].filter(Boolean).join(', ') || null;
}

function boardValue(cell) {
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  const text = cell.textContent.trim();
  const number = Number(text.replace(/,/g, ''));
  return text !== '' && Number.isFinite(number) ? number : text;
}

function startBoards() {
  for (const table of document.querySelectorAll('table.board')) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    sortable(table, (column, ascending) => {
      const lines = [...body.rows].map((line) => [boardValue(line.cells[column]), line]);
      lines.sort((a, b) => compare(a[0], b[0], ascending));
      body.append(...lines.map(([, line]) => line));
    });
  }
  const heads = [...document.querySelectorAll('#boards h3')];
  heads.forEach((head, i) => { head.id = `board-${i}`; head.tabIndex = -1; });
  const jump = (event) => {
    event.preventDefault();
    const head = document.getElementById(event.currentTarget.dataset.to);
    head.scrollIntoView();
    head.focus({ preventScroll: true });
  };
  byId('board-contents').append(element('h2', {}, 'All tables'), element('ul', {}, heads.map((head) =>
    element('li', {}, element('a', { href: '#/boards', 'data-to': head.id, on: { click: jump } }, head.textContent)))));
}

// --- the columns ----------------------------------------------------------------------------------------------

const text = (name, of, more = {}) => ({ name, of, show: (value) => value ?? '–', ...more });
const score = (name, key, more = {}) => ({ name, of: (row) => row[key], show: (value) => fixed(value), numeric: true, ...more });
const measured = (name, key, factor = 1) => ({
  name, numeric: true, show: (value) => significant(value),
  of: (cell) => (isNumber(cell.metrics[key]) ? cell.metrics[key] * factor : null),
});
const scoreColumns = data.metrics.flatMap(({ name, label, tested }) => [score(label, name), ...(tested ? [
  { ...score(`${label} 95 %`, `${name}_low`), show: (value, row) => span(row[`${name}_low`], row[`${name}_high`]) }, score(`${label} sd`, `${name}_sd`)] : [])]);
const statusColumn = text('status', (line) => line.status, {
  node: (value) => element('span', { class: value === 'ok' ? 'status ok' : 'status' }, value),
});
const statusOf = (row) => (row.other.length ? unique(row.other.map((place) => data.cells[place].status)).join(', ') : 'ok');

const TABLES = {
  accuracy: {
    name: 'Accuracy', unit: 'results', lines: data.rows.map((row) => ({ ...row, status: statusOf(row), link: data.cells[row.first] })),
    order: [3, false],
    columns: [
      text('model', (row) => row.model, { link: true }), text('dataset', (row) => row.dataset),
      text('protocol', (row) => data.protocols[row.protocol].label, { optional: () => data.protocols.length > 1 }),
      ...scoreColumns,
      { name: 'seeds', numeric: true, of: (row) => row.seeds, show: String }, statusColumn,
    ],
  },
  efficiency: {
    name: 'Efficiency', unit: 'cells', lines: data.cells.filter((cell) => cell.kind === 'efficiency'), order: [4, false],
    columns: [
      text('model', (cell) => cell.model, { link: true }),
      text('measured as', (cell) => data.settings[cell.setting], { optional: () => data.settings.length > 1, wrap: true }),
      { name: 'px', numeric: true, of: (cell) => cell.spec.resolution, show: String },
      { name: 'batch', numeric: true, of: (cell) => cell.spec.batch, show: (value, cell) => batchName(value, cell) },
      ...data.measures.filter((measure) => measure.source === 'cell')
        .map((measure) => measured(measure.column, measure.metric, measure.factor)),
      { name: 'noise', numeric: true, of: (cell) => cell.metrics.noise_rel, show: (value) => percent(value) },
      text('flags', (cell) => flagsOf(cell.metrics)),
      statusColumn,
    ],
  },
  cells: {
    name: 'All cells', unit: 'cells', lines: data.cells, order: [0, true],
    columns: [
      text('model', (cell) => cell.model, { link: true }), text('kind', (cell) => cell.kind), statusColumn,
      text('dataset', (cell) => cell.spec.dataset),
      { name: 'px', numeric: true, of: (cell) => cell.spec.resolution, show: String },
      { name: 'seed', numeric: true, of: (cell) => cell.spec.seed, show: (value) => value ?? '–' },
      { name: data.metrics[0].label, numeric: true, of: (cell) => cell.metrics[`test_${data.metrics[0].name}`], show: (value) => fixed(value) },
      measured('images/s', 'throughput_images_per_s_p50'),
      { name: 'took s', numeric: true, of: (cell) => cell.timings.wall_s, show: (value) => significant(value) },
      text('reason', (cell) => cell.reason, { wrap: true }), text('key', (cell) => cell.key),
    ],
  },
};

const batchName = (batch, cell) => (batch === 0 ? `largest${cell?.metrics.largest_batch ? ` (${cell.metrics.largest_batch})` : ''}` : String(batch));

// --- the view -------------------------------------------------------------------------------------------------

const results = { table: null, words: '', dataset: '', family: '', status: '', shown: STEP };

function startResults(section) {
  const there = Object.entries(TABLES).filter(([, table]) => table.lines.length);
  section.append(element('h2', { tabindex: -1 }, 'Results'));
  if (!there.length) {
    section.append(element('p', {}, 'Nothing has been measured yet.'));
    return;
  }
  results.table = there[0][0];
  const filters = element('div', { class: 'controls' });
  const body = element('div');
  const count = element('p', { class: 'note', id: 'count' });
  const change = (name) => (value) => { results[name] = value; results.shown = STEP; fill(); };
  const options = (values) => [['', 'all'], ...unique(values.filter(Boolean)).sort(collator.compare).map((value) => [value, value])];
  const makeFilters = () => {
    const { lines } = TABLES[results.table];
    Object.assign(results, { dataset: '', family: '', status: '' });
    const search = element('input', { type: 'search', value: results.words, placeholder: 'model, dataset, reason…' });
    search.addEventListener('input', () => change('words')(search.value));
    const choices = [['dataset', lines.map(datasetOf)], ['family', lines.map((line) => line.family)], ['status', lines.map((line) => line.status)]];
    filters.replaceChildren(field('Search', search), ...choices
      .filter(([, values]) => unique(values.filter(Boolean)).length > 1)
      .map(([name, values]) => select(name, options(values), '', change(name))),
    element('button', { type: 'button', on: { click: () => download() } }, 'Download as CSV'));
  };
  const fill = () => body.replaceChildren(...resultTable(count, fill));
  section.append(
    segmented('Which results', there.map(([key, table]) => [key, table.name]), results.table, (key) => {
      results.table = key;
      results.shown = STEP;
      makeFilters();
      fill();
    }), filters, count, body);
  makeFilters();
  fill();
}

const datasetOf = (line) => line.dataset ?? line.spec?.dataset;

function filtered() {
  const table = TABLES[results.table];
  const words = results.words.toLowerCase().split(/\s+/).filter(Boolean);
  const lines = table.lines.filter((line) => {
    if (results.dataset && datasetOf(line) !== results.dataset) return false;
    if (results.family && line.family !== results.family) return false;
    if (results.status && line.status !== results.status) return false;
    line.searched ??= [line.model, datasetOf(line), line.status, line.kind, line.reason, line.key,
      data.settings[line.setting], data.protocols[line.protocol]?.label].join(' ').toLowerCase();
    return words.every((word) => line.searched.includes(word));
  });
  const [column, ascending] = table.order;
  const { of } = table.columns[column];
  return lines.map((line) => [of(line), line]).sort((a, b) => compare(a[0], b[0], ascending)).map(([, line]) => line);
}

function usedColumns() {
  const { columns, lines } = TABLES[results.table];
  return columns.filter((column) => !(column.optional && !column.optional())
    && lines.some((line) => (column.of(line) ?? '') !== ''));
}

function resultTable(count, refill) {
  const table = TABLES[results.table];
  const columns = usedColumns();
  const lines = filtered();
  const shown = lines.slice(0, results.shown);
  count.textContent = `${lines.length.toLocaleString('en')} of ${table.lines.length.toLocaleString('en')} ${table.unit}`
    + (results.table === 'cells' && data.left_out
      ? `; ${data.left_out.toLocaleString('en')} more seeds are not on this page but in cells/ of the run directory` : '');
  announce(count.textContent);
  const sorted = table.columns[table.order[0]];
  const head = element('tr', {}, columns.map((column) => element('th', {
    scope: 'col', class: column.numeric ? 'n' : null,
    'aria-sort': column === sorted ? (table.order[1] ? 'ascending' : 'descending') : null,
  }, column.name)));
  const made = element('table', { id: 'result-table' }, element('thead', {}, head),
    element('tbody', {}, shown.map((line) => element('tr', {}, columns.map((column) => tableCell(column, line))))));
  sortable(made, (i, ascending) => {
    table.order = [table.columns.indexOf(columns[i]), ascending];
    refill();
    byId('result-table').tHead.rows[0].cells[i].firstChild.focus(); // the table is a new one
  });
  const more = lines.length - shown.length;
  return [scrollable(`${table.name} table`, made), more > 0 ? element('button', {
    type: 'button', on: { click: () => { results.shown += 5 * STEP; refill(); } },
  }, `Show more (${more.toLocaleString('en')} are left)`) : ''];
}

function tableCell(column, line) {
  const value = column.of(line);
  const shown = column.show(value, line);
  if (column.link) return element('th', { scope: 'row' }, element('a', { href: cellLink(line.link ?? line) }, shown));
  return element('td', { class: column.numeric ? 'n' : column.wrap ? 'wrap' : null }, column.node ? column.node(value) : shown);
}

function download() {
  const columns = usedColumns();
  const quoted = (value) => {
    const plain = value === null || value === undefined ? '' : String(value);
    // A spreadsheet must not take a name for a formula.
    const safe = typeof value === 'string' && /^[=+\-@\t\r]/.test(plain) ? `'${plain}` : plain;
    return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  };
  const lines = [columns.map((column) => quoted(column.name)), ...filtered().map((line) => columns.map((column) => quoted(column.of(line))))];
  const url = URL.createObjectURL(new Blob([`${lines.map((line) => line.join(',')).join('\n')}\n`], { type: 'text/csv' }));
  element('a', { href: url, download: `${results.table}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
