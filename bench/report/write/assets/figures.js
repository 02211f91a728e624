// The views with figures: accuracy against cost, scaling over resolution, training curves, confusion and calibration.

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const measureOf = (id) => data.measures.find((measure) => measure.id === id);
const protocolOptions = () => data.protocols.map((protocol, i) => [i, protocol.label]);

// --- accuracy against cost --------------------------------------------------------------------------------------

// Metrics that boards average over datasets; the first of them ranks.
const SCORES = Object.fromEntries(data.metrics.filter((metric) => metric.averaged).map(({ name, label }) => [name, label]));
const RANKING = data.metrics[0].name;
const tradeoff = { protocol: data.first, dataset: '', score: RANKING, measure: null, where: null, hidden: new Set() };

// Where speeds were measured: table, resolution and batch, those with the most models at the protocol's size first.
function places() {
  const found = new Map();
  for (const cell of data.cells) {
    if (cell.kind !== 'efficiency' || cell.status !== 'ok') continue;
    const key = `${cell.setting}|${cell.spec.resolution}|${cell.spec.batch}`;
    if (!found.has(key)) found.set(key, { key, setting: cell.setting, resolution: cell.spec.resolution, batch: cell.spec.batch, cells: new Map() });
    found.get(key).cells.set(cell.code, cell);
  }
  const wanted = data.protocols[tradeoff.protocol]?.resolution || 1;
  const far = (place) => Math.abs(Math.log(place.resolution / wanted));
  const training = (place) => (data.settings[place.setting].startsWith('inference') ? 0 : 1);
  return [...found.values()].sort((a, b) => training(a) - training(b) || far(a) - far(b) || b.cells.size - a.cells.size
    || a.setting - b.setting || (b.batch || 0) - (a.batch || 0));
}

function scored() {
  const protocol = data.protocols[tradeoff.protocol];
  if (tradeoff.dataset === '') return protocol.standings.filter((line) => line.place !== null);
  return data.rows.filter((row) => row.protocol === Number(tradeoff.protocol) && row.dataset === tradeoff.dataset);
}

function costOf(line, measure, cells) {
  if (measure.source === 'cell') {
    const value = cells?.get(line.code)?.metrics[measure.metric];
    return isNumber(value) && value > 0 ? value * measure.factor : null;
  }
  const rows = data.rows.filter((row) => row.protocol === Number(tradeoff.protocol) && row.code === line.code && row.model === line.model
    && (tradeoff.dataset === '' || row.dataset === tradeoff.dataset));
  const values = rows.map((row) => row[measure.metric]).filter((value) => isNumber(value) && value > 0);
  return values.length ? mean(values) * measure.factor : null;
}

function front(points, more) {
  const order = [...points].sort((a, b) => (more ? b.x - a.x : a.x - b.x) || b.y - a.y);
  const found = [];
  for (const point of order) {
    const best = found[found.length - 1];
    if (!best || point.y > best.y || (point.y === best.y && point.x === best.x)) found.push(point);
  }
  return found.sort((a, b) => a.x - b.x);
}

// The first measure that the most models have.
function mostModels(measures) {
  const cells = places().find((place) => place.key === tradeoff.where)?.cells;
  const count = (measure) => scored().filter((line) => costOf(line, measure, cells) !== null).length;
  return measures.reduce((best, measure) => (best && count(best) >= count(measure) ? best : measure), undefined);
}

function startTradeoff(holder) {
  const timed = data.cells.some((cell) => cell.kind === 'efficiency' && cell.status === 'ok');
  if (!data.protocols.length || !(timed || data.rows.some((row) => isNumber(row.train_images_per_s)))) return;
  holder.append(element('h2', { tabindex: -1 }, 'Accuracy against cost'));
  const controls = element('div', { class: 'controls' });
  const chips = element('div');
  const chart = element('div');
  const note = element('div');
  holder.append(controls, chips, chart, note);
  const redraw = () => drawTradeoff(chart, note);
  const change = (name) => (value) => { tradeoff[name] = value; make(); };
  const make = () => {
    const protocol = data.protocols[tradeoff.protocol];
    const datasets = unique(data.rows.filter((row) => row.protocol === Number(tradeoff.protocol)).map((row) => row.dataset));
    const choices = [...(protocol.counted.length > 1 ? [['', `mean ${protocol.over}`]] : []), ...datasets.map((name) => [name, name])];
    if (!choices.some(([key]) => key === tradeoff.dataset)) [[tradeoff.dataset]] = choices;
    const where = places();
    if (!where.some((place) => place.key === tradeoff.where)) tradeoff.where = where[0]?.key;
    const measures = data.measures.filter((measure) => places().concat({ key: tradeoff.where }).some((place) => place.key === tradeoff.where
      && scored().some((line) => costOf(line, measure, place.cells) !== null)));
    if (!measures.some((measure) => measure.id === tradeoff.measure)) tradeoff.measure = mostModels(measures)?.id;
    const keep = document.activeElement?.closest?.('.field')?.firstChild.textContent;
    controls.replaceChildren(
      select('x axis', measures.map((measure) => [measure.id, `${measure.label} (${measure.unit})`]), tradeoff.measure, change('measure')),
      select('y axis', Object.entries(SCORES), tradeoff.score, change('score')),
      choices.length > 1 ? select('dataset', choices, tradeoff.dataset, change('dataset')) : '',
      data.protocols.length > 1 ? select('protocol', protocolOptions(), tradeoff.protocol, change('protocol')) : '',
      where.length > 1 ? select('cost measured as', where.map((place) => [place.key, `${place.resolution} px, batch ${batchName(place.batch)}, ${data.settings[place.setting]}`]), tradeoff.where, change('where')) : '');
    if (keep) [...controls.children].find((one) => one.firstChild.textContent === keep)?.lastChild.focus();
    chips.replaceChildren(familyChips(unique(scored().map((line) => data.codes[line.code].family)), tradeoff.hidden, redraw));
    redraw();
  };
  make();
}

function drawTradeoff(chart, note) {
  const measure = measureOf(tradeoff.measure);
  const place = places().find((one) => one.key === tradeoff.where);
  const lines = scored();
  const points = !measure ? [] : lines.map((line) => tradeoffPoint(line, measure, place)).filter((point) => point && !tradeoff.hidden.has(point.family));
  if (!points.length) {
    chart.replaceChildren(element('p', {}, 'No model has both figures.'));
    note.replaceChildren();
    return;
  }
  const best = front(points, measure.more);
  const over = tradeoff.dataset ? `on ${tradeoff.dataset}` : `(mean ${data.protocols[tradeoff.protocol].over})`;
  const series = unique(points.map((point) => point.family)).sort(collator.compare)
    .map((family) => ({ name: family, family, points: points.filter((point) => point.family === family) }));
  drawChart(chart, {
    title: `${SCORES[tradeoff.score]} ${over} against ${measure.label}`,
    x: { label: measure.label, unit: measure.unit, log: logarithmic(points.map((point) => point.x)) },
    y: { label: `test ${SCORES[tradeoff.score]}` }, series, front: best,
  });
  const without = lines.length - lines.filter((line) => costOf(line, measure, place?.cells) !== null).length;
  const where = measure.source === 'cell' ? `Cost at ${place.resolution} px, batch ${batchName(place.batch)}: ${data.settings[place.setting]}; latency is at batch 1.` : 'Cost as seen in the trainings themselves.';
  note.replaceChildren(
    element('p', { id: 'front' }, `Pareto front (dashed; ${measure.more ? 'more' : 'less'} ${measure.label} is better): ${best.map((point) => point.label).join(', ')}.`),
    element('p', { class: 'note' }, `${where} Vertical lines are 95 % intervals.${without ? ` ${without} of ${lines.length} models have no such figure.` : ''}`));
}

function tradeoffPoint(line, measure, place) {
  const x = costOf(line, measure, place?.cells);
  const y = line[tradeoff.score];
  if (x === null || !isNumber(y)) return null;
  const code = data.codes[line.code];
  const row = data.rows.find((one) => one.protocol === Number(tradeoff.protocol) && one.code === line.code && one.model === line.model
    && (tradeoff.dataset === '' || one.dataset === tradeoff.dataset));
  const low = line[`${tradeoff.score}_low`];
  const high = line[`${tradeoff.score}_high`];
  return { x, y, low, high, name: line.model, label: shortName(line.model, line.code), family: code.family,
    href: row ? cellLink(data.cells[row.first]) : null,
    lines: [`${SCORES[tradeoff.score]} ${fixed(y)}${isNumber(low) ? ` (95 % ${span(low, high)})` : ''}`, `${measure.label} ${significant(x)} ${measure.unit}`] };
}

const logarithmic = (values) => values.length > 1 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 5;

// --- scaling over resolution ------------------------------------------------------------------------------------

const scaling = { where: null, measure: null, hidden: new Set() };

// Cells by table and batch, where they were measured at two resolutions or more.
function scalingGroups() {
  const groups = Map.groupBy(data.cells.filter((cell) => cell.kind === 'efficiency' && cell.status === 'ok'),
    (cell) => `${cell.setting}|${cell.spec.batch}`);
  return new Map([...groups].filter(([, cells]) => unique(cells.map((cell) => cell.spec.resolution)).length > 1));
}

const scales = () => scalingGroups().size > 0;

function startScaling(section) {
  section.append(element('h2', { tabindex: -1 }, 'Scaling over resolution'));
  const groups = scalingGroups();
  const controls = element('div', { class: 'controls' });
  const chips = element('div');
  const chart = element('div');
  section.append(controls, chips, chart);
  scaling.where = [...groups.keys()].sort((a, b) => groups.get(b).length - groups.get(a).length)[0];
  const make = () => {
    const cells = groups.get(scaling.where);
    const measures = data.measures.filter((measure) => measure.source === 'cell' && cells.some((cell) => cell.metrics[measure.metric] > 0));
    if (!measures.some((measure) => measure.id === scaling.measure)) scaling.measure = measures[0]?.id;
    const where = [...groups.keys()].map((key) => {
      const [setting, batch] = key.split('|').map(Number);
      return [key, `batch ${batchName(batch)}, ${data.settings[setting]}`];
    });
    const redraw = () => drawScaling(chart, cells);
    controls.replaceChildren(
      select('measure', measures.map((measure) => [measure.id, `${measure.label} (${measure.unit})`]), scaling.measure, (value) => { scaling.measure = value; redraw(); }),
      where.length > 1 ? select('measured as', where, scaling.where, (value) => { scaling.where = value; make(); }) : '');
    chips.replaceChildren(familyChips(unique(cells.map((cell) => cell.family)), scaling.hidden, redraw));
    redraw();
  };
  make();
}

function drawScaling(chart, cells) {
  const measure = measureOf(scaling.measure);
  const models = unique(cells.map((cell) => cell.model)).sort(collator.compare);
  const series = models.map((model) => {
    const own = cells.filter((cell) => cell.model === model && cell.metrics[measure.metric] > 0)
      .sort((a, b) => a.spec.resolution - b.spec.resolution);
    return { name: model, label: shortName(model, own[0]?.code ?? 0), family: own[0]?.family, line: true, points: own.map((cell) => {
      const y = cell.metrics[measure.metric] * measure.factor;
      return { x: cell.spec.resolution, y, name: model, href: cellLink(cell), lines: [`${cell.spec.resolution} px: ${significant(y)} ${measure.unit}`] };
    }) };
  }).filter((one) => one.points.length && !scaling.hidden.has(one.family));
  if (!series.length) {
    chart.replaceChildren(element('p', {}, 'No family is shown.'));
    return;
  }
  drawChart(chart, {
    title: `${measure.label} over the side of the image, both axes logarithmic`, height: 420,
    x: { label: 'resolution', unit: 'px', log: true, ticks: unique(cells.map((cell) => cell.spec.resolution)).sort((a, b) => a - b) },
    y: { label: measure.label, unit: measure.unit, log: true }, series,
  });
}

// --- training curves --------------------------------------------------------------------------------------------

const VALIDATED = data.metrics.filter((metric) => metric.tested);
const CURVE_NAMES = { ...Object.fromEntries(VALIDATED.map(({ name, label }) => [`val_${name}`, `validation ${label}`])), val_loss: 'validation loss', train_loss: 'training loss', lr: 'learning rate' };
const training = { group: null, curve: `val_${RANKING}`, hidden: new Set() };

function startTraining(section) {
  section.append(element('h2', { tabindex: -1 }, 'Training curves'));
  const groups = new Map();
  data.rows.forEach((row) => {
    const cells = [...row.cells, ...row.other].map((place) => data.cells[place]).filter((cell) => cell.history.epoch);
    if (!cells.length) return;
    const key = `${row.protocol}|${row.dataset}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(...cells);
  });
  if (!groups.size) {
    section.append(element('p', {}, data.detailed ? 'No history of a training was found beside the records.'
      : `The curves of ${(data.cells.length + data.left_out).toLocaleString('en')} cells are left out of this page; they are in history/ of the run directory.`));
    return;
  }
  const controls = element('div', { class: 'controls' });
  const chips = element('div');
  const chart = element('div');
  [training.group] = groups.keys();
  section.append(controls, chips, chart);
  const make = () => {
    const cells = groups.get(training.group);
    const redraw = () => drawTraining(chart, cells);
    const curves = Object.entries(CURVE_NAMES).filter(([name]) => cells.some((cell) => cell.history[name]));
    controls.replaceChildren(
      groups.size > 1 ? select('dataset', groupOptions(groups), training.group, (value) => { training.group = value; make(); }) : '',
      select('curve', curves, training.curve, (value) => { training.curve = value; redraw(); }));
    chips.replaceChildren(familyChips(unique(cells.map((cell) => cell.family)), training.hidden, redraw));
    redraw();
  };
  make();
}

function groupOptions(groups) {
  return [...groups.keys()].map((key) => {
    const [protocol, ...dataset] = key.split('|');
    return [key, data.protocols.length > 1 ? `${dataset.join('|')}: ${data.protocols[protocol].label}` : dataset.join('|')];
  });
}

function curvePoints(cell, curve) {
  const points = [];
  (cell.history[curve] ?? []).forEach((y, i) => {
    if (isNumber(y)) points.push({ x: cell.history.epoch[i], y, name: `${cell.model}, seed ${cell.spec.seed}`, href: cellLink(cell), lines: [`epoch ${cell.history.epoch[i]}: ${CURVE_NAMES[curve]} ${significant(y, 4)}`] });
  });
  return points;
}

function drawTraining(chart, cells) {
  const seen = new Set();
  const series = cells.filter((cell) => !training.hidden.has(cell.family)).map((cell) => {
    const label = seen.has(cell.model) ? null : shortName(cell.model, cell.code); // one name for all seeds
    seen.add(cell.model);
    return { name: `${cell.model}, seed ${cell.spec.seed}`, label, family: cell.family, line: true, points: curvePoints(cell, training.curve) };
  }).filter((one) => one.points.length);
  if (!series.length) {
    chart.replaceChildren(element('p', {}, 'No family is shown.'));
    return;
  }
  drawChart(chart, { title: `${CURVE_NAMES[training.curve]}, one line per seed`, height: 420, x: { label: 'epoch', whole: true },
    y: { label: CURVE_NAMES[training.curve], log: training.curve === 'lr' && series.every((one) => one.points.every((point) => point.y > 0)) }, series });
}

// --- confusion and calibration ----------------------------------------------------------------------------------

// The matrices of all seeds added up; of a multi-label task one line a label: TN, FP, FN, TP.
function confusionOf(cells) {
  const found = cells.map((cell) => cell.metrics.test_confusion).filter((counts) => Array.isArray(counts) && Array.isArray(counts[0]))
    .map((counts) => (Array.isArray(counts[0][0]) ? counts.map((table) => table.flat()) : counts));
  if (!found.length || found.some((counts) => counts.length !== found[0].length)) return null;
  return found[0].map((line, i) => line.map((_, j) => found.reduce((sum, counts) => sum + counts[i][j], 0)));
}

function labelTable(counts, label, classes) {
  const names = ['label', 'true neg.', 'false pos.', 'false neg.', 'true pos.'];
  return scrollable(label, element('table', { class: 'confusion' }, element('caption', { class: 'visually-hidden' }, label),
    element('thead', {}, element('tr', {}, names.map((name) => element('th', { scope: 'col' }, name)))),
    element('tbody', {}, counts.map((line, i) => element('tr', {}, element('th', { scope: 'row' }, classes[i]),
      line.map((value) => element('td', {}, value.toLocaleString('en'))))))));
}

// Counts with the share of the true class as shade; the text tells the numbers, so the shade is never alone.
function confusionTable(counts, label, classes) {
  const head = element('tr', {}, element('th', { scope: 'col' }, 'true \\ predicted'), counts.map((_, j) => element('th', { scope: 'col' }, classes[j])));
  const body = counts.map((line, i) => {
    const total = line.reduce((sum, value) => sum + value, 0);
    return element('tr', {}, element('th', { scope: 'row' }, classes[i]), line.map((value) => {
      const share = total ? value / total : 0;
      const cell = element('td', { title: `${percent(share)} of class ${classes[i]}` }, value.toLocaleString('en'));
      cell.style.background = `color-mix(in srgb, var(--heat) ${(55 * share).toFixed(1)}%, transparent)`;
      return cell;
    }));
  });
  return scrollable(label, element('table', { class: 'confusion' }, element('caption', { class: 'visually-hidden' }, label), element('thead', {}, head), element('tbody', {}, body)));
}

function mergedBins(cells, name) {
  const found = new Map();
  for (const [confidence, right, answers] of cells.flatMap((cell) => cell[name] ?? [])) {
    const bin = Math.max(0, Math.ceil(confidence * 15 - 1e-9) - 1);
    const sum = found.get(bin) ?? [0, 0, 0];
    found.set(bin, [sum[0] + confidence * answers, sum[1] + right * answers, sum[2] + answers]);
  }
  return [...found.entries()].sort((a, b) => a[0] - b[0]).map(([, [confidence, right, answers]]) => [confidence / answers, right / answers, answers]);
}

// Solid as the model gives it, dotted after temperature scaling on validation.
function reliabilityChart(holder, cells, family) {
  const line = (name, words, dash) => ({ name: words, family, line: true, dash, points: mergedBins(cells, name).map(([x, y, answers]) => ({
    x, y, name: words, lines: [`confidence ${fixed(x, 2)}: ${fixed(y, 2)} correct`, `${answers.toLocaleString('en')} answers`] })) });
  drawChart(holder, {
    title: 'Reliability (dashed: perfect)', small: true, height: 190, diagonal: true,
    x: { label: 'confidence', domain: [0, 1], ticks: [0, 0.5, 1] }, y: { label: 'share correct', domain: [0, 1], ticks: [0, 0.5, 1] },
    series: [line('reliability', 'as given', ''), line('calibrated', 'temperature scaled', '1 3')].filter((one) => one.points.length),
  });
}

// Records of earlier versions do not name their classes: then numbers.
function classNames(cells, n) {
  const { classes } = cells[0].metrics;
  return Array.from({ length: n }, (_, i) => (classes?.length === n ? String(classes[i]) : String(i)));
}

// What a test set says of one model; several seeds are added up.
function predictionCard(title, cells, family, extra) {
  const counts = confusionOf(cells);
  const bins = cells.flatMap((cell) => cell.reliability ?? []);
  if (!counts && !bins.length) return null;
  const holder = element('div');
  const card = element('div', { class: 'card' }, element('h3', {}, title), extra ?? '',
    element('div', { class: 'pair' }, counts ? element('div', {}, element('p', { class: 'note' }, 'Confusion (test images)'), (cells.some((cell) => Array.isArray(cell.metrics.test_confusion?.[0]?.[0])) ? labelTable : confusionTable)(counts, `Confusion matrix of ${cells[0].model}`, classNames(cells, counts.length))) : '', bins.length ? holder : ''));
  if (bins.length) reliabilityChart(holder, cells, family);
  return card;
}

const CARDS = 24;
const diagnosis = { group: null, shown: CARDS };

function startDiagnosis(section) {
  section.append(element('h2', { tabindex: -1 }, 'Confusion and calibration'));
  const groups = new Map();
  for (const row of data.rows) {
    const cells = row.cells.map((place) => data.cells[place]);
    if (!cells.some((cell) => cell.metrics.test_confusion || cell.reliability)) continue;
    const key = `${row.protocol}|${row.dataset}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push({ row, cells });
  }
  [diagnosis.group] = groups.keys();
  const cards = element('div', { class: 'cards' });
  const more = element('div');
  const fill = () => {
    const members = [...groups.get(diagnosis.group)].sort((a, b) => compare(a.row[RANKING], b.row[RANKING], false));
    cards.replaceChildren(...members.slice(0, diagnosis.shown).map(({ row, cells }) => predictionCard(
      element('a', { href: cellLink(cells[0]) }, row.model), cells, row.family,
      element('p', { class: 'note' }, `${VALIDATED.map(({ name, label }) => `${label} ${fixed(row[name])}, `).join('')}ECE ${fixed(row.ece)}${cells.length > 1 ? `; ${cells.length} seeds together` : row.seeds > 1 ? `; means over ${row.seeds} seeds, the matrix of one` : ''}`))).filter(Boolean));
    const left = members.length - diagnosis.shown;
    more.replaceChildren(left > 0 ? element('button', { type: 'button', on: { click: () => { diagnosis.shown += CARDS; fill(); } } }, `Show more (${left} left)`) : '');
  };
  section.append(element('p', { class: 'note' }, 'Rows of a matrix are the truth, columns the prediction; the shade is the share of the true class. Reliability: 15 bins of confidence as in ECE; solid as the model gives it, dotted after temperature scaling on validation.'),
    element('div', { class: 'controls' }, groups.size > 1 ? select('dataset', groupOptions(groups), diagnosis.group, (value) => { diagnosis.group = value; diagnosis.shown = CARDS; fill(); }) : ''), cards, more);
  fill();
}
