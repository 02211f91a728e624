// Which models can be told apart: bars over ranks, one line a model, the tie groups as letters.

const ordering = { protocol: data.first, place: 0 };

function startOrder(holder) {
  const protocols = protocolOptions().filter(([i]) => data.protocols[i].orders.length);
  if (!protocols.length) return; // the summary says why
  if (!protocols.some(([i]) => i === ordering.protocol)) [[ordering.protocol]] = protocols;
  const controls = element('div', { class: 'controls' });
  const chart = element('div');
  const note = element('p', { class: 'note' });
  holder.append(element('h2', { tabindex: -1 }, 'What can be told apart'), controls, chart, note);
  const make = () => {
    const { orders } = data.protocols[ordering.protocol];
    ordering.place = Math.min(ordering.place, orders.length - 1);
    const draw = () => {
      drawChart(chart, orderSpec(orders[ordering.place]));
      note.textContent = orders[ordering.place].note;
    };
    controls.replaceChildren(
      orders.length > 1 ? segmented('Order', orders.map((order, i) => [i, order.title]), ordering.place, (i) => { ordering.place = i; draw(); }) : '',
      protocols.length > 1 ? select('protocol', protocols, ordering.protocol, (value) => { ordering.protocol = Number(value); make(); }) : '');
    draw();
  };
  make();
}

function orderSpec(order) {
  return { title: order.title, rows: true, x: { label: order.axis }, y: { label: '' }, series: order.lines.map((line, i) => ({
    name: line.model, family: data.codes[line.code].family, points: [{
      x: line.x, y: i, low: line.low, high: line.high, name: line.model, label: shortName(line.model, line.code), groups: line.groups,
      lines: [`${order.axis} ${significant(line.x)} (${significant(line.low)} to ${significant(line.high)})`, line.groups ? `tie groups ${line.groups}` : ''].filter(Boolean) }] })) };
}

function rowPlot(spec, width, tip, figure) {
  const points = spec.series.map((series) => series.points[0]);
  const left = Math.min(width * 0.42, Math.max(...points.map((point) => textWidth(point.label))) + 14);
  const right = width - Math.min(width * 0.2, Math.max(...points.map((point) => textWidth(point.groups))) + 16);
  const step = 20;
  const bottom = 10 + points.length * step;
  const ends = points.flatMap((point) => [point.x, point.low, point.high]);
  const [x0, x1] = [Math.min(...ends) - 0.4, Math.max(...ends) + 0.4];
  const px = (value) => left + ((right - left) * (value - x0)) / (x1 - x0);
  const py = (i) => 10 + (i + 0.5) * step;
  const svg = shape('svg', { viewBox: `0 0 ${width} ${bottom + 40}`, width, height: bottom + 40, role: 'group',
    'aria-label': `${spec.title}, ${points.length} models; arrow keys move between them` });
  for (const tick of ticksOf(x0, x1, false, width < 520 ? 5 : 12, true)) {
    svg.append(shape('line', { class: 'grid', x1: px(tick), x2: px(tick), y1: 10, y2: bottom }),
      shape('text', { class: 'soft', x: px(tick), y: bottom + 15, 'text-anchor': 'middle', 'aria-hidden': 'true' }, tickText(tick)));
  }
  svg.append(shape('text', { x: (left + right) / 2, y: bottom + 32, 'text-anchor': 'middle', 'aria-hidden': 'true' }, spec.x.label));
  const marks = spec.series.map((series, i) => {
    const [point] = series.points;
    const y = py(i);
    const node = shape('g', { class: 'pt', tabindex: -1, role: 'img', 'aria-label': [point.name, ...point.lines].join(', ') },
      shape('rect', { x: 0, y: y - step / 2, width, height: step, fill: 'transparent' }),
      shape('text', { class: 'label', x: left - 8, y: y + 4, 'text-anchor': 'end' }, fitted(point.label, left - 12)),
      shape('line', { x1: px(point.low), x2: px(point.high), y1: y, y2: y, stroke: colourOf(series.family), 'stroke-width': 3, 'stroke-opacity': 0.55 }),
      marker(shapeOf(series.family), px(point.x), y, 4, colourOf(series.family)),
      shape('circle', { class: 'ring', cx: px(point.x), cy: y, r: 9 }),
      shape('text', { class: 'label', x: right + 8, y: y + 4 }, point.groups));
    svg.append(node);
    return { series, point, x: px(point.x), y, node };
  });
  navigate(svg, marks, tip, figure, true);
  return svg;
}

function fitted(label, room) {
  let shown = label;
  while (shown.length > 1 && textWidth(shown) > room) shown = `${shown.slice(0, -2)}…`;
  return shown;
}
