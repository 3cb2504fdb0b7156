//! The words of a file, read from its tokens: paths, macros, method calls, attributes, `unsafe` and comments.
//! Tokens inside a macro are read like all others. Strings and prose never look like code.

use std::ops::Range;

use proc_macro2::{Delimiter, Group, Spacing, Span, TokenStream, TokenTree};

/// The kind of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A path of at least two segments, or a leaf of a `use` item. Generic arguments are left out.
    Path,
    /// The last segment of a macro's name.
    Macro,
    /// The name of a method that is called with arguments.
    Call,
    /// The name of a method that is called without arguments.
    EmptyCall,
    /// An attribute and its argument, such as `["expect", "unsafe_code"]`.
    Attribute,
    Unsafe,
    /// The text of comments between two tokens, or of one line of documentation.
    Comment,
}

/// One word of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) kind: Kind,
    /// The segments as they are spelled.
    pub(super) path: Vec<String>,
    pub(super) line: usize,
    /// The offset in bytes at which it begins.
    pub(super) at: usize,
}

/// The words of a file: the code's words in order, then the comments.
pub(super) fn words(tokens: TokenStream, text: &str) -> Vec<Word> {
    let mut code = Vec::new();
    code_ranges(tokens.clone(), text, &mut code);
    let mut reader = Reader { text, words: Vec::new() };
    reader.read(tokens, &[]);
    reader.comments(&code);
    reader.words
}

/// The byte ranges of all tokens, without the tokens of documentation.
fn code_ranges(tokens: TokenStream, text: &str, into: &mut Vec<Range<usize>>) {
    for token in tokens {
        if is_comment(token.span(), text) {
            continue;
        }
        match token {
            TokenTree::Group(group) => {
                into.push(group.span_open().byte_range());
                code_ranges(group.stream(), text, into);
                into.push(group.span_close().byte_range());
            }
            other => into.push(other.span().byte_range()),
        }
    }
}

/// Whether a token belongs to a documentation comment. Such a token's span is the whole comment.
fn is_comment(span: Span, text: &str) -> bool {
    let text = text.get(span.byte_range()).unwrap_or_default();
    text.starts_with("//") || text.starts_with("/*")
}

struct Reader<'a> {
    text: &'a str,
    words: Vec<Word>,
}

impl Reader<'_> {
    fn push(&mut self, kind: Kind, path: Vec<String>, span: Span) {
        self.words.push(Word { kind, path, line: span.start().line, at: span.byte_range().start });
    }

    /// Reads comments: the text between the tokens that is not blank.
    fn comments(&mut self, code: &[Range<usize>]) {
        let mut from = 0;
        let mut line = 1;
        let end = self.text.len()..self.text.len();
        for next in code.iter().chain([&end]) {
            let between = self.text.get(from..next.start).unwrap_or_default();
            for (index, text) in between.split('\n').enumerate() {
                line += usize::from(index > 0);
                if !text.trim().is_empty() {
                    let path = vec![text.trim().to_owned()];
                    self.words.push(Word { kind: Kind::Comment, path, line, at: from });
                }
            }
            line += self.text.get(next.clone()).unwrap_or_default().matches('\n').count();
            from = next.end;
        }
    }

    /// Reads the tokens of one group. `attribute` is the path of the attribute around them, if any.
    fn read(&mut self, tokens: TokenStream, attribute: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        self.read_from(&tokens, 0, attribute);
    }

    fn read_from(&mut self, tokens: &[TokenTree], mut at: usize, attribute: &[String]) {
        while at < tokens.len() {
            at = self.one(tokens, at, attribute);
        }
    }

    /// Reads the word at `at` and returns the index after it.
    fn one(&mut self, tokens: &[TokenTree], at: usize, attribute: &[String]) -> usize {
        match &tokens[at] {
            TokenTree::Punct(sign) if sign.as_char() == '#' => self.attribute(tokens, at),
            // The sign begins a lifetime.
            TokenTree::Punct(sign) if sign.as_char() == '\'' => at + 2,
            TokenTree::Ident(_) if attribute.is_empty() => self.path(tokens, at, Vec::new()),
            TokenTree::Ident(ident) => {
                let path = [attribute, &[ident.to_string()]].concat();
                self.push(Kind::Attribute, path.clone(), ident.span());
                match tokens.get(at + 1) {
                    Some(TokenTree::Group(group)) => {
                        self.read(group.stream(), &path);
                        at + 2
                    }
                    _ => at + 1,
                }
            }
            TokenTree::Group(group) => {
                self.read(group.stream(), attribute);
                at + 1
            }
            TokenTree::Literal(literal) if !attribute.is_empty() => {
                self.quoted_path(&literal.to_string(), literal.span());
                at + 1
            }
            TokenTree::Literal(_) | TokenTree::Punct(_) => at + 1,
        }
    }

    /// Reads `#[…]`, `#![…]`, documentation, or a lone `#`.
    fn attribute(&mut self, tokens: &[TokenTree], at: usize) -> usize {
        let end = at + 1 + usize::from(is_sign(tokens.get(at + 1), '!'));
        let Some(TokenTree::Group(group)) = tokens.get(end) else { return at + 1 };
        let parts: Vec<TokenTree> = group.stream().into_iter().collect();
        if is_comment(tokens[at].span(), self.text) {
            return end + 1;
        }
        if let Some(TokenTree::Ident(name)) = parts.first() {
            let path = vec![name.to_string()];
            self.push(Kind::Attribute, path.clone(), name.span());
            self.read_from(&parts, 1, &path);
        }
        end + 1
    }

    /// Reads a path in a string of an attribute, as serde writes it.
    fn quoted_path(&mut self, literal: &str, span: Span) {
        let text = literal.trim_matches('"');
        if ["crate::", "super::", "self::"].iter().any(|start| text.starts_with(start)) {
            self.push(Kind::Path, text.split("::").map(str::to_owned).collect(), span);
        }
    }

    /// Reads a path, a method call, a macro or a keyword that begins with the name at `at`. `prefix` is the
    /// path before the braces around it in a `use` item.
    fn path(&mut self, tokens: &[TokenTree], at: usize, prefix: Vec<String>) -> usize {
        let span = tokens[at].span();
        let is_leaf = !prefix.is_empty();
        let mut path = prefix;
        path.push(tokens[at].to_string());
        let mut end = at + 1;
        while is_separator(tokens, end) {
            end += 2;
            match tokens.get(end) {
                Some(TokenTree::Ident(next)) => path.push(next.to_string()),
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.leaves(group, &path);
                    return end + 1;
                }
                Some(TokenTree::Punct(sign)) if sign.as_char() == '*' => path.push("*".to_owned()),
                _ => break,
            }
            end += 1;
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        self.name(tokens, at..end, path, is_leaf, span);
        end
    }

    /// Adds the word for the name that `tokens[range]` spells.
    fn name(
        &mut self,
        tokens: &[TokenTree],
        range: Range<usize>,
        path: Vec<String>,
        is_leaf: bool,
        span: Span,
    ) {
        let before = |distance: usize| range.start.checked_sub(distance).and_then(|at| tokens.get(at));
        let next = tokens.get(range.end);
        if is_sign(before(1), '.') && !is_sign(before(2), '.') {
            if let Some(TokenTree::Group(arguments)) = next
                && arguments.delimiter() == Delimiter::Parenthesis
            {
                let kind = if arguments.stream().is_empty() { Kind::EmptyCall } else { Kind::Call };
                self.push(kind, path, span);
            }
            return;
        }
        if path == ["unsafe"] {
            self.push(Kind::Unsafe, path, span);
            return;
        }
        let is_called = matches!(tokens.get(range.end + 1), Some(TokenTree::Group(_) | TokenTree::Ident(_)));
        if is_sign(next, '!') && is_called {
            self.push(Kind::Macro, path[path.len() - 1..].to_vec(), span);
        }
        // `T::<u8>::new` and `<T as Trait>::new`: this name ends a path that was read already.
        let goes_on = range.start >= 3 && is_separator(tokens, range.start - 2) && is_sign(before(3), '>');
        if (path.len() > 1 || is_leaf) && !goes_on {
            self.push(Kind::Path, path, span);
        }
    }

    /// Reads the leaves of `prefix::{…}`.
    fn leaves(&mut self, group: &Group, prefix: &[String]) {
        let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let begins = at == 0 || is_sign(tokens.get(at - 1), ',');
            at = match &tokens[at] {
                TokenTree::Ident(_) if begins => self.path(&tokens, at, prefix.to_vec()),
                TokenTree::Punct(sign) if begins && sign.as_char() == '*' => {
                    self.push(Kind::Path, [prefix, &["*".to_owned()]].concat(), sign.span());
                    at + 1
                }
                _ => self.one(&tokens, at, &[]),
            };
        }
    }
}

fn is_sign(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(found)) if found.as_char() == sign)
}

/// Whether `::` stands at `at`.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let Some(TokenTree::Punct(first)) = tokens.get(at) else { return false };
    first.as_char() == ':' && first.spacing() == Spacing::Joint && is_sign(tokens.get(at + 1), ':')
}
