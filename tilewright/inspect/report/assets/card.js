// What is known of one tensor: how it is made, where it comes from, who computes and reads it, and what each pass did to it.
const kernelsOf = (name) => data.kernels.flatMap((kernel) => {
  const programs = kernel.values.filter(([, names]) => hasName(names, name)).map(([program]) => program);
  return programs.length ? [{ kernel, programs }] : [];
});

// `op(reads) {attrs} : type` of one layer, with names of the same layer short.
function madeOf({ row, layer }) {
  if (row.kind === 'param') return `weight : ${row.type}`;
  const reads = row.reads.map((operand) => (operand === 'none' ? 'none' : operand[0] + readOf(row, operand, layer)));
  const own = splitLayer(tensorOf(row, layer));
  const stem = own.layer === null ? null : own.key.slice(0, own.key.indexOf('{L}')) + own.layer;
  const short = (name) => (stem && name.slice(1).startsWith(`${stem}.`) ? name[0] + name.slice(1 + stem.length) : name);
  const attrs = own.layer === null ? row.attrs : row.attrs.replace('layer={L}', `layer=${own.layer}`);
  return `${row.op}(${reads.map(short).join(', ')})${attrs ? ` ${attrs}` : ''} : ${row.type}`;
}

function historyOf(name) {
  const found = [];
  let known = null;
  let next = 0;
  for (const pass of [{ number: 0, name: 'import', status: 'changed', events: [] }, ...data.passes]) {
    const snapshot = data.snapshots[next];
    const isNew = snapshot && snapshot.number === pass.number;
    if (isNew) next += 1;
    const place = isNew ? findRow(graphOf(snapshot), name) : null;
    const made = isNew ? place && madeOf(place) : known;
    const events = pass.events.filter((event) => hasName(event.names, name));
    if (made !== known || events.length) found.push({ pass, made, changed: made !== known, gone: made === null && known !== null, events });
    known = made;
  }
  return found;
}

// near: a tensor of the layer whose names are shown short
function tensorLink(name, sigil, near) {
  const own = near ? splitLayer(near) : { layer: null };
  const lead = own.layer === null ? null : `${own.key.slice(0, own.key.indexOf('{L}'))}${own.layer}.`;
  return h('a', { href: link({ tab: 'passes', tensor: name }), class: 'mono', title: name }, `${sigil || '%'}${lead && name.startsWith(lead) ? name.slice(lead.length - 1) : name}`);
}

function fact(label, ...content) {
  return [h('dt', {}, label), h('dd', {}, ...content)];
}

function card(step, name, show) {
  const order = show === 'before' && step.previous ? [step.previous, step.snapshot] : [step.snapshot, step.previous];
  const sources = [...order, ...[...data.snapshots].reverse()].filter(Boolean);
  const source = sources.find((snapshot) => findRow(graphOf(snapshot), name));
  if (!source) return h('aside', { class: 'card', 'aria-label': 'Tensor' }, h('p', { class: 'quiet' }, `No graph of this run has a tensor ${name}.`));
  const graph = graphOf(source);
  const place = findRow(graph, name);
  const { row, layer } = place;
  const isHere = source === step.snapshot;
  const sigil = row.kind === 'param' || row.isConst ? '@' : '%';
  const turns = row.block ? row.block.turns : 1;
  const modules = (row.modules || []).map((module) => (layer === null ? module : at(module, layer)));
  const reads = [...new Set(row.reads.map((operand) => operand !== 'none' && operand[0] + readOf(row, operand, layer)).filter(Boolean))];
  const readers = readersOf(graph, name);
  const kernels = kernelsOf(name);
  const was = isHere && step.isChange && findRow(graphOf(step.previous), name);
  return h('aside', { class: 'card', 'aria-label': `Tensor ${name}`, tabindex: 0, 'data-focus': 'card' },
    h('h2', { class: 'mono' }, sigil + name),
    turns > 1 ? h('p', { class: 'quiet' }, `one of ${turns} equal ones: ${spanOf(row)}`) : null,
    isHere ? null : h('p', { class: 'note' }, step.isChange && source === step.previous ? '− gone after this pass; as it was before it:' : `not in this graph; as it was after ${two(source.number)}:`),
    h('dl', {},
      fact('type', h('span', { class: 'mono' }, row.type)),
      row.kind === 'param' ? fact('made', 'a weight of the checkpoint') : fact('op', h('b', { class: 'mono' }, row.op), row.attrs ? h('span', { class: 'mono quiet' }, ` ${row.attrs}`) : null),
      was && madeOf(was) !== madeOf(place) ? fact('before', h('span', { class: 'mono' }, madeOf(was))) : null,
      modules.length ? fact('module', modules.map((module) => h('div', {}, h('a', { class: 'mono', href: link({ tab: 'modules', module: splitLayer(module).key }) }, module)))) : null,
      row.rules && row.rules.length ? fact('made by', row.rules.join(', ')) : null,
      row.kind === 'param' ? null : fact('source', linesOf(name, source.number)),
      fact('kernel', kernels.length ? kernels.map(({ kernel, programs }) => h('div', {}, h('a', { class: 'mono', href: link({ tab: 'kernels', kernel: kernel.name }) }, kernel.name),
        h('span', { class: 'quiet' }, ` ${programs.join(', ')}`))) : h('span', { class: 'quiet' }, noKernel(name, sigil))),
      reads.length ? fact('reads', reads.map((read) => h('div', {}, tensorLink(bare(read), read[0], name)))) : null,
      fact('read by', readers.length ? readers.slice(0, 12).map((r) => h('div', {}, r.row.kind === 'return' ? 'the result of the graph' : tensorLink(tensorOf(r.row, r.layer), r.row.isConst ? '@' : '%', name))) : h('span', { class: 'quiet' }, 'nothing'),
        readers.length > 12 ? h('div', { class: 'quiet' }, `and ${readers.length - 12} more`) : null),
    ),
    row.kind === 'param' ? null : neighbours(name, sigil, row.op, reads, readers.filter((r) => r.row.kind !== 'return').map((r) => (r.row.isConst ? '@' : '%') + tensorOf(r.row, r.layer))),
    h('h3', {}, 'History'),
    h('ol', { class: 'history' }, historyOf(name).map(({ pass, made, changed, gone, events }) => h('li', { class: pass.number === step.number ? 'here' : null },
      h('a', { href: link({ pass: pass.number, tab: 'passes' }) }, `${two(pass.number)} ${pass.name}`),
      gone ? h('div', {}, h('b', {}, '− '), 'is gone') : changed && made !== null ? h('div', { class: 'mono' }, made) : null,
      events.slice(0, 3).map((event) => h('div', { class: 'quiet' }, event.kind === 'missed' ? 'nearly: ' : '', spaced(event.what)))))),
  );
}

// The lines of Python that a tensor comes from after a pass.
function linesOf(name, number) {
  const found = data.places.filter(([since, names]) => since <= number && hasName(names, name)).pop();
  if (!found) return h('span', { class: 'quiet' }, data.places.length ? 'names no line' : 'this run kept no lines of Python');
  return found[2].map((line) => h('div', { class: 'mono wrap' }, texts[line]));
}

function noKernel(name, sigil) {
  if (!data.kernels.length) return 'this run has no kernels';
  const last = data.snapshots[data.snapshots.length - 1];
  if (!findRow(graphOf(last), name)) return 'none: it is not in the final graph';
  return sigil === '@' ? 'none: it is computed once, when weights are packed' : 'none names it: it is only another view of a tensor';
}
