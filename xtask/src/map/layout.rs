//! Places the boxes of a layered drawing. Rooms that no room imports are at the top, and every other room is
//! below all rooms that import it. Some sweeps keep the crossings of arrows few.

use std::collections::{BTreeMap, BTreeSet};

/// The width of a box, and of the gap that an arrow needs between boxes.
pub(super) const BOX: f64 = 188.0;
const LANE: f64 = 26.0;
/// The gap between neighbours in a row.
const GAP: f64 = 20.0;
/// How many sweeps go over all rows, down and up.
const SWEEPS: usize = 24;

/// A box, or a bend of an arrow that passes a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// A room's place in the input; `None`: a bend.
    pub(super) room: Option<usize>,
    /// The place of its middle.
    pub(super) x: f64,
    /// Indices of its neighbours in the row above. `below` has those in the row below.
    above: Vec<usize>,
    below: Vec<usize>,
}

impl Node {
    /// How strongly the node keeps to its wish.
    const fn weight(&self) -> f64 {
        if self.room.is_some() { 1.0 } else { 3.0 }
    }

    const fn width(&self) -> f64 {
        if self.room.is_some() { BOX } else { LANE }
    }
}

/// A drawing: rows from top to bottom, each from left to right.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) rows: Vec<Vec<Node>>,
    /// For each arrow, its place in every row from its start to its end, as `(row, node)`.
    pub(super) arrows: Vec<Vec<(usize, usize)>>,
}

/// The arrows, except arrows that a longer way implies.
pub(super) fn reduced(arrows: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut next: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (from, to) in arrows {
        next.entry(*from).or_default().insert(*to);
    }
    let reaches = |from: usize, to: usize| {
        let (mut seen, mut queue) = (BTreeSet::new(), vec![from]);
        while let Some(at) = queue.pop() {
            if at == to {
                return true;
            }
            if seen.insert(at) {
                queue.extend(next.get(&at).into_iter().flatten());
            }
        }
        false
    };
    let is_short = |(from, to): &(usize, usize)| {
        let others = next.get(from).into_iter().flatten().filter(|other| *other != to);
        !others.into_iter().any(|other| reaches(*other, *to))
    };
    arrows.iter().copied().filter(is_short).collect()
}

/// Lays out `count` boxes. The arrows must form no circle.
pub(super) fn layout(count: usize, arrows: &[(usize, usize)]) -> Layout {
    let mut layout = Layout::default();
    let rows = rows(count, arrows);
    layout.rows.resize(rows.iter().max().map_or(0, |last| last + 1), Vec::new());
    let mut places = vec![(0, 0); count];
    for (room, row) in rows.iter().enumerate() {
        places[room] = layout.add(*row, Some(room));
    }
    for (from, to) in arrows {
        let mut way = vec![places[*from]];
        for row in rows[*from] + 1..rows[*to] {
            way.push(layout.add(row, None));
        }
        way.push(places[*to]);
        for step in way.windows(2) {
            let ((row, upper), (next, lower)) = (step[0], step[1]);
            layout.rows[row][upper].below.push(lower);
            layout.rows[next][lower].above.push(upper);
        }
        layout.arrows.push(way);
    }
    layout.order();
    layout.place();
    layout
}

/// The row of each room: as low as the rooms that it imports allow.
fn rows(count: usize, arrows: &[(usize, usize)]) -> Vec<usize> {
    let mut heights = vec![0; count];
    for _ in 0..count {
        for (from, to) in arrows {
            heights[*from] = heights[*from].max(heights[*to] + 1);
        }
    }
    let top = heights.iter().copied().max().unwrap_or(0);
    let is_imported = |room: usize| arrows.iter().any(|(_, to)| *to == room);
    (0..count).map(|room| if is_imported(room) { top - heights[room] } else { 0 }).collect()
}

impl Layout {
    fn add(&mut self, row: usize, room: Option<usize>) -> (usize, usize) {
        self.rows[row].push(Node { room, x: 0.0, above: Vec::new(), below: Vec::new() });
        (row, self.rows[row].len() - 1)
    }

    /// Orders each row by the middle of its nodes' neighbours, and keeps the order with the fewest crossings.
    fn order(&mut self) {
        let mut orders: Vec<Vec<usize>> = self.rows.iter().map(|row| (0..row.len()).collect()).collect();
        let mut best = (self.crossings(&orders), orders.clone());
        for sweep in 0..SWEEPS {
            let down = sweep % 2 == 0;
            let last = self.rows.len().saturating_sub(1);
            for step in 1..self.rows.len() {
                let row = if down { step } else { last - step };
                let fixed = if down { row - 1 } else { row + 1 };
                let places = places(&orders[fixed]);
                let own = self::places(&orders[row]);
                let middle = |node: usize| {
                    let node_of = &self.rows[row][node];
                    let others = if down { &node_of.above } else { &node_of.below };
                    let sum: usize = others.iter().map(|other| places[*other]).sum();
                    if others.is_empty() { own[node] as f64 } else { sum as f64 / others.len() as f64 }
                };
                orders[row].sort_by(|one, other| middle(*one).total_cmp(&middle(*other)));
            }
            let crossings = self.crossings(&orders);
            if crossings < best.0 {
                best = (crossings, orders.clone());
            }
        }
        self.apply(&best.1);
    }

    fn crossings(&self, orders: &[Vec<usize>]) -> usize {
        let mut crossings = 0;
        for row in 1..self.rows.len() {
            let (upper, lower) = (places(&orders[row - 1]), places(&orders[row]));
            let lines: Vec<(usize, usize)> = self.rows[row - 1]
                .iter()
                .enumerate()
                .flat_map(|(node, of)| of.below.iter().map(move |other| (node, *other)))
                .map(|(node, other)| (upper[node], lower[other]))
                .collect();
            for (index, one) in lines.iter().enumerate() {
                let crosses = |other: &&(usize, usize)| {
                    (one.0 < other.0 && one.1 > other.1) || (one.0 > other.0 && one.1 < other.1)
                };
                crossings += lines[index + 1..].iter().filter(crosses).count();
            }
        }
        crossings
    }

    /// Puts the nodes of each row into their order.
    fn apply(&mut self, orders: &[Vec<usize>]) {
        let places: Vec<Vec<usize>> = orders.iter().map(|order| self::places(order)).collect();
        for (row, order) in orders.iter().enumerate() {
            let mut nodes: Vec<Node> = order.iter().map(|node| self.rows[row][*node].clone()).collect();
            for node in &mut nodes {
                node.above.iter_mut().for_each(|other| *other = places[row - 1][*other]);
                node.below.iter_mut().for_each(|other| *other = places[row + 1][*other]);
            }
            self.rows[row] = nodes;
        }
        for (row, node) in self.arrows.iter_mut().flatten() {
            *node = places[*row][*node];
        }
    }

    /// Moves each node towards the middle of its neighbours, as far as its row allows.
    fn place(&mut self) {
        for row in &mut self.rows {
            settle(row, |_| 0.0);
        }
        for sweep in 0..2 * SWEEPS {
            let down = sweep % 2 == 0;
            for step in 0..self.rows.len() {
                let row = if down { step } else { self.rows.len() - 1 - step };
                let wishes: Vec<f64> = self.rows[row].iter().map(|node| self.wish(row, node)).collect();
                settle(&mut self.rows[row], |node| wishes[node]);
            }
        }
        let left = |node: &Node| node.x - node.width() / 2.0;
        let edge = self.rows.iter().flatten().map(left).fold(f64::INFINITY, f64::min);
        self.rows.iter_mut().flatten().for_each(|node| node.x -= edge);
    }

    /// The place that a node wishes: the middle of its neighbours. A bend prefers to be in line with a bend.
    fn wish(&self, row: usize, node: &Node) -> f64 {
        let above = node.above.iter().map(|other| &self.rows[row - 1][*other]);
        let below = node.below.iter().map(|other| &self.rows[row + 1][*other]);
        let (mut sum, mut weights) = (0.0, 0.0);
        for other in above.chain(below) {
            let weight = node.weight() * other.weight();
            sum += other.x * weight;
            weights += weight;
        }
        if weights > 0.0 { sum / weights } else { node.x }
    }
}

/// For each node, its place in an order.
fn places(order: &[usize]) -> Vec<usize> {
    let mut places = vec![0; order.len()];
    for (place, node) in order.iter().enumerate() {
        places[*node] = place;
    }
    places
}

/// Puts a row's nodes as close to their wishes as their widths allow. It pools neighbours that would overlap,
/// which gives the least sum of squares.
fn settle(row: &mut [Node], wish: impl Fn(usize) -> f64) {
    let mut offset = 0.0;
    let mut offsets = Vec::new();
    for (index, node) in row.iter().enumerate() {
        if index > 0 {
            offset += f64::midpoint(row[index - 1].width(), node.width()) + GAP;
        }
        offsets.push(offset);
    }
    // Each pool: weighted sum of wishes, sum of weights, number of nodes.
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for (index, offset) in offsets.iter().enumerate() {
        let weight = row[index].weight();
        pools.push(((wish(index) - offset) * weight, weight, 1));
        while let [.., one, other] = pools[..]
            && one.0 / one.1 > other.0 / other.1
        {
            pools.truncate(pools.len() - 2);
            pools.push((one.0 + other.0, one.1 + other.1, one.2 + other.2));
        }
    }
    let middles = pools.iter().flat_map(|(sum, weights, count)| vec![sum / weights; *count]);
    for ((node, middle), offset) in row.iter_mut().zip(middles).zip(offsets) {
        node.x = middle + offset;
    }
}
