// The first screen chooses again when limits are set: the rule of bench/report/recommend.py in the page.

const decision = data.decision;
const asked = new Map(); // cost -> the limit, where one is set

const candidates = [...(decision.models ?? []).keys()].filter((i) => !decision.models[i].control); // all but random networks

const worth = (one, cost) => (isNumber(one[cost.key]) ? one[cost.key] : null);
const costText = (cost, value) => `${cost.label} ${significant(value * cost.factor)} ${cost.unit}`;

// p values of a model against K - 1 others, one of which the data chose: the smallest p of m models counts m (m - 1) / 2 times.
function corrected(p) {
  const found = new Array(p.length);
  let most = 0;
  [...p.keys()].sort((a, b) => p[a] - p[b] || a - b).forEach((at, rank) => {
    const left = p.length - rank;
    most = Math.max(most, (p[at] * left * (left + 1)) / 2);
    found[at] = Math.min(most, 1);
  });
  return found;
}

// Those of `others` that are significantly worse than `model`; all are places in decision.models, which are best first.
function worseThan(model, others) {
  const p = corrected(others.map((other) => decision.p[model][other]));
  return new Set(others.filter((other, i) => other > model && p[i] < decision.alpha));
}

function cheapestFirst(tied) {
  const by = decision.by.find((cost) => tied.every((i) => worth(decision.models[i], cost))) ?? null;
  if (!by) return [null, tied];
  const value = (i) => worth(decision.models[i], by);
  const left = [...tied];
  const order = [];
  while (left.length) {
    const limit = Math.min(...left.map(value)) * (1 + (by.key === 'latency_ms' ? decision.floor : 0));
    order.push(...left.splice(left.findIndex((i) => value(i) <= limit), 1));
  }
  return [by, order];
}

function choose() {
  const fitting = candidates.filter((i) => [...asked].every(([cost, limit]) => {
    const value = worth(decision.models[i], cost);
    return value && (cost.more_is_better ? value >= limit : value <= limit);
  }));
  if (!fitting.length) return { fitting };
  const [best, ...others] = fitting;
  const behind = worseThan(best, others);
  const tied = fitting.filter((i) => !behind.has(i));
  const near = tied.filter((i) => decision.sign * (decision.models[best].score - decision.models[i].score) <= decision.max_loss);
  const [by, [pick, next]] = cheapestFirst(near);
  const second = next ?? tied.find((i) => !near.includes(i));
  return { fitting, tied, near, best, by, pick, second, worse: worseThan(pick, fitting.filter((i) => i !== pick)) };
}

function sentence({ fitting, tied, near, best, by, pick, second }) {
  const one = decision.models[pick];
  const { figure, device, digits } = decision.metric;
  const cost = by ? `, ${costText(by, worth(one, by))}${by.key === 'latency_ms' ? device : ''}` : '';
  const score = `${figure[0].toUpperCase()}${figure.slice(1).replaceAll('`', '')} ${fixed(one.score, digits)}${cost}`;
  const within = fitting.length < candidates.length ? ' within the limits' : '';
  const equals = `of ${near.length} models within ${decision.max_loss} of the best and not significantly worse`;
  const place = fitting.length === 1 ? `the only model${within}`
    : tied.length === 1 ? `significantly better than all others${within}`
      : near.length === 1 ? `best${within}, no other is within ${decision.max_loss} of it`
        : pick === best ? `best${by ? ' and cheapest' : ''} ${equals}`
          : `cheapest ${equals}, ${(one.score - decision.models[best].score).toFixed(digits)} against ${decision.models[best].model}`;
  const next = second === undefined ? '' : ` Runner-up: ${decision.models[second].model}.`;
  return ['Recommended: ', element('b', {}, one.model), `. ${score}; ${place}.${next}`];
}

function startDecision() {
  if (!decision.p) return;
  const sliders = decision.costs.filter((cost) => cost.stops.length > 1);
  if (!sliders.length) return;
  const first = [[...byId('pick').childNodes], [...byId('against').childNodes]];
  const say = (pick, against) => { byId('pick').replaceChildren(...pick); byId('against').replaceChildren(...against); };
  const lines = [...byId('decision-table').tBodies[0].rows];
  const redraw = () => {
    const found = choose();
    const flags = [...asked].map(([cost, limit]) => ` --${cost.limit.replaceAll('_', '-')} ${Number((limit * (cost.more_is_better ? 1 - 1e-5 : 1 + 1e-5)).toPrecision(6))}`).join('');
    if (!asked.size) say(...first);
    else if (found.pick === undefined) say(['No model keeps these limits.'], []);
    else say(sentence(found), ['What speaks against it: ', element('code', {}, `bench recommend RUN${flags}`)]);
    lines.forEach((line, i) => {
      if (decision.models[i].control) return;
      const inside = found.fitting.includes(i);
      line.className = i === found.pick ? 'pick' : inside ? '' : 'out';
      line.lastChild.textContent = i === found.pick ? 'the pick' : !inside ? 'beyond the limits' : found.worse.has(i) ? 'yes' : 'no';
    });
  };
  byId('limits').append(element('details', { open: innerWidth > 700 }, element('summary', {}, 'Limits'),
    element('div', { class: 'controls' }, sliders.map((cost) => slider(cost, redraw)))));
}

function slider(cost, redraw) {
  const word = cost.more_is_better ? 'at least' : 'at most';
  const said = element('output', {}, 'any');
  const control = element('input', { type: 'range', min: 0, max: cost.stops.length, value: 0, step: 1 });
  const name = element('label', {}, `${cost.label} ${word} `, said);
  control.addEventListener('input', () => {
    const stop = Number(control.value);
    if (stop) asked.set(cost, cost.stops[stop - 1]);
    else asked.delete(cost);
    said.textContent = stop ? `${significant(cost.stops[stop - 1] * cost.factor)} ${cost.unit}` : 'any';
    control.setAttribute('aria-valuetext', said.textContent);
    redraw();
  });
  const place = field('', control);
  place.firstChild.replaceWith(name);
  name.htmlFor = control.id;
  return place;
}
