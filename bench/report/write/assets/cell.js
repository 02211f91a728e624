// The page of one cell: what it was, what came out, how it went, where it ran.

const flatText = (value) => (value === null || value === undefined ? '–'
  : isNumber(value) ? (Number.isInteger(value) ? value.toLocaleString('en', { useGrouping: false }) : String(value))
    : typeof value === 'object' ? JSON.stringify(value) : String(value));

function flatEntries(mapping, prefix = '') {
  return Object.entries(mapping).sort((a, b) => collator.compare(a[0], b[0])).flatMap(([name, value]) =>
    (value !== null && typeof value === 'object' && !Array.isArray(value) ? flatEntries(value, `${prefix}${name}.`) : [[prefix + name, flatText(value)]]));
}

function drawCell(section, cell) {
  const where = cell.spec.dataset ? ` on ${cell.spec.dataset}` : '';
  const title = `${cell.model}${where}`;
  section.replaceChildren(
    element('p', {}, element('a', { href: '#/results' }, '← All results')),
    element('h2', { tabindex: -1 }, title),
    element('p', {}, `${cell.kind}, ${cell.spec.resolution ?? '?'} px${cell.spec.seed === undefined ? '' : `, seed ${cell.spec.seed}`}: `,
      element('span', { class: cell.status === 'ok' ? 'status ok' : 'status' }, cell.status), cell.reason ? ` (${cell.reason})` : ''),
    siblings(cell));
  const card = cell.kind === 'efficiency' ? null : predictionCard('On the test set', [cell], cell.family);
  if (card) section.append(card);
  if (cell.history.epoch) section.append(historyCharts(cell));
  if (cell.pictures) section.append(element('h3', {}, 'Where it looks'), pictures(cell));
  const { recipe_settings: recipe, versions, ...spec } = cell.spec;
  const { test_confusion: ignored, classes: named, ...metrics } = cell.metrics;
  block(section, 'Result', metrics);
  block(section, 'Cell', { ...spec, key: cell.key });
  block(section, 'Recipe', recipe);
  block(section, 'Environment', { ...cell.environment, ...(versions ? { 'versions of the key': versions } : {}) });
  block(section, 'Time', cell.timings);
  section.append(element('h3', {}, 'Log'), cell.log ? element('pre', { tabindex: 0, role: 'region', 'aria-label': 'Log' }, cell.log)
    : element('p', { class: 'note' }, data.detailed ? 'The worker printed nothing.' : 'Left out of this page, which holds very many cells.'),
  element('p', { class: 'note' }, 'Numbers here have six digits; all of them, and the whole log, are in ',
    element('code', {}, `cells/${cell.key}.json`), ' and ', element('code', {}, `logs/${cell.key}.log`), ' of the run directory.'));
  return title;
}

function block(section, title, mapping) {
  const entries = flatEntries(mapping ?? {});
  if (entries.length) section.append(element('h3', {}, title), facts(entries));
}

// What `bench explain` drew; of a run with very many only the first are in the page.
function pictures(cell) {
  return element('div', { class: 'pictures' }, cell.pictures.map(([name, data]) => {
    const words = name.replace(/[_-]+/g, ' ');
    return element('figure', {}, data ? element('img', { src: `data:image/png;base64,${data}`, alt: `${words}, ${cell.model}` })
      : element('p', { class: 'note' }, 'see ', element('code', {}, `explain/${cell.key}/${name}.png`)), element('figcaption', {}, words));
  }));
}

// The other seeds of the same row, and the efficiency of the same model.
function siblings(cell) {
  const row = cell.row === undefined ? null : data.rows[cell.row];
  const seeds = row ? [...row.cells, ...row.other].map((place) => data.cells[place]).filter((other) => other !== cell) : [];
  const speeds = data.cells.filter((other) => other !== cell && other.kind === 'efficiency' && other.code === cell.code).slice(0, 12);
  const links = [...seeds.map((other) => [other, `seed ${other.spec.seed}`]),
    ...speeds.map((other) => [other, `${other.spec.mode} at ${other.spec.resolution} px, batch ${batchName(other.spec.batch)}`])];
  return links.length ? element('p', { class: 'note' }, 'See also: ', links.flatMap(([other, name], i) => [i ? ', ' : '', element('a', { href: cellLink(other) }, name)])) : '';
}

function historyCharts(cell) {
  const holder = element('div', { class: 'cards' });
  const draw = (title, label, names) => {
    const series = names.filter((name) => cell.history[name]).map((name, i) => ({
      name: CURVE_NAMES[name], label: CURVE_NAMES[name], family: families[i % families.length], line: true, points: curvePoints(cell, name) }));
    if (!series.some((one) => one.points.length)) return;
    const place = element('div', { class: 'card' });
    holder.append(place);
    drawChart(place, { title, height: 240, x: { label: 'epoch', whole: true }, y: { label }, series });
  };
  draw('Loss by epoch', 'loss', ['train_loss', 'val_loss']);
  draw('Validation by epoch', 'score', VALIDATED.map(({ name }) => `val_${name}`));
  const best = cell.metrics.best_epoch;
  return element('div', {}, element('h3', {}, 'Training'), isNumber(best) ? element('p', { class: 'note' }, `The weights of epoch ${best} were tested.`) : '', holder);
}
