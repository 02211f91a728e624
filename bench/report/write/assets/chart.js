// One chart: axes, points that can be hovered, focused and walked with the arrow keys, lines, labels, a data table.

const pen = document.createElement('canvas').getContext('2d');
pen.font = '11px system-ui, sans-serif';
const textWidth = (text) => pen.measureText(text).width;

// A label without its middle where it is wider than `room`: names of one kind differ at their ends.
function fitted(label, room) {
  let half = Math.ceil(label.length / 2);
  let shown = label;
  while (half > 2 && textWidth(shown) > room) {
    half -= 1;
    shown = `${label.slice(0, half)}…${label.slice(-half)}`;
  }
  return shown;
}

// Ticks from low to high: steps of 1, 2 or 5; on a logarithmic axis 1, 2 and 5 of each decade, or decades alone.
function ticksOf(low, high, log, most, whole) {
  const found = [];
  if (log) {
    const decades = Math.log10(high / low);
    const factors = decades * 2 <= most ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil(decades / most));
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      if (factors.length === 1 && power % every !== 0) continue;
      for (const factor of factors) {
        const tick = Number(`${factor}e${power}`);
        if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
      }
    }
    if (found.length > 1) return found;
    found.length = 0;
  }
  const rough = (high - low) / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const least = whole ? 1 : 0; // epochs have no halves
  const step = Math.max(least, [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough));
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function domainOf(values, log, margin) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (log) {
    const room = Math.max((high / low) ** margin, 1.08);
    return [low / room, high * room];
  }
  const room = (high - low) * margin || Math.abs(high) * 0.05 || 1;
  low -= room;
  high += room;
  return [low, high];
}

const tickText = (value) => (Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-4)
  ? value.toExponential(0) : value.toLocaleString('en', { maximumSignificantDigits: 6 }));

/* Draw a chart into `host` and again whenever its width changes.
   spec: title; x, y: {label, unit, log, domain, ticks, whole}; series: [{name, family, points: [{x, y, low, high, name, lines, href}],
   line, dash, label}]; front: points of the Pareto line; diagonal: draw y = x; height. */
function drawChart(host, spec) {
  const figure = element('figure', { 'aria-label': spec.title });
  const holder = element('div');
  const tip = element('div', { class: 'tip', hidden: true, 'aria-hidden': 'true' });
  figure.append(element('figcaption', {}, spec.title), holder, tip);
  figure.append(dataTable(spec));
  host.replaceChildren(figure);
  let drawn = 0;
  const draw = () => {
    const width = Math.floor(holder.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    holder.replaceChildren(plot(spec, width, tip, figure));
  };
  new ResizeObserver(draw).observe(holder);
  draw();
}

const axisTitle = (axis) => (axis.unit ? `${axis.label} (${axis.unit})` : axis.label);

function plot(spec, width, tip, figure) {
  const points = spec.series.flatMap((series) => series.points);
  const narrow = width < 520;
  const height = spec.height ?? Math.round(Math.min(470, Math.max(300, width * 0.6)));
  const labelled = spec.series.filter((series) => series.line && series.label);
  const longest = Math.max(0, ...labelled.map((series) => textWidth(series.label)));
  const right = labelled.length ? Math.min(longest + 14, width * (narrow ? 0.34 : 0.26)) : 12;
  const xs = points.map((point) => point.x);
  const ys = points.flatMap((point) => [point.y, point.low, point.high]).filter(isNumber);
  const [x0, x1] = spec.x.domain ?? domainOf(xs, spec.x.log, narrow ? 0.1 : 0.06);
  const [y0, y1] = spec.y.domain ?? domainOf(ys, spec.y.log, 0.08);
  const widest = Math.max(...yTicksOf(spec, [y0, y1]).map((tick) => textWidth(tickText(tick))));
  const left = spec.small ? 38 : Math.max(52, widest + 26); // the axis title stands beside the numbers
  const box = { left, right: width - right, top: 10, bottom: height - (spec.small ? 36 : 44) };
  const scale = (value, low, high, from, to, log) => from + (to - from)
    * (log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low));
  const px = (value) => scale(value, x0, x1, box.left, box.right, spec.x.log);
  const py = (value) => scale(value, y0, y1, box.bottom, box.top, spec.y.log);
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'group', 'aria-label': `${spec.title}: ${
    axisTitle(spec.y)} against ${axisTitle(spec.x)}, ${points.length} points; arrow keys move between them` });
  svg.append(axes(spec, box, [x0, x1], [y0, y1], px, py, narrow));
  if (spec.diagonal) svg.append(shape('line', { class: 'front', x1: px(0), y1: py(0), x2: px(1), y2: py(1) }));
  if (spec.front && spec.front.length > 1) svg.append(frontLine(spec, px, py));
  const marks = [];
  for (const series of spec.series) {
    if (series.line) svg.append(curve(series, px, py));
    const size = series.points.length > 40 ? 2 : spec.small || (series.line && series.points.length > 12) ? 3 : 4.5;
    series.points.forEach((point) => marks.push({ series, point, x: px(point.x), y: py(point.y), size }));
  }
  for (const mark of marks) svg.append(pointOf(mark, py, spec));
  if (labelled.length) svg.append(...endLabels(labelled, box, px, py, height, right - 12));
  if (!spec.small) svg.append(...pointLabels(marks.filter((mark) => !mark.series.line), box, width));
  navigate(svg, marks, tip, figure);
  return svg;
}

const yTicksOf = (spec, [y0, y1]) => spec.y.ticks ?? ticksOf(y0, y1, spec.y.log, spec.small ? 3 : 6);

function axes(spec, box, [x0, x1], [y0, y1], px, py, narrow) {
  const group = shape('g', { 'aria-hidden': 'true' });
  const xTicks = spec.x.ticks ?? ticksOf(x0, x1, spec.x.log, spec.small ? 2 : narrow ? 4 : 8, spec.x.whole);
  let last = -Infinity;
  for (const tick of xTicks) {
    const x = px(tick);
    group.append(shape('line', { class: 'grid', x1: x, x2: x, y1: box.top, y2: box.bottom }));
    const text = tickText(tick);
    if (x - last < text.length * 7 + 6) continue; // two numbers would touch
    last = x;
    group.append(shape('text', { class: 'soft', x, y: box.bottom + 15, 'text-anchor': 'middle' }, text));
  }
  for (const tick of yTicksOf(spec, [y0, y1])) {
    const y = py(tick);
    group.append(shape('line', { class: 'grid', x1: box.left, x2: box.right, y1: y, y2: y }),
      shape('text', { class: 'soft', x: box.left - 5, y: y + 4, 'text-anchor': 'end' }, tickText(tick)));
  }
  const middle = (box.top + box.bottom) / 2;
  group.append(
    shape('path', { class: 'axis', fill: 'none', d: `M${box.left},${box.top}V${box.bottom}H${box.right}` }),
    shape('text', { x: (box.left + box.right) / 2, y: box.bottom + 32, 'text-anchor': 'middle' }, axisTitle(spec.x)),
    shape('text', { transform: `translate(11,${middle}) rotate(-90)`, 'text-anchor': 'middle' }, axisTitle(spec.y)),
  );
  return group;
}

// Steps: what lies below and beside the line is beaten by a model on it.
function frontLine(spec, px, py) {
  const [first, ...rest] = spec.front;
  let path = `M${px(first.x)},${py(first.y)}`;
  let before = first;
  for (const point of rest) { // by x ascending: for a speed the score falls, for a cost it rises
    path += point.y < before.y ? `V${py(point.y)}H${px(point.x)}` : `H${px(point.x)}V${py(point.y)}`;
    before = point;
  }
  return shape('path', { class: 'front', d: path });
}

function curve(series, px, py) {
  const path = series.points.map((point, i) => `${i ? 'L' : 'M'}${px(point.x).toFixed(1)},${py(point.y).toFixed(1)}`).join('');
  return shape('path', { d: path, fill: 'none', stroke: colourOf(series.family), 'stroke-width': 1.6,
    'stroke-dasharray': series.dash ?? dashOf(series.family), 'data-series': series.name });
}

function pointOf(mark, py, spec) {
  const { series, point, x, y, size } = mark;
  const colour = colourOf(series.family);
  const said = [point.name, ...point.lines].join(', ');
  const group = shape('g', { class: 'pt', tabindex: -1, role: point.href ? 'link' : 'img', 'aria-label': said });
  if (isNumber(point.low) && isNumber(point.high) && !spec.small) {
    group.append(shape('line', { x1: x, x2: x, y1: py(point.low), y2: py(point.high), stroke: colour, 'stroke-opacity': 0.45 }));
  }
  group.append(shape('circle', { cx: x, cy: y, r: Math.max(10, size * 2), fill: 'transparent' }),
    marker(shapeOf(series.family), x, y, size, colour), shape('circle', { class: 'ring', cx: x, cy: y, r: size + 5 }));
  mark.node = group;
  return group;
}

// Names at the ends of lines, moved apart; those that find no place are told by the tip.
function endLabels(labelled, box, px, py, height, wide) {
  const gap = 12;
  const room = Math.floor((height - 20) / gap);
  const ends = labelled.filter((series) => series.points.length).map((series) => {
    const last = series.points[series.points.length - 1];
    return { series, x: px(last.x), wanted: py(last.y), y: py(last.y) };
  }).sort((a, b) => a.wanted - b.wanted);
  const shown = ends.length <= room ? ends : ends.filter((_, i) => Math.floor((i * room) / ends.length)
    !== Math.floor(((i - 1) * room) / ends.length));
  for (let i = 0, floor = 8; i < shown.length; i += 1) {
    shown[i].y = Math.max(shown[i].y, floor);
    floor = shown[i].y + gap;
  }
  for (let i = shown.length - 1, ceiling = height - 6; i >= 0; i -= 1) {
    shown[i].y = Math.min(shown[i].y, ceiling);
    ceiling = shown[i].y - gap;
  }
  return shown.flatMap(({ series, x, wanted, y }) => [
    shape('path', { d: `M${x + 4},${wanted}L${box.right + 6},${y}`, stroke: colourOf(series.family), 'stroke-opacity': 0.35, fill: 'none' }),
    shape('text', { class: 'label', x: box.right + 9, y: y + 4, 'aria-hidden': 'true' }, fitted(series.label, wide)),
  ]);
}

// Names beside points where they cover neither a point nor another name.
function pointLabels(marks, box, width) {
  const taken = marks.map(({ x, y }) => [x - 6, y - 6, x + 6, y + 6]);
  const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const found = [];
  for (const { point, x, y } of marks) {
    if (!point.label) continue;
    const label = fitted(point.label, Math.min(220, width * 0.4));
    const wide = textWidth(label) + 2;
    const places = [[8, 4], [-8 - wide, 4], [-wide / 2, -10], [-wide / 2, 18], [7, -7], [7, 15], [-wide - 6, -7], [-wide - 6, 15]];
    for (const [dx, dy] of places) {
      const area = [x + dx, y + dy - 10, x + dx + wide, y + dy + 2];
      if (area[0] < box.left + 2 || area[2] > width || area[1] < 0 || area[3] > box.bottom) continue;
      if (taken.some((other, i) => marks[i]?.point !== point && meets(area, other))) continue;
      taken.push(area);
      found.push(shape('text', { class: 'label', x: x + dx, y: y + dy, 'aria-hidden': 'true' }, label));
      break;
    }
  }
  return found;
}

// One stop for the tab key; left and right go from point to point, up and down from line to line.
function navigate(svg, marks, tip, figure) {
  if (!marks.length) return;
  const order = marks.some((mark) => mark.series.line) ? marks : [...marks].sort((a, b) => a.x - b.x);
  order[0].node.setAttribute('tabindex', 0);
  const curves = () => svg.querySelectorAll('path[data-series]');
  const show = (mark) => {
    tip.replaceChildren(element('b', {}, mark.point.name), ...mark.point.lines.map((line) => element('div', {}, line)));
    tip.hidden = false;
    const drawing = svg.getBoundingClientRect();
    const outer = figure.getBoundingClientRect();
    const left = drawing.left - outer.left + mark.x + 12;
    const most = outer.width - tip.offsetWidth - 4;
    tip.style.left = `${Math.max(0, left > most ? Math.min(most, left - tip.offsetWidth - 24) : left)}px`;
    tip.style.top = `${Math.max(0, drawing.top - outer.top + mark.y - tip.offsetHeight - 10)}px`;
    if (mark.series.line) for (const path of curves()) path.classList.toggle('faint', path.dataset.series !== mark.series.name);
  };
  const hide = () => {
    tip.hidden = true;
    for (const path of curves()) path.classList.remove('faint');
  };
  const go = (mark) => {
    for (const other of order) other.node.setAttribute('tabindex', -1);
    mark.node.setAttribute('tabindex', 0);
    mark.node.focus();
  };
  order.forEach((mark, i) => {
    const open = () => { if (mark.point.href) location.hash = mark.point.href; };
    mark.node.addEventListener('pointerenter', () => show(mark));
    mark.node.addEventListener('pointerleave', () => { if (document.activeElement !== mark.node) hide(); });
    mark.node.addEventListener('focus', () => show(mark));
    mark.node.addEventListener('blur', hide);
    mark.node.addEventListener('click', (event) => { // a finger has no hover: its first tap shows, the second opens
      if (event.pointerType === 'touch' && document.activeElement !== mark.node) go(mark);
      else open();
    });
    mark.node.addEventListener('keydown', (event) => {
      const starts = order.flatMap((other, j) => (j && other.series === order[j - 1].series ? [] : [j]));
      const here = starts.filter((j) => j <= i).length - 1;
      const line = (step) => order[starts[here + step] ?? i];
      const moves = { ArrowRight: order[i + 1], ArrowLeft: order[i - 1], ArrowDown: line(1), ArrowUp: line(-1),
        Home: order[0], End: order[order.length - 1] };
      if (event.key === 'Escape') hide();
      else if (event.key === 'Enter' || event.key === ' ') open();
      else if (!(event.key in moves)) return;
      else if (moves[event.key]) go(moves[event.key]);
      event.preventDefault();
    });
  });
}

// The same numbers for whoever does not see the picture; made when it is opened.
function dataTable(spec) {
  const details = element('details', {}, element('summary', {}, 'This figure as a table'));
  details.addEventListener('toggle', () => {
    if (!details.open || details.querySelector('table')) return;
    const lines = spec.series.flatMap((series) => series.points).map((point) => element('tr', {},
      element('th', { scope: 'row' }, point.name), element('td', { class: 'n' }, significant(point.x, 4)),
      element('td', { class: 'n' }, significant(point.y, 4)),
      element('td', { class: 'n' }, span(point.low, point.high))));
    details.append(scrollable(spec.title, element('table', {}, element('thead', {}, element('tr', {},
      element('th', { scope: 'col' }, 'name'), element('th', { scope: 'col', class: 'n' }, axisTitle(spec.x)),
      element('th', { scope: 'col', class: 'n' }, axisTitle(spec.y)), element('th', { scope: 'col', class: 'n' }, '95 %'))),
    element('tbody', {}, lines))));
  });
  return details;
}
