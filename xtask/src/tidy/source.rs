//! A source file as the rules see it, and the tree of all files: a file's module, whether only tests compile
//! it, and the module to which a path leads.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use proc_macro2::TokenStream;

use super::outline::{Function, Module, Outline};
use super::words::{self, Kind, Word};

/// The package in which all code is test code.
const TEST_PACKAGE: &str = "tests";

/// A source file.
pub(super) struct Source {
    /// The path from the workspace's root, with `/`.
    pub(super) path: String,
    /// The text as written.
    pub(super) text: String,
    pub(super) outline: Outline,
    pub(super) words: Vec<Word>,
    /// The package, such as `proxy` for proxy/src/….
    pub(super) package: String,
    /// The modules that lead to the file, such as `["io", "timer"]`.
    pub(super) module: Vec<String>,
    /// Whether only tests compile it.
    pub(super) is_test: bool,
    /// Whether a `mod` item leads to it.
    pub(super) is_declared: bool,
}

impl Source {
    pub(super) fn parse(path: &str, text: &str) -> Result<Self, String> {
        let fail = |error: &dyn std::fmt::Display| format!("{path}: does not parse: {error}");
        let tokens: TokenStream = text.parse().map_err(|error: proc_macro2::LexError| fail(&error))?;
        let words = words::words(tokens.clone(), text);
        let file: syn::File = syn::parse2(tokens).map_err(|error| fail(&error))?;
        let outline = Outline::of(&file, text.len());
        let (package, module) = place(path);
        Ok(Self {
            path: path.to_owned(),
            text: text.to_owned(),
            outline,
            words,
            package,
            module,
            is_test: false,
            is_declared: false,
        })
    }

    /// Whether only tests compile the code at a byte.
    fn is_test_at(&self, at: usize) -> bool {
        self.is_test || self.outline.tests.iter().any(|test| test.bytes.contains(&at))
    }

    /// The full name of an item in the file: `package::module::name`.
    pub(super) fn full_name(&self, name: &str) -> String {
        let modules = self.module.iter().map(String::as_str);
        let parts: Vec<&str> = [self.package.as_str()].into_iter().chain(modules).chain([name]).collect();
        parts.join("::")
    }

    /// The words of code that runs in production.
    pub(super) fn live_words(&self, kind: Kind) -> impl Iterator<Item = &Word> {
        self.words.iter().filter(move |word| word.kind == kind && !self.is_test_at(word.at))
    }

    pub(super) fn live_functions(&self) -> impl Iterator<Item = &Function> {
        self.outline.functions.iter().filter(|function| !self.is_test_at(function.extent.bytes.start))
    }

    /// The number of lines, and the number of lines that only tests compile.
    pub(super) fn line_counts(&self) -> (usize, usize) {
        let tests: HashSet<usize> =
            self.outline.tests.iter().flat_map(|test| test.lines.0..=test.lines.1).collect();
        (self.text.lines().count(), tests.len())
    }

    /// Resolves a path's first segment: to `crate` and the modules from there, or to another crate.
    pub(super) fn resolve(&self, word: &Word) -> Vec<String> {
        let scope = self.outline.scopes.iter().rev().find(|scope| scope.bytes.contains(&word.at));
        let (within, names) = scope.map_or((&[][..], None), |scope| (&scope.within[..], Some(&scope.names)));
        let here: Vec<String> = self.module.iter().chain(within).cloned().collect();
        let mut path = word.path.clone();
        // A name may stand for a path that begins with another name.
        for _ in 0..4 {
            let Some(meant) = names.and_then(|names| names.get(&path[0])) else { break };
            if meant[0] == path[0] {
                break;
            }
            path.splice(0..1, meant.iter().cloned());
        }
        let ups = path.iter().take_while(|segment| *segment == "super").count();
        let from = match path[0].as_str() {
            "super" => &here[..here.len().saturating_sub(ups)],
            "self" => &here[..],
            _ => return path,
        };
        let rest = path.iter().skip(ups.max(1));
        ["crate".to_owned()].iter().chain(from).chain(rest).cloned().collect()
    }

    /// The files to which `mod name;` may lead.
    fn candidates(&self, module: &Module) -> Vec<String> {
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let stem = name.trim_end_matches(".rs");
        let within: String = module.within.iter().map(|name| format!("{name}/")).collect();
        if let Some(file) = &module.file {
            return vec![format!("{folder}/{file}")];
        }
        let mut folders = vec![format!("{folder}/{within}")];
        if !matches!(stem, "mod" | "lib" | "main") {
            // The root of a crate has its modules beside it; any other file has them below it.
            folders.insert(0, format!("{folder}/{stem}/{within}"));
        }
        let name = &module.name;
        folders
            .iter()
            .flat_map(|folder| [format!("{folder}{name}.rs"), format!("{folder}{name}/mod.rs")])
            .collect()
    }
}

/// The package and the modules that lead to a file.
fn place(path: &str) -> (String, Vec<String>) {
    let path = path.trim_end_matches(".rs");
    let (package, inner) = match path.split_once("/src/") {
        Some((package, inner)) => (package, inner),
        None => path.split_once('/').unwrap_or(("", path)),
    };
    let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || matches!(inner, "lib" | "main") {
        module.pop();
    }
    (package.to_owned(), module)
}

/// All source files.
pub(super) struct Tree {
    pub(super) sources: Vec<Source>,
}

impl Tree {
    /// Every Rust file that git knows or would add.
    pub(super) fn read(root: &Path) -> Result<Self, String> {
        let listing = Command::new("git")
            .current_dir(root)
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
            .output()
            .map_err(|error| format!("git ls-files: {error}"))?;
        let names = String::from_utf8_lossy(&listing.stdout).into_owned();
        let mut files = Vec::new();
        for name in names.lines().filter(|name| root.join(name).exists()) {
            let text = fs::read_to_string(root.join(name)).map_err(|error| format!("{name}: {error}"))?;
            files.push((name.to_owned(), text));
        }
        if files.is_empty() {
            return Err("found no source file".into());
        }
        Self::of(&files)
    }

    pub(super) fn of(files: &[(String, String)]) -> Result<Self, String> {
        let sources = files.iter().map(|(path, text)| Source::parse(path, text));
        let mut tree = Self { sources: sources.collect::<Result<_, _>>()? };
        tree.find_tests();
        Ok(tree)
    }

    /// Finds the files that only tests compile. It follows `mod x;` from the files that no file declares, and
    /// notes the files that are reached only through `#[cfg(test)]`.
    fn find_tests(&mut self) {
        let by_path: HashMap<&str, usize> =
            self.sources.iter().enumerate().map(|(index, source)| (source.path.as_str(), index)).collect();
        let mut declared = HashSet::new();
        let mut children = vec![Vec::new(); self.sources.len()];
        for (parent, source) in self.sources.iter().enumerate() {
            for module in source.outline.modules.iter().filter(|module| !module.is_inline) {
                let paths = source.candidates(module);
                let Some(&child) = paths.iter().find_map(|path| by_path.get(path.as_str())) else { continue };
                children[parent].push((child, source.is_test_at(module.extent.bytes.start)));
                declared.insert(child);
            }
        }
        let mut live = HashSet::new();
        let is_root = |index: &usize| !declared.contains(index) && !is_test_package(&self.sources[*index]);
        let mut queue: Vec<usize> = (0..self.sources.len()).filter(is_root).collect();
        while let Some(index) = queue.pop() {
            if live.insert(index) {
                queue.extend(children[index].iter().filter(|(_, is_test)| !is_test).map(|(child, _)| *child));
            }
        }
        for (index, source) in self.sources.iter_mut().enumerate() {
            source.is_test = !live.contains(&index);
            source.is_declared = declared.contains(&index);
        }
    }
}

fn is_test_package(source: &Source) -> bool {
    source.path.split('/').next() == Some(TEST_PACKAGE)
}
