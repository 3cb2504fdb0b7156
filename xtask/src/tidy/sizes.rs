//! The lengths of functions, files and lines.

use super::source::{Source, Tree};

/// Lines of a function, from its signature to its last brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 600;

/// Lines of a file of tests.
const TEST_FILE_LINES_MAX: usize = 800;

/// Characters of a line.
const COLUMNS_MAX: usize = 110;

/// Functions and files that may be longer, with the reasons. A function is named
/// `package::module::Type::function`.
pub(super) const LONG: &[(&str, &str)] = &[
    ("benches::bin::xdp::cases", "a table of cases, with the configurations that they need"),
    ("proxy-ebpf::cookie::write", "writes one header in its order; how it splits is for the verifier to say"),
];

pub(super) fn check(tree: &Tree, exceptions: &[(&str, &str)], into: &mut Vec<String>) {
    lengths(tree, exceptions, into);
    lines(tree, into);
}

/// Checks functions and files against the limits and the exceptions. A needless exception is a complaint too.
fn lengths(tree: &Tree, exceptions: &[(&str, &str)], into: &mut Vec<String>) {
    let long: Vec<(String, String)> =
        tree.sources.iter().flat_map(|source| files(source).into_iter().chain(functions(source))).collect();
    for (name, complaint) in &long {
        if !exceptions.iter().any(|(exception, _)| exception == name) {
            into.push(complaint.clone());
        }
    }
    for (exception, _) in exceptions {
        if !long.iter().any(|(name, _)| name == exception) {
            into.push(format!("{exception}: is not long: take it from the exceptions (xtask/src/tidy)"));
        }
    }
    for (name, reason) in exceptions {
        if reason.is_empty() {
            into.push(format!("{name}: an exception without a reason"));
        }
    }
}

/// The file's name and the complaint, if the file is too long.
fn files(source: &Source) -> Option<(String, String)> {
    let (lines, tests) = source.line_counts();
    let (lines, max, what) = if source.is_test {
        (lines, TEST_FILE_LINES_MAX, "lines of tests")
    } else {
        (lines - tests, FILE_LINES_MAX, "lines without tests")
    };
    let complaint = format!("{}: {lines} {what}; at most {max}", source.path);
    (lines > max).then(|| (source.path.clone(), complaint))
}

/// The names of functions that are too long, and the complaints.
fn functions(source: &Source) -> impl Iterator<Item = (String, String)> {
    let long = source.live_functions().filter(|function| function.extent.line_count() > FUNCTION_LINES_MAX);
    long.map(move |function| {
        let name = source.full_name(&function.name);
        let (line, lines) = (function.extent.lines.0, function.extent.line_count());
        let complaint =
            format!("{}:{line}: {name} has {lines} lines; at most {FUNCTION_LINES_MAX}", source.path);
        (name, complaint)
    })
}

/// Complains about lines that are wider than rustfmt's width.
fn lines(tree: &Tree, into: &mut Vec<String>) {
    for source in &tree.sources {
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                into.push(format!("{}:{}: {columns} columns; at most {COLUMNS_MAX}", source.path, index + 1));
            }
        }
    }
}
