//! `cargo xtask map` shows the rooms of proxy/src and their imports, as text and as a picture. The picture is
//! also a page of `docs/internals/`, and `cargo xtask docs` renews it.

mod layout;
mod svg;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::machine::root;
use crate::tidy::{self, Graph, ROOMS};

const PICTURE: &str = "docs/internals/rooms.svg";

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Also draw them into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(crate) fn map(options: &Options) -> Result<(), String> {
    let graph = tidy::graph()?;
    print!("{}", text(&graph));
    if let Some(path) = &options.svg {
        fs::write(path, svg::draw(&graph)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Writes the committed picture anew, or only compares it.
pub(crate) fn picture(check: bool) -> Result<(), String> {
    let (path, drawn) = (root().join(PICTURE), svg::draw(&tidy::graph()?));
    if !check {
        return fs::write(path, drawn).map_err(|error| format!("{PICTURE}: {error}"));
    }
    if fs::read_to_string(path).is_ok_and(|committed| committed == drawn) {
        return Ok(());
    }
    Err(format!("{PICTURE} does not show the rooms as they are: run `cargo xtask docs`"))
}

/// The rooms in the order of the house, then any other rooms.
fn in_order(graph: &Graph) -> Vec<&str> {
    let known = ROOMS.iter().map(|room| room.name).filter(|name| graph.rooms.contains(*name));
    let is_known = |name: &&str| ROOMS.iter().any(|room| room.name == *name);
    known.chain(graph.rooms.iter().map(String::as_str).filter(|name| !is_known(name))).collect()
}

/// A line for each room, from the top of the house to its bottom, and whether there is a circle.
fn text(graph: &Graph) -> String {
    let mut text = String::from("Room, and how many names it imports from each other room:\n\n");
    let rooms = in_order(graph);
    let width = rooms.iter().map(|room| room.len()).max().unwrap_or(0);
    for room in &rooms {
        let counts = rooms.iter().filter_map(|other| Some((other, graph.count(room, other)?)));
        let imports: Vec<String> = counts.map(|(other, count)| format!("{other} {count}")).collect();
        let imports = if imports.is_empty() { "nothing".to_owned() } else { imports.join(", ") };
        let _ = writeln!(text, "{room:width$}  {imports}");
    }
    let circle = graph
        .circle()
        .map_or_else(|| "no circle".to_owned(), |circle| format!("a circle: {}", circle.join(" -> ")));
    let _ = writeln!(text, "\n{} rooms, {} arrows, {circle}", rooms.len(), graph.edges.len());
    text
}
