// Rows of folded text: what a line defines and reads, and which tensors of which layers it stands for.
const OP = /^(.*?) = ([\w.]+)\((.*?)\)(?: (\{.*?\}))? : (.*?)(?: {2}loc\((.*?)\))?(?: by\((.*?)\))?$/;
const REPEAT = /^repeat L in (\d+)\.\.(\d+)(?: step (\d+))? as ([\w.]+)(?: carry\(([^)]*)\))? \{/;
const PLACE = /\{L([+-]\d+)?\}/;
const VIEWS = new Set(['reshape', 'transpose', 'cast', 'slice', 'expand', 'squeeze', 'unsqueeze', 'view']);
const list = (text) => (text ? text.split(', ') : []);
const escapeRegExp = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
const LAYERED = data.stems.length ? new RegExp(`^(${data.stems.map(escapeRegExp).join('|')})(\\d+)(?=\\.|$)`) : null;

function splitLayer(name) {
  const match = LAYERED && LAYERED.exec(name);
  return match ? { key: `${match[1]}{L}${name.slice(match[0].length)}`, layer: Number(match[2]) } : { key: name, layer: null };
}

function inSpans(spans, layer) {
  return spans.split(', ').some((part) => {
    const [ends, step] = part.split(' step ');
    const [first, last] = ends.split('..').map(Number);
    return layer >= first && layer <= (last === undefined ? first : last) && (layer - first) % Number(step || 1) === 0;
  });
}

// names: pairs of a name with {L} and the layers it is of
function hasName(names, name) {
  const { key, layer } = splitLayer(name);
  return names.some(([template, spans]) => template === key && (spans === '' || layer === null || inSpans(spans, layer)));
}

const showName = ([template, spans]) => (spans === '' ? template : template.replace('{L}', /^\d+$/.test(spans) ? spans : `{${spans}}`));

const bare = (name) => name.replace(/^[%@]/, '');
const at = (template, layer) => template.replace(PLACE, (_, offset) => String(layer + Number(offset || 0)));

function parseRow(line, block) {
  const text = texts[line].trim();
  const row = { line, text, block, depth: block ? 1 : 0, kind: 'other', names: [], reads: [], defines: [] };
  const full = (name) => (name[1] === '.' && block ? `${name[0]}${block.stem}.{L}${name.slice(1)}` : name);
  let match;
  if ((match = REPEAT.exec(text))) {
    const carry = list(match[5]).map((part) => part.split(' = '));
    Object.assign(row, { kind: 'repeat', first: +match[1], last: +match[2], step: +(match[3] || 1), stem: match[4], carry, depth: 0 });
    row.turns = (row.last - row.first) / row.step + 1;
    row.reads = carry.map(([, start]) => start);
    row.yields = [];
  } else if (text === '}') Object.assign(row, { kind: 'close', depth: 0 });
  else if (text.startsWith('param ')) {
    const [name, type] = text.slice(6).split(' : ');
    Object.assign(row, { kind: 'param', defines: [full(name)], shown: [name], type, op: 'param' });
  } else if (text.startsWith('yield ')) Object.assign(row, { kind: 'yield', reads: list(text.slice(6)).map(full) });
  else if (text.startsWith('return ')) Object.assign(row, { kind: 'return', reads: list(text.slice(7)) });
  else if (text.startsWith('graph ')) row.kind = 'graph';
  else if ((match = OP.exec(text))) {
    const shown = list(match[1]);
    Object.assign(row, {
      kind: 'op', shown, defines: shown.map(full), op: match[2], operands: list(match[3]), reads: list(match[3]).map(full), attrs: match[4] || '',
      type: match[5], modules: list(match[6]).map((m) => (m[0] === '.' && block ? `${block.stem}.{L}${m}` : m)), rules: list(match[7]),
      isConst: shown[0][0] === '@', isView: VIEWS.has(match[2]),
    });
  }
  row.names = row.defines.map(bare);
  row.made = row.kind === 'op' ? text.slice(text.indexOf(' = ') + 3).replace(/ {2}loc\(.*$/, '').replace(/ by\([^)]*\)$/, '') : text;
  return row;
}

const parsed = new Map();

// Rows of a snapshot, parsed once, with an index from names to rows.
function graphOf(snapshot) {
  if (parsed.has(snapshot)) return parsed.get(snapshot);
  let block = null;
  const rows = snapshot.rows.map((line, index) => {
    const row = parseRow(line, block);
    row.index = index;
    if (row.kind === 'yield' && block) block.yields = row.reads;
    if (row.kind === 'repeat') block = row;
    else if (row.kind === 'close') {
      row.opens = block;
      block = null;
    }
    return row;
  });
  const index = new Map();
  for (const row of rows) {
    for (const name of row.names) {
      const key = row.block ? name.replace(PLACE, '{L}') : splitLayer(name).key;
      if (!index.has(key)) index.set(key, []);
      index.get(key).push([row, name]);
    }
  }
  const graph = { rows, index, readers: null };
  parsed.set(snapshot, graph);
  return graph;
}

// The row that stands for a tensor, and its layer; null for one that is not there.
function findRow(graph, name) {
  const { key, layer } = splitLayer(name);
  for (const [row, template] of graph.index.get(key) || []) {
    if (!row.block) {
      if (template === name) return { row, layer };
      continue;
    }
    const offset = Number((PLACE.exec(template) || [])[1] || 0);
    const turn = layer - offset;
    if (turn >= row.block.first && turn <= row.block.last && (turn - row.block.first) % row.block.step === 0) return { row, layer: turn };
  }
  return null;
}

// The tensor that a row stands for, of one layer.
const tensorOf = (row, layer, which = 0) => (row.block ? at(row.names[which], layer ?? row.block.first) : row.names[which]);

function spanOf(row, which = 0) {
  if (!row.block) return row.names[which];
  const { first, last, step } = row.block;
  return row.names[which].replace(PLACE, (_, o) => `{${first + Number(o || 0)}..${last + Number(o || 0)}${step > 1 ? ` step ${step}` : ''}}`);
}

// A read of a row as a tensor of one layer: what a carry stands for, too.
function readOf(row, operand, layer) {
  if (operand === 'none') return null;
  const block = row.block;
  const carried = block && (block.carry.findIndex(([name]) => name === operand));
  if (block && carried >= 0) {
    const turn = layer ?? block.first;
    return bare(turn === block.first ? block.carry[carried][1] : at(block.yields[carried], turn - block.step));
  }
  return bare(block ? at(operand, layer ?? block.first) : operand);
}

// Rows that read a tensor.
function readersOf(graph, name) {
  if (!graph.readers) {
    graph.readers = new Map();
    const add = (key, row, layer, first) => {
      if (!graph.readers.has(key)) graph.readers.set(key, []);
      graph.readers.get(key).push({ row, layer, first });
    };
    for (const row of graph.rows) {
      if (row.kind !== 'op' && row.kind !== 'return') continue;
      for (const operand of new Set(row.reads)) {
        const carried = row.block ? row.block.carry.findIndex(([name]) => name === operand) : -1;
        if (carried >= 0) {
          add(bare(row.block.carry[carried][1]), row, row.block.first, true);
          if (row.block.yields[carried]) add(bare(row.block.yields[carried]).replace(PLACE, '{L}'), row, null, false);
        } else add(row.block ? bare(operand).replace(PLACE, '{L}') : splitLayer(bare(operand)).key, row, null, !row.block);
      }
    }
  }
  const { key, layer } = splitLayer(name);
  const found = [];
  for (const entry of [...(graph.readers.get(name) || []), ...(key === name ? [] : graph.readers.get(key) || [])]) {
    const { row } = entry;
    const turns = row.block ? [entry.layer ?? layer ?? row.block.first, (layer ?? row.block.first) + row.block.step] : [null];
    const turn = turns.find((t) => row.reads.some((operand) => readOf(row, operand, t) === name) && (t === null || (t >= row.block.first && t <= row.block.last)));
    if (turn !== undefined && !found.some((f) => f.row === row)) found.push({ row, layer: turn });
  }
  return found;
}
