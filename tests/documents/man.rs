//! The man pages. `sluice.8` comes from the command line and the page about running Sluice, `sluice.toml.5`
//! from the page about the configuration.

use std::fmt::Write as _;

use clap::CommandFactory as _;
use clap_mangen::Man;
use proxy::cli::Cli;

use crate::page;

/// The sections of `docs/run.md` that also go into a man page.
const OF_RUN: &[&str] = &["Signals", "What a drain does", "Exit status", "Files", "Environment"];

/// Escapes text for roff, and converts the Markdown inside a line.
fn inline(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    let mut is_code = false;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '`' => {
                is_code = !is_code;
                out.push_str(if is_code { "\\fB" } else { "\\fR" });
            }
            '\\' if rest.starts_with('|') => {}
            '\\' => out.push_str("\\e"),
            '-' if is_code => out.push_str("\\-"),
            '[' if !is_code && rest.contains("](") => {
                let (shown, link) = rest.split_once("](").unwrap();
                out.push_str(&inline(shown));
                rest = link.split_once(')').unwrap().1;
            }
            '*' if !is_code && rest.starts_with('*') => rest = &rest[1..],
            _ => out.push(letter),
        }
    }
    out
}

/// A line of text, escaped so that roff does not take it for a request.
fn line(text: &str) -> String {
    let text = inline(text);
    if text.starts_with(['.', '\'']) { format!("\\&{text}\n") } else { format!("{text}\n") }
}

fn row(heading: &[String], cells: &[String]) -> String {
    let mut out = format!(".TP\n{}", line(&cells[0]));
    if heading[0] == "key" {
        let [_, values, default, reload, does] = cells else { panic!("a row of keys: {cells:?}") };
        out.push_str(&line(does));
        out.push_str(".br\n");
        out.push_str(&line(&format!("Values: {values}. Default: {default}. Reload: {reload}.")));
        return out;
    }
    let told = cells[1..].iter().filter(|cell| !cell.is_empty());
    let told: Vec<&str> = told.map(String::as_str).collect();
    out.push_str(&line(&told.join("; ")));
    out
}

/// Converts Markdown, as these pages use it, to roff. Headings of the second level become sections.
fn roff(markdown: &str) -> String {
    let mut out = String::new();
    let mut heading: Option<Vec<String>> = None;
    let mut in_code = false;
    let mut is_paragraph = false;
    for text in markdown.lines() {
        if text.starts_with("```") {
            in_code = !in_code;
            out.push_str(if in_code { ".PP\n.in +4n\n.nf\n" } else { ".fi\n.in\n" });
            is_paragraph = false;
            continue;
        }
        if in_code {
            let text = text.replace('\\', "\\e").replace('-', "\\-");
            let guard = if text.starts_with(['.', '\'']) { "\\&" } else { "" };
            let _ = writeln!(out, "{guard}{text}");
            continue;
        }
        if !text.starts_with('|') {
            heading = None;
        }
        if text.is_empty() || text.starts_with("<!--") || text.starts_with("![") {
            is_paragraph = false;
        } else if let Some(title) = text.strip_prefix("### ") {
            let _ = write!(out, ".SS {}", line(title));
        } else if let Some(title) = text.strip_prefix("## ") {
            let _ = write!(out, ".SH {}", line(&title.to_uppercase()));
        } else if text.starts_with("# ") {
            // The page's title has no place in the man page.
        } else if text.starts_with('|') {
            let cells = page::cells(text);
            match &heading {
                None => heading = Some(cells),
                Some(_) if text.starts_with("|---") => {}
                Some(heading) => out.push_str(&row(heading, &cells)),
            }
        } else if let Some(item) = text.strip_prefix("- ") {
            let _ = write!(out, ".IP \\(bu 3\n{}", line(item));
            is_paragraph = true;
        } else if let Some((number, item)) =
            text.split_once(". ").filter(|(number, _)| number.parse::<u8>().is_ok())
        {
            let _ = write!(out, ".IP {number}. 4\n{}", line(item));
            is_paragraph = true;
        } else {
            if !std::mem::replace(&mut is_paragraph, true) {
                out.push_str(".PP\n");
            }
            out.push_str(&line(text.trim_start()));
        }
    }
    out
}

/// A section of a page, its heading included.
fn section<'p>(page: &'p str, title: &str) -> &'p str {
    let at = page.find(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title}")) + 1;
    let end = page[at + 3..].find("\n## ").map_or(page.len(), |end| at + 3 + end + 1);
    &page[at..end]
}

fn title(name: &str, number: u8, says: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        ".\\\" Generated: `cargo xtask docs` renews it.\n\
         .TH {name} {number} \"\" \"sluice {version}\" Sluice\n\
         .SH NAME\n{name} \\- {says}\n"
    )
}

/// A part of the output of `clap_mangen`, without its heading.
fn rendered(render: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut bytes = Vec::new();
    render(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    // Each part defines the same strings for apostrophes; they are left out.
    let is_text = |line: &&str| ![".ie", ".el", ".SH"].iter().any(|request| line.starts_with(request));
    text.lines().filter(is_text).map(|line| format!("{}\n", line.replace("\\*(Aq", "\\(aq"))).collect()
}

/// The built commands that a user runs.
fn shown() -> Vec<clap::Command> {
    let mut sluice = Cli::command();
    sluice.build();
    let is_built = |command: &&clap::Command| {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        !command.is_hide_set() && command.get_name() != "help" && !about.contains("not built yet")
    };
    let shown = sluice.get_subcommands().filter(is_built).cloned();
    shown.map(|command| command.mut_arg("help", |arg| arg.hide(true))).collect()
}

/// An option or argument as the user types it.
fn typed(arg: &clap::Arg) -> String {
    let value = arg.get_value_names().filter(|_| arg.get_action().takes_values());
    let value = value.map_or_else(String::new, |names| format!("\\fI{}\\fR", names.join(" ")));
    let text = match arg.get_long() {
        Some(long) if value.is_empty() => format!("\\-\\-{}", long.replace('-', "\\-")),
        Some(long) => format!("\\-\\-{} {value}", long.replace('-', "\\-")),
        None => value,
    };
    if arg.is_required_set() { text } else { format!("[{text}]") }
}

fn commands() -> String {
    let mut out = String::from(".SH SYNOPSIS\n");
    for command in shown() {
        let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let (required, others): (Vec<_>, Vec<_>) = arguments.partition(|arg| arg.is_required_set());
        let typed: Vec<String> = required.into_iter().chain(others).map(typed).collect();
        let _ = writeln!(out, ".B sluice {}\n{}\n.br", command.get_name(), typed.join(" "));
    }
    out.push_str(".SH COMMANDS\n");
    for command in shown() {
        let man = Man::new(command.clone());
        let _ = writeln!(out, ".SS sluice {}", command.get_name());
        out.push_str(&rendered(|bytes| man.render_description_section(bytes)));
        out.push_str(&rendered(|bytes| man.render_options_section(bytes)));
    }
    out
}

#[test]
fn sluice_8_is_fresh() {
    let run = page::read("docs/run.md");
    let mut text = title("sluice", 8, "reverse proxy with an XDP guard");
    text.push_str(&commands());
    OF_RUN.iter().for_each(|title| text.push_str(&roff(section(&run, title))));
    text.push_str(".SH SEE ALSO\n.BR sluice.toml (5)\n");
    page::keep("docs/man/sluice.8", &text);
}

#[test]
fn sluice_toml_5_is_fresh() {
    let page = page::read("docs/configure.md");
    let mut text = title("sluice.toml", 5, "configuration of sluice");
    text.push_str(".SH DESCRIPTION\n");
    text.push_str(&roff(&page));
    text.push_str(".SH SEE ALSO\n.BR sluice (8)\n");
    page::keep("docs/man/sluice.toml.5", &text);
}

#[test]
fn markdown_becomes_roff() {
    for (markdown, expected) in [
        ("## Exit status", ".SH EXIT STATUS\n"),
        ("A `--flag` and [a page](x.md#y).", ".PP\nA \\fB\\-\\-flag\\fR and a page.\n"),
        ("one\ntwo\n\nthree", ".PP\none\ntwo\n.PP\nthree\n"),
        ("- one\n  two\n- three", ".IP \\(bu 3\none\ntwo\n.IP \\(bu 3\nthree\n"),
        ("```sh\na-b\n.c\n```", ".PP\n.in +4n\n.nf\na\\-b\n\\&.c\n.fi\n.in\n"),
        ("| a | b |\n|---|---|\n| `x` | y \\| z |", ".TP\n\\fBx\\fR\ny | z\n"),
        (".x", ".PP\n\\&.x\n"),
    ] {
        assert_eq!(roff(markdown), expected, "{markdown}");
    }
}
