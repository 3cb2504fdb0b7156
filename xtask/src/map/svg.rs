//! The picture of the house: boxes in rows, arrows downwards. It shows which rooms import which, but no
//! counts, so it changes only when an arrow does.

use std::fmt::Write;

use super::in_order;
use super::layout::{self, BOX, Layout};
use crate::tidy::{Graph, ROOMS, Room, Storey};

const BOX_HEIGHT: f64 = 46.0;
/// The distance between two rows.
const ROW: f64 = 104.0;
const MARGIN: f64 = 24.0;
/// The height above the rows, for the title.
const HEAD: f64 = 62.0;
/// The height below the rows, for the legend of colours.
const FOOT: f64 = 54.0;

const STOREYS: &[(Storey, &str, &str, &str)] = &[
    (Storey::Process, "a process", "#dbe7f5", "#3f6ea5"),
    (Storey::Way, "the way of a connection", "#d9eedd", "#3d8050"),
    (Storey::Beside, "beside it", "#ece3f3", "#7d5a9b"),
    (Storey::Ground, "what they stand on", "#f6ecd6", "#a07a2c"),
];

pub(super) fn draw(graph: &Graph) -> String {
    let rooms = in_order(graph);
    let place = |name: &String| rooms.iter().position(|room| room == name).unwrap_or_default();
    let arrows: Vec<(usize, usize)> = graph.edges.keys().map(|(from, to)| (place(from), place(to))).collect();
    // Rooms are in the order of the house. An arrow to an earlier room points up, which is a fault.
    let (down, up): (Vec<_>, Vec<_>) = arrows.into_iter().partition(|(from, to)| from < to);
    let layout = layout::layout(rooms.len(), &layout::reduced(&down));
    let right = layout.rows.iter().flatten().map(|node| node.x).fold(0.0, f64::max) + BOX / 2.0;
    let (width, height) = (right + 2.0 * MARGIN, HEAD + layout.rows.len() as f64 * ROW - 40.0 + FOOT);

    let mut out = String::new();
    head(&mut out, width, height);
    for way in &layout.arrows {
        let points: Vec<(f64, f64)> = way.iter().map(|at| point(&layout, *at)).collect();
        let _ = writeln!(out, r#"<path class="arrow" d="{}" marker-end="url(#head)"/>"#, line(&points));
    }
    for (from, to) in &up {
        let ((x, y), (to_x, to_y)) = (middle(&layout, *from), middle(&layout, *to));
        let _ = writeln!(
            out,
            r#"<path class="up" d="M{x:.0} {:.0}L{to_x:.0} {:.0}" marker-end="url(#wrong)"/>"#,
            y - BOX_HEIGHT / 2.0,
            to_y + BOX_HEIGHT / 2.0
        );
    }
    for (room, name) in rooms.iter().enumerate() {
        let (x, y) = middle(&layout, room);
        boxed(&mut out, name, x, y);
    }
    foot(&mut out, height, !up.is_empty());
    out.push_str("</svg>\n");
    out
}

fn head(out: &mut String, width: f64, height: f64) {
    let _ = write!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" role="img">
<title>Rooms of proxy/src, and what they import</title>
<!-- Written by cargo xtask map, not by hand. -->
<style>
text {{ font: 13px system-ui, sans-serif; fill: #222; text-anchor: middle }}
.name {{ font-weight: 600; font-size: 15px }}
.about {{ font-size: 11px; fill: #444 }}
.left {{ text-anchor: start }}
.arrow {{ fill: none; stroke: #667; stroke-width: 1.3 }}
.up {{ fill: none; stroke: #c22; stroke-width: 1.3; stroke-dasharray: 5 3 }}
</style>
<defs>
<marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#667"/></marker>
<marker id="wrong" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#c22"/></marker>
</defs>
<rect width="{width:.0}" height="{height:.0}" fill="#fff"/>
<text class="name left" x="{MARGIN}" y="30">Rooms of proxy/src</text>
<text class="left" x="{MARGIN}" y="50">Arrow: imports. An arrow that a longer way shows is left out.</text>
"##
    );
}

/// A room with its name and a few words.
fn boxed(out: &mut String, name: &str, x: f64, y: f64) {
    let room: Option<&Room> = ROOMS.iter().find(|room| room.name == name);
    let storey = STOREYS.iter().find(|(storey, ..)| room.is_some_and(|room| room.storey == *storey));
    let (fill, stroke) = storey.map_or(("#fff", "#c22"), |(_, _, fill, stroke)| (*fill, *stroke));
    let colours = format!(r#"fill="{fill}" stroke="{stroke}""#);
    let (left, top) = (x - BOX / 2.0, y - BOX_HEIGHT / 2.0);
    let _ = writeln!(
        out,
        r#"<rect x="{left:.0}" y="{top:.0}" width="{BOX}" height="{BOX_HEIGHT}" rx="7" {colours}/>"#
    );
    let about = room.map_or("", |room| room.about);
    let _ = writeln!(out, r#"<text class="name" x="{x:.0}" y="{:.0}">{name}</text>"#, y - 3.0);
    let _ = writeln!(out, r#"<text class="about" x="{x:.0}" y="{:.0}">{about}</text>"#, y + 14.0);
}

fn foot(out: &mut String, height: f64, points_up: bool) {
    let y = height - 22.0;
    for (index, (_, words, fill, stroke)) in STOREYS.iter().enumerate() {
        let x = MARGIN + 212.0 * index as f64;
        let _ = writeln!(
            out,
            r#"<rect x="{x}" y="{:.0}" width="18" height="14" rx="3" fill="{fill}" stroke="{stroke}"/>"#,
            y - 12.0
        );
        let _ = writeln!(out, r#"<text class="left" x="{}" y="{y:.0}">{words}</text>"#, x + 26.0);
    }
    if points_up {
        let x = MARGIN + 212.0 * STOREYS.len() as f64;
        let _ = writeln!(out, r##"<text class="left" x="{x}" y="{y:.0}" fill="#c22">red: points up</text>"##);
    }
}

/// The middle of a room's box.
fn middle(layout: &Layout, room: usize) -> (f64, f64) {
    let nodes =
        layout.rows.iter().enumerate().flat_map(|(row, nodes)| nodes.iter().map(move |node| (row, node)));
    let mut found = nodes.filter(|(_, node)| node.room == Some(room));
    found.next().map_or((0.0, 0.0), |(row, node)| (MARGIN + node.x, y_of(row)))
}

fn y_of(row: usize) -> f64 {
    HEAD + row as f64 * ROW + BOX_HEIGHT / 2.0 + 8.0
}

fn point(layout: &Layout, (row, node): (usize, usize)) -> (f64, f64) {
    (MARGIN + layout.rows[row][node].x, y_of(row))
}

/// The path from the first box's lower edge to the last box's upper edge, straight down past each row
/// between.
fn line(points: &[(f64, f64)]) -> String {
    let half = BOX_HEIGHT / 2.0;
    let mut line = format!("M{:.0} {:.0}", points[0].0, points[0].1 + half);
    for step in points.windows(2) {
        let ((from_x, from_y), (to_x, to_y)) = (step[0], step[1]);
        let (from_y, to_y) = (from_y + half, to_y - half);
        let bend = f64::midpoint(from_y, to_y);
        let _ = write!(line, "C{from_x:.0} {bend:.0} {to_x:.0} {bend:.0} {to_x:.0} {to_y:.0}");
        if step[1] != points[points.len() - 1] {
            let _ = write!(line, "L{to_x:.0} {:.0}", to_y + BOX_HEIGHT);
        }
    }
    line
}
