// One search over tensors of all stages, kernels, modules and passes.
const MAX_FOUND = 40;
let wordsOf = null;
let found = [];
let active = -1;

function searchIndex() {
  if (wordsOf) return wordsOf;
  wordsOf = [];
  const add = (kind, text, target, note) => wordsOf.push({ kind, text, target, note, words: lower(`${text} ${note || ''}`) });
  for (const pass of data.passes) add('pass', `${two(pass.number)} ${pass.name}`, { tab: 'passes', pass: pass.number }, pass.status === 'same' ? 'changed nothing' : `${pass.num_events} events`);
  for (const kernel of allKernels()) add('kernel', kernel.name, { tab: 'kernels', kernel: kernel.name }, kernel.what);
  for (const module of data.modules) add('module', module.path, { tab: 'modules', module: module.path }, module.count > 1 ? `×${module.count}` : '');
  const seen = new Set();
  for (let i = data.snapshots.length - 1; i >= 0; i--) {
    const snapshot = data.snapshots[i];
    for (const row of graphOf(snapshot).rows) {
      row.names.forEach((name, which) => {
        const key = row.block ? name.replace(PLACE, '{L}') : splitLayer(name).key;
        if (seen.has(key)) return;
        seen.add(key);
        const isLast = i === data.snapshots.length - 1;
        add('tensor', spanOf(row, which), { tab: 'passes', tensor: tensorOf(row, null, which), pass: isLast ? null : snapshot.number, weights: row.kind === 'param' ? '1' : state.weights }, `${row.op}${isLast ? '' : `, last after ${two(snapshot.number)}`}`);
      });
    }
  }
  return wordsOf;
}

function search(query) {
  const parts = lower(query).split(/\s+/).filter(Boolean);
  if (!parts.length) return [];
  // A layer may be named by its number: layers.17.mlp finds layers.{0..31}.mlp.
  const { key, layer } = splitLayer(query.trim().replace(/^[%@]/, ''));
  const exact = layer !== null ? [...data.snapshots].reverse().find((snapshot) => findRow(graphOf(snapshot), key.replace('{L}', layer))) : null;
  const hits = searchIndex().filter((item) => parts.every((part) => item.words.includes(part)));
  // First what is named so, then what ends so, then what is short.
  const rank = (item) => (parts.every((part) => lower(item.text).includes(part)) ? 0 : 2) + (lower(item.text).endsWith(parts[parts.length - 1]) ? 0 : 1) + item.text.length / 1000;
  const order = { pass: 0, kernel: 1, module: 2, tensor: 3 };
  hits.sort((a, b) => rank(a) - rank(b) || order[a.kind] - order[b.kind]);
  if (exact) hits.unshift({ kind: 'tensor', text: query.trim(), target: { tab: 'passes', tensor: key.replace('{L}', layer), pass: exact.number }, note: 'of this layer' });
  return hits.slice(0, MAX_FOUND);
}

function showFound() {
  const input = document.getElementById('search');
  const box = document.getElementById('found');
  found = search(input.value);
  active = found.length ? 0 : -1;
  box.hidden = !input.value.trim();
  input.setAttribute('aria-expanded', String(!box.hidden));
  box.replaceChildren(...(found.length ? found.map((item, index) => h('a', {
    role: 'option', id: `found-${index}`, class: 'hit', href: link({ ...item.target }), tabindex: -1, 'aria-selected': String(index === active), onclick: hideFound,
  }, h('span', { class: `kind ${item.kind}` }, item.kind), h('span', { class: 'mono' }, item.text), h('span', { class: 'quiet' }, item.note || ''))) : [h('p', { class: 'quiet' }, 'Nothing has all of these words.')]));
  markActive();
}

function markActive() {
  const input = document.getElementById('search');
  [...document.getElementById('found').children].forEach((node, index) => {
    if (node.role !== 'option') return;
    node.setAttribute('aria-selected', String(index === active));
    if (index === active) node.scrollIntoView({ block: 'nearest' });
  });
  if (active >= 0) input.setAttribute('aria-activedescendant', `found-${active}`);
  else input.removeAttribute('aria-activedescendant');
}

function hideFound() {
  document.getElementById('found').hidden = true;
  document.getElementById('search').setAttribute('aria-expanded', 'false');
}

function startSearch() {
  const input = document.getElementById('search');
  input.addEventListener('input', showFound);
  input.addEventListener('focus', () => input.value && showFound());
  input.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      active = Math.max(0, Math.min(found.length - 1, active + (event.key === 'ArrowDown' ? 1 : -1)));
      markActive();
    } else if (event.key === 'Enter' && found[active]) {
      const { target } = found[active];
      hideFound();
      input.blur();
      go(target);
    } else if (event.key === 'Escape') {
      hideFound();
      input.blur();
    }
  });
  document.addEventListener('click', (event) => event.target.closest('.search') || hideFound());
}
