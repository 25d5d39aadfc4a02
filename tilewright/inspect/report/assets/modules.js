// The tree of modules, and what was measured, where a command has left it.
function renderModules(main) {
  const timed = data.profiles[0];
  const columns = [
    { key: 'path', label: 'module', value: (m) => m.path, width: 'minmax(260px,1.2fr)', show: (m) => h('span', { class: 'mono', style: `padding-left:${m.depth * 16}px` }, m.path.split('.').pop(), m.count > 1 && m.path.endsWith('{L}') ? h('span', { class: 'quiet' }, ` ×${m.count}`) : null) },
    { key: 'imported', label: 'ops imported', value: (m) => m.ops_imported, show: (m) => m.ops_imported || '·', isNumber: true, width: '110px' },
    { key: 'ops', label: 'ops now', value: (m) => m.ops, show: (m) => m.ops || '·', isNumber: true, width: '90px' },
    { key: 'bytes', label: 'weights', value: (m) => m.weight_bytes, show: (m) => (m.weight_bytes ? bytes(m.weight_bytes) : '·'), isNumber: true, width: '100px' },
    ...(timed ? [{ key: 'time', label: 'µs a step', value: (m) => timed.modules[m.path], show: (m) => (timed.modules[m.path] ? us(timed.modules[m.path]) : '·'), isNumber: true, width: '90px', title: timed.title }] : []),
    { key: 'fate', label: 'computed by', value: (m) => m.kernels.join(), width: 'minmax(260px,2fr)', show: fate },
  ];
  const list = table({ columns, rows: data.modules, label: 'Modules', fill: true, rowClass: (m) => (m.path === state.module ? 'selected' : '') });
  main.replaceChildren(h('div', { class: 'kernels' }, list, h('p', { class: 'quiet foot' }, 'Ops and bytes count all that is inside a module, over all equal layers; weights are as imported.', timed ? ` Time is that of the launches which compute any part of it: ${timed.title}, ${timed.made.Device}.` : '')));
  const chosen = data.modules.findIndex((module) => module.path === state.module);
  if (chosen >= 0) list.body.reveal(chosen);
}

function fate(module) {
  const folded = module.folded_by ? `folded by pass ${module.folded_by}` : '';
  const kernels = module.kernels.slice(0, 4).map((name, i) => [i ? ', ' : '', h('a', { class: 'mono', href: link({ tab: 'kernels', kernel: name }) }, name)]);
  if (folded) return h('span', {}, h('a', { href: link({ tab: 'passes', pass: Number(module.folded_by.split(' ')[0]) }) }, folded), kernels.length ? ': ' : '', kernels);
  if (kernels.length) return h('span', {}, kernels, module.kernels.length > 4 ? ` and ${module.kernels.length - 4} more` : '');
  return h('span', { class: 'quiet' }, module.ops ? 'when weights are packed' : module.ops_imported ? '' : 'has no op of its own');
}

function renderMeasured(main, { title, tables, nothing }) {
  if (!tables.length) {
    main.replaceChildren(h('div', { class: 'text' }, h('h1', {}, title), nothing.map((text) => h('p', {}, prose(text)))));
    return;
  }
  const show = (value) => (typeof value === 'number' && !Number.isInteger(value) ? (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5 ? value.toExponential(2) : value.toFixed(4)) : value);
  const words = (found, i) => found.rows.some((row) => typeof row[i] === 'string' && !/^-?(nan|inf)$/.test(row[i]));
  main.replaceChildren(h('div', { class: 'measured' }, h('h1', {}, title), tables.map((found, nth) => {
    const columns = found.columns.map((name, i) => ({
      key: `${nth}.${name}`, label: name.replace(/^\w+\.(?!name)/, ''), isNumber: !words(found, i), value: (row) => (typeof row[i] === 'string' && !words(found, i) ? null : row[i]),
      width: !words(found, i) ? 'minmax(60px,1fr)' : /name|value|region|modules|kernels/.test(name) ? 'minmax(190px,3fr)' : 'minmax(76px,1.2fr)',
      show: (row) => (/name|value/.test(name) && typeof row[i] === 'string' && /^[%@]/.test(row[i]) ? tensorLink(bare(row[i]), row[i][0]) : show(row[i])),
    }));
    return h('section', {}, h('h2', {}, found.title), table({ columns, rows: found.rows, label: found.title, sort: state.sort, onsort: (next) => link({ sort: next }) }),
      found.left_out ? h('p', { class: 'quiet' }, `${count(found.left_out)} more rows are in the file.`) : null);
  })));
}
