// The list of passes, the ledger of the chosen one, and the card of the chosen tensor.
let view = null; // what is on the screen: {key, step, box, side}

// Entries of the list: the import, each pass that changed something, neighbours that changed nothing as one, the comparison.
const entries = (() => {
  const found = [{ passes: [{ number: 0, name: 'import', title: 'import', doc: 'The model as traced.', status: 'changed', events: [], warnings: [], ops_after: null }] }];
  for (const pass of data.passes) {
    const top = found[found.length - 1];
    if (pass.status === 'same' && top.same) top.passes.push(pass);
    else found.push({ passes: [pass], same: pass.status === 'same' });
  }
  found[0].passes[0].ops_after = found.length > 1 ? found[1].passes[0].ops_before : null;
  if (data.other) found.push({ passes: [{ number: 'vs', name: `against ${data.other.title}`, title: `final graph against that of ${data.other.title}`, doc: '', status: 'changed', events: [], warnings: [] }] });
  return found;
})();

const isOf = (entry, number) => entry.passes.some((pass) => String(pass.number) === String(number));
const lastChange = () => data.snapshots[data.snapshots.length - 1].number;

function stepOf(number) {
  const last = data.snapshots[data.snapshots.length - 1];
  if (number === 'vs' && data.other) return { number, snapshot: data.other.final, previous: last, isChange: true };
  const index = data.snapshots.findLastIndex((snapshot) => snapshot.number <= Number(number));
  const snapshot = data.snapshots[Math.max(0, index)];
  return { number: Number(number), snapshot, previous: data.snapshots[index - 1], isChange: index > 0 && snapshot.number === Number(number) };
}

// Both deltas where the two runs differ there.
function theirDelta(pass, delta) {
  const nth = data.passes.filter((other) => other.name === pass.name && other.number < pass.number).length;
  const index = data.other.passes.map(([name], i) => [name, i]).filter(([name]) => name === pass.name).map(([, i]) => i)[nth];
  const mine = delta > 0 ? `+${delta}` : delta < 0 ? `−${-delta}` : '±0';
  if (index === undefined) return `${mine} | –`;
  const theirs = data.other.passes[index][1] - (index ? data.other.passes[index - 1][1] : data.passes[0].ops_before);
  return theirs === delta ? mine : `${mine} | ${theirs > 0 ? '+' : theirs < 0 ? '−' : '±'}${Math.abs(theirs)}`;
}

function passItem(entry, current) {
  const [first] = entry.passes;
  const last = entry.passes[entry.passes.length - 1];
  const delta = first.ops_after - first.ops_before;
  const misses = entry.passes.reduce((sum, pass) => sum + (pass.num_misses || 0), 0);
  const isMany = entry.passes.length > 1;
  const label = entry.same ? `${isMany ? `${two(first.number)}–${two(last.number)}` : two(first.number)}` : first.number === 'vs' ? '↔' : two(first.number);
  const name = entry.same ? (isMany ? `= ${entry.passes.length} passes` : `= ${first.name}`) : first.name;
  const right = first.status === 'failed' ? '✕ failed' : entry.same ? (misses ? `${misses} near` : '') : first.number === 0 ? `${count(first.ops_after ?? 0)} ops` : first.number === 'vs' ? '' : data.other ? theirDelta(first, delta) : delta > 0 ? `+${delta}` : delta < 0 ? `−${-delta}` : '±0';
  return h('a', {
    href: link({ tab: 'passes', pass: first.number }), class: `pass ${entry.same ? 'same' : ''} ${first.status}`, 'aria-current': isOf(entry, current) ? 'true' : null,
    title: entry.passes.map((pass) => `${pass.number} ${pass.title}`).join('\n'), 'data-focus': `pass-${first.number}`,
  }, h('span', { class: 'number' }, label), h('span', { class: 'label' }, name), h('span', { class: 'delta' }, right));
}

function toggle(label, key, on, off, isOn) {
  return h('a', { class: 'button', role: 'button', 'aria-pressed': String(isOn), href: link({ [key]: isOn ? off : on }), 'data-focus': key }, label);
}

function passHead(entry, step, options) {
  const [first] = entry.passes;
  const signs = step.isChange ? tally(step) : [];
  const modes = ['before', 'both', 'after'];
  const events = entry.passes.flatMap((pass) => pass.events.map((event) => ({ event, pass })));
  const warnings = entry.passes.flatMap((pass) => pass.warnings);
  return h('div', { class: 'passhead' },
    h('div', { class: 'line' },
      h('h1', {}, entry.same && entry.passes.length > 1 ? `${two(first.number)}–${two(entry.passes[entry.passes.length - 1].number)}  nothing changed` : first.number === 'vs' ? `↔ ${first.title}` : `${two(first.number)}  ${first.title}`),
      h('div', { class: 'toggles' },
        step.isChange ? h('span', { class: 'segments', role: 'group', 'aria-label': 'Graph' }, modes.map((mode) => h('a', {
          class: 'button', role: 'button', 'aria-pressed': String(options.show === mode), href: link({ show: mode === 'both' ? null : mode }), 'data-focus': `show-${mode}`,
        }, first.number === 'vs' && mode !== 'both' ? (mode === 'before' ? data.title : data.other.title) : mode))) : null,
        toggle('hide views', 'views', '0', null, options.hideViews),
        toggle('weights', 'weights', '1', null, options.weights))),
    entry.same && entry.passes.length > 1
      ? h('p', {}, 'Found nothing to change: ', entry.passes.map((pass, i) => [i ? ', ' : '', h('span', { class: 'mono', title: pass.doc }, pass.name)]), '.')
      : first.doc ? h('p', {}, prose(first.doc)) : null,
    h('p', { class: 'quiet' }, entry.same ? '' : first.number === 'vs' ? 'rows that only one of the two has, and rows made in another way' : first.number === 0 ? `${count(first.ops_after ?? 0)} ops`
      : `ops ${count(first.ops_before)} → ${count(first.ops_after)}, ${count(first.num_events)} events, ${count(first.num_misses)} near misses${theirOps(first)}`,
    signs.length ? h('span', {}, ' · rows: ', signs.map(([glyph, n, kind, word]) => h('span', { class: `mark ${kind}`, title: word }, `${glyph} ${n} `))) : null),
    first.status === 'failed' ? h('p', { class: 'note' }, '✕ This pass failed: below is the graph before it.') : null,
    warnings.map((text) => h('p', { class: 'note' }, `! ${text}`)),
    events.length ? h('details', { open: options.events ? true : null }, h('summary', { 'data-focus': 'events' }, events.length === 1 ? '1 kind of event' : `${events.length} kinds of events and near misses`),
      h('div', { class: 'events', tabindex: 0, 'aria-label': 'Events' }, events.slice(0, 60).map(({ event }) => h('div', { class: `event ${event.kind}` },
        h('span', { class: 'tag' }, `${event.kind === 'missed' ? '✕ missed' : '✓ event'} ${event.tag}`), h('span', { class: 'mono' }, event.place), h('span', {}, spaced(event.what)))),
      events.length > 60 ? h('div', { class: 'quiet' }, `and ${events.length - 60} more: tilewright why ENGINE ${first.name}`) : null)) : null);
}

// What the same pass left in the run that this one is compared with.
function theirOps(pass) {
  if (!data.other) return '';
  const nth = data.passes.filter((other) => other.name === pass.name && other.number < pass.number).length;
  const found = data.other.passes.filter(([name]) => name === pass.name)[nth];
  return found ? ` · in ${data.other.title}: ${count(found[1])} ops, ${count(found[2])} events, ${count(found[3])} near misses` : ` · ${data.other.title} did not run it`;
}

function tally(step) {
  const all = [...step.snapshot.signs].concat([...step.snapshot.before].filter((sign) => sign === '-'));
  const found = [];
  for (const [sign, kind] of [['+', 'added'], ['-', 'removed'], ['~', 'changed'], ['>', 'rereads']]) {
    const n = all.filter((s) => s === sign).length;
    if (n) found.push([SIGNS[sign][0], n, kind, SIGNS[sign][1]]);
  }
  return found;
}

function renderPasses(main) {
  const number = state.pass ?? String(lastChange());
  const entry = entries.find((found) => isOf(found, number)) || entries[0];
  const step = stepOf(entry.passes[0].number);
  const options = { show: ['before', 'after'].includes(state.show) ? state.show : 'both', hideViews: state.views === '0', weights: state.weights === '1' };
  const key = JSON.stringify([number, options, state.theme]);
  const select = (name, quietly) => go({ tensor: name }, quietly);
  if (!view || view.key !== key || !main.contains(view.box)) {
    const top = view && main.contains(view.box) ? main.querySelector('.passlist').scrollTop : 0;
    const box = ledger(step, options, select);
    const side = h('div', { class: 'side' });
    main.replaceChildren(h('div', { class: 'passes' },
      h('nav', { class: 'passlist', 'aria-label': 'Passes' }, entries.map((found) => passItem(found, number)), h('p', { class: 'hint' }, h('kbd', {}, 'j'), ' ', h('kbd', {}, 'k'), ' next, previous pass')),
      h('section', { class: 'centre', 'aria-label': 'Graph' }, passHead(entry, step, options), box), side));
    view = { key, box, side };
    const list = main.querySelector('.passlist');
    list.scrollTop = top;
    const current = list.querySelector('[aria-current]');
    if (current) current.scrollIntoView({ block: 'nearest' });
    if (!state.tensor) box.revealFirstChange();
  } else {
    main.querySelectorAll('.passlist a, .toggles a').forEach((a) => {
      const [tab, rest] = a.getAttribute('href').slice(1).split('?');
      const params = new URLSearchParams(rest);
      if (state.tensor) params.set('tensor', state.tensor);
      else params.delete('tensor');
      a.setAttribute('href', `#${tab}?${params}`);
    });
  }
  view.box.select(state.tensor || null);
  view.side.replaceChildren(state.tensor ? card(step, state.tensor, options.show) : h('aside', { class: 'card empty' },
    h('p', { class: 'quiet' }, 'Choose a row to see where its tensor comes from, which kernel computes it, and what each pass did to it.'),
    h('dl', { class: 'legend' }, ['+', '-', '~', '>'].map((sign) => [h('dt', { class: `mark ${{ '+': 'added', '-': 'removed', '~': 'changed', '>': 'rereads' }[sign]}` }, SIGNS[sign][0]), h('dd', {}, SIGNS[sign][1])]),
      h('dt', {}, h('kbd', {}, '↑'), h('kbd', {}, '↓')), h('dd', {}, 'move in the ledger'), h('dt', {}, h('kbd', {}, 'j'), h('kbd', {}, 'k')), h('dd', {}, 'move through passes'),
      h('dt', {}, h('kbd', {}, '/')), h('dd', {}, 'search'), h('dt', {}, h('kbd', {}, '1'), '…', h('kbd', {}, '6')), h('dd', {}, 'views'))));
}

function movePass(by) {
  const number = state.pass ?? String(lastChange());
  const index = entries.findIndex((entry) => isOf(entry, number));
  const next = entries[Math.min(entries.length - 1, Math.max(0, index + by))];
  go({ pass: next.passes[0].number });
}
