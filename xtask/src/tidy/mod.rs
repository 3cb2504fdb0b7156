//! `cargo xtask tidy`: the invariants of ARCHITECTURE.md, each checked by a rule over the parsed source. A
//! rule reads whole files without their tests. Prose, strings and tests never cause a complaint.

mod graph;
mod invariants;
mod outline;
mod placement;
mod rooms;
mod sizes;
mod source;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use self::graph::Graph;
pub(crate) use self::rooms::{ROOMS, Room, Storey};
use self::source::Tree;
use crate::machine;

pub(crate) fn tidy() -> Result<(), String> {
    let tree = Tree::read(&machine::root())?;
    let complaints = complaints(&tree);
    if complaints.is_empty() {
        eprintln!("tidy: {} files, nothing to complain about", tree.sources.len());
        return Ok(());
    }
    Err(format!("tidy: {} complaints\n{}", complaints.len(), complaints.join("\n")))
}

/// The rooms of proxy/src and their imports.
pub(crate) fn graph() -> Result<Graph, String> {
    Ok(Graph::of(&Tree::read(&machine::root())?))
}

/// All complaints about the tree, including needless exceptions.
fn complaints(tree: &Tree) -> Vec<String> {
    let mut into = Vec::new();
    invariants::check(tree, &mut into);
    invariants::check_lists(tree, &mut into);
    invariants::every_file_is_compiled(tree, &mut into);
    rooms::check(tree, ROOMS, &mut into);
    rooms::check_arrows(tree, ROOMS, &mut into);
    sizes::check(tree, sizes::LONG, &mut into);
    placement::check(tree, &mut into);
    into
}
