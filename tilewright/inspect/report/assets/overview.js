// What a person wants to know first.
function facts() {
  const labels = [...new Set([...Object.keys(data.facts), ...Object.keys(data.other ? data.other.facts : {})])].filter((label) => label !== 'Pipeline' && label !== 'Model');
  const cell = (facts_, label) => h('td', {}, facts_[label] ?? '–');
  return h('table', { class: 'facts' },
    data.other ? h('thead', {}, h('tr', {}, h('th', {}, ''), h('th', {}, data.title), h('th', {}, `against ${data.other.title}`))) : null,
    h('tbody', {}, labels.map((label) => h('tr', {}, h('th', { scope: 'row' }, label), cell(data.facts, label),
      data.other ? h('td', { class: data.other.facts[label] === data.facts[label] ? 'quiet' : null }, data.other.facts[label] === data.facts[label] ? '= the same' : data.other.facts[label] ?? '–') : null))));
}

function waterfall() {
  const most = Math.max(1, ...data.passes.map((pass) => Math.max(pass.ops_before, pass.ops_after)));
  const theirs = new Map();
  for (const [name, ops, events] of data.other ? data.other.passes : []) theirs.set(name, [...(theirs.get(name) || []), [ops, events]]);
  const seen = new Map();
  const cells = data.passes.map((pass) => {
    const nth = seen.get(pass.name) || 0;
    seen.set(pass.name, nth + 1);
    return { pass, other: (theirs.get(pass.name) || [])[nth] };
  }).filter(({ pass, other }) => pass.status !== 'same' || (data.other && other && other[0] !== pass.ops_after));
  const share = (n) => `${((100 * n) / most).toFixed(2)}%`;
  return h('table', { class: 'waterfall' },
    h('thead', {}, h('tr', {}, h('th', {}, 'pass'), h('th', { class: 'num' }, 'ops'), h('th', {}, ''), data.other ? h('th', { class: 'num' }, `ops in ${data.other.title}`) : null, h('th', { class: 'num' }, 'events'), h('th', { class: 'num' }, 'near misses'))),
    h('tbody', {}, cells.map(({ pass, other }) => {
      const kept = Math.min(pass.ops_before, pass.ops_after);
      const delta = pass.ops_after - pass.ops_before;
      return h('tr', {}, h('td', {}, h('a', { href: link({ tab: 'passes', pass: pass.number, tensor: null }) }, `${two(pass.number)} ${pass.name}`)),
        h('td', { class: 'num' }, pass.status === 'failed' ? '✕' : count(pass.ops_after)),
        h('td', { class: 'bars' }, h('div', { class: 'barline' }, h('span', { class: 'fill', style: `width:${share(kept)}` }), h('span', { class: delta < 0 ? 'less' : 'more', style: `width:${share(Math.abs(delta))}` }),
          h('span', { class: 'delta' }, delta ? `${delta < 0 ? '−' : '+'}${count(Math.abs(delta))}` : '±0'))),
        data.other ? h('td', { class: 'num' }, other ? count(other[0]) : '–') : null, h('td', { class: 'num' }, pass.num_events || '·'), h('td', { class: 'num' }, pass.num_misses || '·'));
    })));
}

function renderOverview(main) {
  const unchanged = data.passes.filter((pass) => pass.status === 'same').length;
  const top = data.kernels.filter((kernel) => stepBytes(kernel)).sort((a, b) => stepBytes(b) - stepBytes(a)).slice(0, 8);
  const total = data.kernels.reduce((sum, kernel) => sum + stepBytes(kernel), 0) || 1;
  main.replaceChildren(h('div', { class: 'overview' },
    h('section', {}, h('h1', {}, data.title), h('div', { class: 'sentences' }, h('p', {}, data.sentences.map((text) => [prose(text), ' ']))), facts(),
      data.facts.Pipeline ? h('details', {}, h('summary', { 'data-focus': 'pipeline' }, 'pipeline'), h('p', { class: 'mono wrap' }, data.facts.Pipeline)) : null),
    h('section', {}, h('h2', {}, 'Passes'), waterfall(), unchanged ? h('p', { class: 'quiet' }, `${unchanged} more passes found nothing to change.`) : null),
    h('section', {}, h('h2', {}, 'Look at'), data.warnings.length
      ? h('ul', { class: 'warnings' }, data.warnings.slice(0, 12).map((warning) => h('li', {}, h('b', {}, '! '), warning.link ? h('a', { href: `#${warning.link}` }, warning.text) : warning.text)),
        data.warnings.length > 12 ? h('li', { class: 'quiet' }, `and ${data.warnings.length - 12} more`) : null)
      : h('p', {}, data.kernels.some((kernel) => kernel.registers !== null) ? 'No kernel spills registers, no pass warned, and no fusion was missed.' : 'No pass warned, and no fusion was missed.')),
    top.length ? h('section', {}, h('h2', {}, 'Kernels by bytes'), h('p', { class: 'quiet' }, `What one token makes each read in a step of ${data.programs[0]}, beside pages of its context.`),
      h('table', { class: 'waterfall' }, h('tbody', {}, top.map((kernel) => h('tr', {}, h('td', {}, h('a', { class: 'mono', href: link({ tab: 'kernels', kernel: kernel.name }) }, kernel.name)),
        h('td', { class: 'num' }, `×${kernel.launches[data.programs[0]]}`), h('td', { class: 'num' }, bytes(stepBytes(kernel))),
        h('td', { class: 'bars' }, h('div', { class: 'barline' }, h('span', { class: 'fill', style: `width:${((100 * stepBytes(kernel)) / total).toFixed(2)}%` }), h('span', { class: 'delta' }, `${((100 * stepBytes(kernel)) / total).toFixed(0)} %`)))))))) : null,
    data.lenses.map((lens) => h('section', {}, h('h2', {}, lens.name), lens.table ? plainTable(lens.table) : h('p', { class: 'note' }, `! this lens failed: ${lens.failure}`)))));
}

function plainTable(found) {
  const rows = found.rows.slice(0, 50);
  return h('table', { class: 'facts' }, h('thead', {}, h('tr', {}, found.columns.map((name) => h('th', {}, name)))), h('tbody', {}, rows.map((row) => h('tr', {}, row.map((cell) => h('td', {}, cell === null ? '–' : String(cell)))))));
}
