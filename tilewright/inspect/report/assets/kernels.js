// Kernels: what each takes and how often it is launched; and one of them from its source on.
const SAMPLING = 'sampling-'; // begins what launches the kernels that sample, as a program launches the others

function allKernels() {
  const others = data.other ? data.other.kernels : [];
  const known = new Set(data.kernels.map((kernel) => kernel.name));
  const theirs = new Set(others.map((kernel) => kernel.name));
  const mark = (kernel, sign) => ({ ...kernel, sign });
  return [...data.kernels.map((kernel) => mark(kernel, data.other ? (theirs.has(kernel.name) ? '=' : '-') : '')), ...others.filter((kernel) => !known.has(kernel.name)).map((kernel) => mark(kernel, '+'))];
}

const allPrograms = () => [...new Set([...data.programs, ...(data.other ? data.other.kernels.flatMap((kernel) => Object.keys(kernel.launches)).filter((name) => !name.startsWith(SAMPLING)) : [])])];

// Where both runs have a kernel and launch it differently, both numbers.
function showLaunches(kernel, program) {
  const theirs = kernel.sign === '=' ? data.other.kernels.find((other) => other.name === kernel.name) : null;
  const [a, b] = [kernel, theirs || kernel].map((k) => (k.launches[program] ? `×${k.launches[program]}` : '·'));
  return a === b ? a : `${a} → ${b}`;
}

const samplesFor = (kernel) => Object.keys(kernel.launches).filter((name) => name.startsWith(SAMPLING)).map((name) => name.slice(SAMPLING.length)).join(', ');

const stepBytes = (kernel) => (kernel.bytes_read ?? 0) * (kernel.launches[data.programs[0]] || 0);

function kernelColumns() {
  const timed = data.profiles.length ? new Map(data.profiles[0].kernels.map((row) => [row.kernel, row])) : null;
  const number = (key, label, value, more) => ({ key, label, value, isNumber: true, width: '84px', ...more });
  const compiled = data.kernels.some((kernel) => kernel.language === 'triton');
  const columns = [
    { key: 'name', label: 'kernel', value: (k) => k.name, width: 'minmax(180px,1.1fr)', show: (k) => h('a', { class: 'mono', href: link({ kernel: k.name, code: null }), 'data-focus': `kernel-${k.name}` }, k.name) },
    { key: 'what', label: 'computes', value: (k) => k.what, width: 'minmax(150px,1.2fr)' },
    ...allPrograms().map((program) => number(`n.${program}`, program, (k) => k.launches[program] || 0, { show: (k) => showLaunches(k, program), title: `launches in a step of ${program}` })),
    ...(data.kernels.some((k) => samplesFor(k)) ? [{ key: 'samples', label: 'sampling', value: samplesFor, show: (k) => samplesFor(k) || '·', width: '96px', title: 'ways of sampling that launch it' }] : []),
    ...(compiled ? [number('registers', 'registers', (k) => k.registers), number('shared', 'shared', (k) => k.shared_bytes, { show: (k) => bytes(k.shared_bytes) }),
      number('spills', 'spills', (k) => k.stack_bytes, { show: (k) => (k.stack_bytes ? `! ${k.stack_bytes} B` : 'none') })] : []),
    ...(timed ? [number('us', 'µs a step', (k) => (timed.get(k.name) || {}).us, { show: (k) => (timed.has(k.name) ? us(timed.get(k.name).us) : '·'), title: data.profiles[0].title })] : []),
    ...(timed && data.profiles[0].read_limit ? [number('wasted', 'wasted µs', (k) => timed.has(k.name) && wastedUs(timed.get(k.name)), { show: (k) => (timed.has(k.name) ? us(wastedUs(timed.get(k.name))) : '·'), title: 'beyond what the limits of the machine leave it' })] : []),
    number('bytes', 'bytes', (k) => k.bytes_read, { show: (k) => bytes(k.bytes_read), title: 'read by a launch for one token, without pages' }),
    { key: 'modules', label: 'modules', value: (k) => k.modules.map(showName).join(', '), width: 'minmax(160px,1.6fr)' },
  ];
  const signs = { '=': 'both', '-': `− ${data.title}`, '+': `+ ${data.other && data.other.title}` };
  if (data.other) columns.splice(1, 0, { key: 'in', label: 'in', value: (k) => k.sign, show: (k) => h('span', { class: `mark ${{ '+': 'added', '-': 'removed' }[k.sign] || ''}` }, signs[k.sign]), width: '110px' });
  return columns;
}

function renderKernels(main) {
  const rows = allKernels();
  if (!rows.length) {
    main.replaceChildren(h('div', { class: 'text' }, h('h1', {}, 'Kernels'), h('p', {}, 'These are the dumps of a build that made no engine, so there are no kernels to show.')));
    return;
  }
  const kernel = rows.find((found) => found.name === state.kernel);
  const list = table({ columns: kernelColumns(), rows, label: 'Kernels', sort: state.sort || (data.profiles.length ? (data.profiles[0].read_limit ? '-wasted' : '-us') : '-bytes'), onsort: (next) => link({ sort: next }), rowClass: (k) => (k === kernel ? 'selected' : ''), fill: !kernel });
  main.replaceChildren(h('div', { class: `kernels ${kernel ? 'split' : ''}` }, list, kernel ? kernelDetail(kernel) : null,
    kernel ? null : h('p', { class: 'quiet foot' }, `${rows.length} kernels. “bytes” is what one launch reads for one token, beside pages of the context. `, data.notes.map(prose))));
  if (kernel) list.body.reveal(list.order.indexOf(kernel));
}

function kernelDetail(kernel) {
  const code = kernel.ptx.length && state.code === 'ptx' ? 'ptx' : 'source';
  const lines = kernel[code];
  const notes = new Map();
  for (const [line, problem] of kernel.lints) if (line) notes.set(line, [...(notes.get(line) || []), problem]);
  const general = kernel.lints.filter(([line]) => !line).map(([, problem]) => problem);
  const source = virtualList({
    count: lines.length, height: 20, role: 'region', label: `Code of ${kernel.name}`, className: 'code',
    draw: (index) => {
      const text = texts[lines[index]];
      const found = code === 'source' ? notes.get(index + 1) : null;
      const end = text.includes('#') ? text.indexOf('#') : text.length;
      return h('div', { class: `codeline ${found ? 'linted' : ''}`, title: found ? found.join('\n') : null }, h('span', { class: 'lineno' }, index + 1), h('span', { class: 'mark-lint', 'aria-label': found ? found.join('; ') : null }, found ? '!' : ' '),
        h('span', { class: 'src' }, text.slice(0, end), end < text.length ? h('span', { class: 'comment' }, text.slice(end)) : null));
    },
  });
  const uses = Object.entries(kernel.launches).map(([program, n]) => `${program} ×${n}`).join(', ');
  return h('section', { class: 'detail', 'aria-label': `Kernel ${kernel.name}` },
    h('div', { class: 'line' }, h('h1', { class: 'mono' }, kernel.name), h('div', { class: 'toggles' },
      kernel.ptx.length ? h('span', { class: 'segments' }, ['source', 'ptx'].map((kind) => h('a', { class: 'button', role: 'button', 'aria-pressed': String(code === kind), href: link({ code: kind === 'source' ? null : kind }), 'data-focus': `code-${kind}` }, kind === 'ptx' ? 'PTX' : 'source'))) : null,
      h('a', { class: 'button', role: 'button', href: link({ kernel: null, code: null }), 'data-focus': 'close' }, 'close'))),
    h('div', { class: 'about' }, h('dl', {},
      fact('computes', kernel.what), fact('launched', uses || 'by no program'), kernel.tile ? fact('tile', h('span', { class: 'mono' }, kernel.tile)) : null,
      kernel.registers === null ? fact('code', kernel.language) : fact('takes', `${kernel.registers} registers, ${bytes(kernel.shared_bytes)} shared, ${kernel.stack_bytes ? `! spills ${kernel.stack_bytes} B` : 'no spills'}`),
      fact('modules', kernel.modules.map((pair) => h('div', {}, data.modules.some((module) => module.path === pair[0]) ? h('a', { class: 'mono', href: link({ tab: 'modules', module: pair[0] }) }, showName(pair)) : showName(pair)))),
      kernel.reasons.length ? fact('cut', kernel.reasons.map((reason) => h('div', {}, reason))) : null,
      !kernel.values.length ? null : fact('values', namesOf(kernel).slice(0, 12).map((pair) => h('div', {}, h('a', { class: 'mono', href: link({ tab: 'passes', pass: null, tensor: firstOf(pair) }) }, `%${showName(pair)}`)))),
      fact('looks slow', kernel.lint_note ? h('span', { class: 'quiet' }, kernel.lint_note) : kernel.lints.length
        ? [general.map((problem) => h('div', {}, `! ${problem}`)), [...notes].map(([line, found]) => h('div', {}, `! line ${line}: ${found.join('; ')}`))] : 'nothing in its machine code'),
      kernel.tuned ? fact('tuned', kernel.tuned) : null,
      kernel.trials.length ? fact('tiles tried', h('details', {}, h('summary', { 'data-focus': 'trials' }, `${kernel.trials.length}, the chosen one marked *`), h('pre', { class: 'mono' }, kernel.trials.join('\n')))) : null,
      kernel.ptx.length ? null : fact('PTX', h('span', { class: 'quiet' }, kernel.language === 'triton' ? ['not recorded: ', h('code', {}, `tilewright kernel ENGINE ${kernel.name} --ptx`), ' prints it'] : 'none')),
    )), source);
}

function namesOf(kernel) {
  const found = new Map();
  for (const [, names] of kernel.values) for (const pair of names) if (!found.has(pair[0])) found.set(pair[0], pair);
  return [...found.values()];
}

const firstOf = ([template, spans]) => (spans === '' ? template : template.replace('{L}', /^\d+/.exec(spans)[0]));
