// Lanes beside the rows, as in a graph of commits: a tensor holds a lane from the row that makes it to the last row that reads it.
const MAX_LANES = 8;

// rows: those shown. Hidden rows (views) pass on what they read. Gives for each row {above, dot, joins, leaves, below}.
function layLanes(rows, hidden) {
  const alias = new Map();
  const key = (row, operand) => {
    let name = row.block && row.block.carry.some(([carried]) => carried === operand) ? `${operand} ${row.block.index}` : bare(operand);
    for (let hops = 0; alias.has(name) && hops < 64; hops++) name = alias.get(name);
    return name;
  };
  for (const row of hidden) if (row.kind === 'op' && !row.isConst && row.reads.length) alias.set(row.names[0], key(row, row.reads[0]));
  const made = new Map();
  const end = new Map();
  const reads = rows.map((row, index) => {
    if (row.isConst) return [];
    const found = [...new Set(row.reads.filter((operand) => operand[0] === '%').map((operand) => key(row, operand)))];
    defines(row).forEach((name) => made.set(name, index));
    return found;
  });
  const ends = new Map();
  rows.forEach((row, index) => row.kind === 'close' && row.opens && ends.set(row.opens, index));
  // Names after a loop say a layer: the row of the loop that makes it stands for it.
  const resolve = (name) => (made.has(name) ? name : made.has(splitLayer(name).key) ? splitLayer(name).key : null);
  rows.forEach((row, index) => {
    reads[index] = reads[index].map(resolve).filter((name) => name !== null && made.get(name) < index);
    for (const name of reads[index]) {
      const inside = row.block && rows[made.get(name)].block !== row.block && rows[made.get(name)] !== row.block;
      end.set(name, Math.max(end.get(name) || 0, inside && ends.has(row.block) ? ends.get(row.block) : index));
    }
  });
  const lanes = new Array(MAX_LANES).fill(null);
  return rows.map((row, index) => {
    const above = lanes.slice();
    const joins = reads[index].map((name) => lanes.indexOf(name)).filter((lane) => lane >= 0);
    lanes.forEach((name, lane) => name !== null && end.get(name) <= index && (lanes[lane] = null));
    const ended = joins.filter((lane) => lanes[lane] === null).sort((a, b) => a - b);
    const leaves = [];
    for (const name of defines(row)) {
      if (!(end.get(name) > index)) continue;
      const free = ended.length ? ended.shift() : lanes.indexOf(null);
      if (free < 0) continue; // more than are drawn: the names in the row still say it
      lanes[free] = name;
      leaves.push(free);
    }
    const hasDot = row.kind === 'op' && !row.isConst;
    const free = lanes.indexOf(null);
    const dot = leaves.length ? leaves[0] : joins.length ? joins[0] : hasDot ? (free < 0 ? MAX_LANES - 1 : free) : -1;
    return { above, joins, leaves, dot, hasDot, below: lanes.slice() };
  });
}

function defines(row) {
  if (row.kind === 'repeat') return row.carry.map(([name]) => `${name} ${row.index}`);
  return row.kind === 'op' && !row.isConst ? row.names : [];
}

const LANE = 11;
const ROW = 24;

function drawLanes(lay, width) {
  const x = (lane) => lane * LANE + 7;
  const mid = ROW / 2;
  const paths = [];
  const path = (lane, d) => paths.push(svg('path', { d, class: `lane lane-${lane % 8}` }));
  const dot = lay.dot;
  lay.above.forEach((name, lane) => {
    const joins = lay.joins.includes(lane);
    if (name !== null && lay.below[lane] === name) path(lane, `M${x(lane)} 0V${ROW}`);
    else if (name !== null && !joins) path(lane, `M${x(lane)} 0V${mid}`);
    if (joins && dot >= 0) path(lane, lane === dot ? `M${x(lane)} 0V${mid}` : `M${x(lane)} 0C${x(lane)} ${mid} ${x(dot)} 2 ${x(dot)} ${mid}`);
  });
  lay.leaves.forEach((lane) => path(lane, lane === dot ? `M${x(lane)} ${mid}V${ROW}` : `M${x(dot)} ${mid}C${x(dot)} ${ROW} ${x(lane)} ${mid} ${x(lane)} ${ROW}`));
  if (lay.hasDot && dot >= 0) paths.push(svg('circle', { cx: x(dot), cy: mid, r: 3.4, class: `dot lane-${dot % 8}` }));
  return svg('svg', { width, height: ROW, 'aria-hidden': 'true' }, ...paths);
}

const lanesUsed = (lays) => lays.reduce((most, lay) => Math.max(most, ...lay.above.map((n, i) => (n === null ? 0 : i + 1)), lay.dot + 1), 1);
