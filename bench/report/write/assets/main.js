// Views and their addresses: #/results, #/cell/KEY (no element has such an id, so that the page does not jump). A view is made when it is first shown.

const VIEWS = {
  overview: ['Overview', () => { startDecision(); startTradeoff(byId('tradeoff')); }],
  results: ['Results', startResults],
  ...(scales() ? { scaling: ['Scaling', startScaling] } : {}),
  ...(data.cells.some((cell) => cell.history.epoch) || !data.detailed ? { training: ['Training', startTraining] } : {}),
  ...(data.cells.some((cell) => cell.metrics.test_confusion || cell.reliability) ? { diagnosis: ['Errors', startDiagnosis] } : {}),
  boards: ['All tables', () => {}],
};
const made = new Set();
const pageTitle = document.title;

function show(first) {
  const [name, key] = location.hash.slice(2).split('/');
  const cell = name === 'cell' ? cellsByKey.get(key) : null;
  const view = cell ? 'cell' : name in VIEWS ? name : 'overview';
  for (const section of document.querySelectorAll('main > section')) section.hidden = section.id !== view;
  for (const link of byId('views').children) {
    if (link.hash === `#/${view}`) {
      link.setAttribute('aria-current', 'page');
      link.scrollIntoView({ block: 'nearest', inline: 'nearest' }); // on a phone the row of views is wider than it
    }
    else link.removeAttribute('aria-current');
  }
  const section = byId(view);
  if (cell) document.title = `${drawCell(section, cell)} – ${pageTitle}`;
  else {
    if (!made.has(view)) VIEWS[view][1](section);
    made.add(view);
    document.title = view === 'overview' ? pageTitle : `${VIEWS[view][0]} – ${pageTitle}`;
  }
  if (first) return;
  window.scrollTo(0, 0);
  section.querySelector('h2')?.focus({ preventScroll: true }); // a screen reader tells where it is now
}

startTheme();
startBoards();
byId('views').append(...Object.entries(VIEWS).map(([name, [title]]) => element('a', { href: `#/${name}` }, title)));
byId('views').hidden = false;
document.querySelector('.skip').addEventListener('click', (event) => { // the address is the view's
  event.preventDefault();
  byId('main').focus();
});
const folded = []; // what paper shows unfolded
window.addEventListener('beforeprint', () => {
  folded.push(...document.querySelectorAll('#overview details:not([open]):not(figure details), #boards details:not([open])'));
  for (const details of folded) details.open = true;
});
window.addEventListener('afterprint', () => { for (const details of folded.splice(0)) details.open = false; });
window.addEventListener('hashchange', () => show(false));
show(true);
