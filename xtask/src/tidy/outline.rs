//! The structure of a source file as `syn` parses it: the ranges that only tests compile, the functions and
//! the modules. It also holds the paths for which the names of `use` items stand.

use std::collections::HashMap;
use std::ops::Range;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, ImplItem, Item, Meta, Signature, Stmt, Token, TraitItem, Type, UseTree};

/// The structure of one file. Ranges are bytes of its text.
#[derive(Default)]
pub(super) struct Outline {
    /// Parts under `#[cfg(test)]`, and `#[test]` functions.
    pub(super) tests: Vec<Extent>,
    pub(super) functions: Vec<Function>,
    pub(super) modules: Vec<Module>,
    /// The scope of the file, then the scopes of its inline modules. An outer scope stands before an inner
    /// one.
    pub(super) scopes: Vec<Scope>,
    /// The reasons that `reasons! { … }` declares.
    pub(super) reasons: Vec<Reason>,
}

/// The bytes and lines of a part of a file, including its attributes and documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) bytes: Range<usize>,
    /// The first and the last line, counted from 1.
    pub(super) lines: (usize, usize),
}

impl Extent {
    fn of(node: &impl Spanned) -> Self {
        let span = node.span();
        Self { bytes: span.byte_range(), lines: (span.start().line, span.end().line) }
    }

    pub(super) const fn line_count(&self) -> usize {
        self.lines.1 + 1 - self.lines.0
    }
}

pub(super) struct Function {
    /// The name with its type and the functions around it, such as `Exchange::run`.
    pub(super) name: String,
    /// The range from the signature to the last brace.
    pub(super) extent: Extent,
}

pub(super) struct Module {
    pub(super) name: String,
    /// The inline modules around the `mod` item.
    pub(super) within: Vec<String>,
    /// The file in `#[path = "…"]`.
    pub(super) file: Option<String>,
    pub(super) is_inline: bool,
    pub(super) is_last: bool,
    pub(super) extent: Extent,
}

/// A variant of an enum of reasons.
pub(super) struct Reason {
    pub(super) name: String,
    pub(super) variant: String,
    pub(super) line: usize,
}

/// The names that are known in a module.
pub(super) struct Scope {
    /// The bytes of the whole file or of an inline module.
    pub(super) bytes: Range<usize>,
    /// The inline modules that lead here.
    pub(super) within: Vec<String>,
    /// The path of each name, as its `use` item spells it. A child module's path begins with `self`.
    pub(super) names: HashMap<String, Vec<String>>,
}

impl Outline {
    pub(super) fn of(file: &syn::File, length: usize) -> Self {
        let scope = Scope { bytes: 0..length, within: Vec::new(), names: HashMap::new() };
        let mut visitor = Visitor {
            outline: Self { scopes: vec![scope], ..Self::default() },
            scope: 0,
            owners: Vec::new(),
        };
        visitor.visit_items(&file.items);
        visitor.outline
    }
}

/// Whether only tests compile a part with these attributes.
fn is_only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        if path.is_ident("cfg") {
            return attribute.parse_args::<Meta>().is_ok_and(|condition| takes_test(&condition));
        }
        path.segments.last().is_some_and(|segment| segment.ident == "test")
    })
}

/// Whether a `cfg` is true only if `test` is.
fn takes_test(condition: &Meta) -> bool {
    let Meta::List(list) = condition else { return condition.path().is_ident("test") };
    let Ok(parts) = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) else {
        return false;
    };
    if list.path.is_ident("all") {
        return parts.iter().any(takes_test);
    }
    list.path.is_ident("any") && !parts.is_empty() && parts.iter().all(takes_test)
}

struct Visitor {
    outline: Outline,
    /// The index of the scope that is being read.
    scope: usize,
    /// The types and functions around the current place.
    owners: Vec<String>,
}

impl Visitor {
    /// Notes a part that only tests compile. The visitor still reads its inside.
    fn note(&mut self, attributes: &[Attribute], part: &impl Spanned) {
        if is_only_for_tests(attributes) {
            self.outline.tests.push(Extent::of(part));
        }
    }

    fn owned<R>(&mut self, owner: String, visit: impl FnOnce(&mut Self) -> R) -> R {
        self.owners.push(owner);
        let result = visit(self);
        self.owners.pop();
        result
    }

    fn function(&mut self, signature: &Signature, block: &Block) {
        let (from, to) = (signature.span(), block.span());
        let extent = Extent {
            bytes: from.byte_range().start..to.byte_range().end,
            lines: (from.start().line, to.end().line),
        };
        let mut name = self.owners.clone();
        name.push(signature.ident.to_string());
        self.outline.functions.push(Function { name: name.join("::"), extent });
    }

    fn visit_items(&mut self, items: &[Item]) {
        for (index, item) in items.iter().enumerate() {
            if let Item::Mod(module) = item {
                self.module(module, index + 1 == items.len());
            } else {
                self.visit_item(item);
            }
        }
    }

    fn module(&mut self, module: &syn::ItemMod, is_last: bool) {
        self.note(&module.attrs, module);
        let name = module.ident.to_string();
        let outer = self.scope;
        let mut within = self.outline.scopes[outer].within.clone();
        self.outline.scopes[outer].names.insert(name.clone(), vec!["self".to_owned(), name.clone()]);
        self.outline.modules.push(Module {
            name: name.clone(),
            within: within.clone(),
            file: module.attrs.iter().find_map(path_of),
            is_inline: module.content.is_some(),
            is_last,
            extent: Extent::of(module),
        });
        if let Some((_, items)) = &module.content {
            within.push(name);
            let bytes = module.span().byte_range();
            self.outline.scopes.push(Scope { bytes, within, names: HashMap::new() });
            self.scope = self.outline.scopes.len() - 1;
            self.visit_items(items);
            self.scope = outer;
        }
    }

    fn take_use(&mut self, tree: &UseTree, prefix: &[String]) {
        let joined = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        let (name, path) = match tree {
            UseTree::Path(path) => return self.take_use(&path.tree, &joined(&path.ident)),
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.take_use(tree, prefix)),
            UseTree::Glob(_) => return,
            UseTree::Name(name) if name.ident == "self" => {
                (prefix.last().cloned().unwrap_or_default(), prefix.to_vec())
            }
            UseTree::Name(name) => (name.ident.to_string(), joined(&name.ident)),
            UseTree::Rename(rename) if rename.ident == "self" => (rename.rename.to_string(), prefix.to_vec()),
            UseTree::Rename(rename) => (rename.rename.to_string(), joined(&rename.ident)),
        };
        self.outline.scopes[self.scope].names.insert(name, path);
    }
}

/// The file that `#[path = "…"]` names.
fn path_of(attribute: &Attribute) -> Option<String> {
    let Meta::NameValue(pair) = &attribute.meta else { return None };
    match &pair.value {
        Expr::Lit(literal) if pair.path.is_ident("path") => match &literal.lit {
            syn::Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

/// The reasons in `Name { Variant = "label", … }`.
fn reasons(tokens: TokenStream) -> Vec<Reason> {
    let mut name = String::new();
    let mut reasons = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => name = ident.to_string(),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let variants = group.stream().into_iter().filter_map(|token| match token {
                    TokenTree::Ident(ident) => Some(ident),
                    _ => None,
                });
                reasons.extend(variants.map(|variant| Reason {
                    name: name.clone(),
                    variant: variant.to_string(),
                    line: variant.span().start().line,
                }));
            }
            _ => {}
        }
    }
    reasons
}

/// A type's name, for the names of its functions.
fn name_of(of: &Type) -> String {
    match of {
        Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default(),
        Type::Reference(reference) => name_of(&reference.elem),
        _ => "_".to_owned(),
    }
}

impl<'ast> Visit<'ast> for Visitor {
    fn visit_item(&mut self, item: &'ast Item) {
        self.note(item_attributes(item), item);
        match item {
            Item::Mod(module) => self.module(module, false),
            Item::Use(import) => self.take_use(&import.tree, &[]),
            Item::Fn(function) => {
                self.function(&function.sig, &function.block);
                self.owned(function.sig.ident.to_string(), |this| visit::visit_item_fn(this, function));
            }
            Item::Impl(block) => {
                self.owned(name_of(&block.self_ty), |this| visit::visit_item_impl(this, block));
            }
            Item::Trait(definition) => {
                self.owned(definition.ident.to_string(), |this| visit::visit_item_trait(this, definition));
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        self.note(impl_item_attributes(item), item);
        match item {
            ImplItem::Fn(function) => {
                self.function(&function.sig, &function.block);
                self.owned(function.sig.ident.to_string(), |this| visit::visit_impl_item_fn(this, function));
            }
            _ => visit::visit_impl_item(self, item),
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        self.note(trait_item_attributes(item), item);
        if let TraitItem::Fn(function) = item
            && let Some(block) = &function.default
        {
            self.function(&function.sig, block);
        }
        visit::visit_trait_item(self, item);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if call.path.is_ident("reasons") {
            self.outline.reasons.extend(reasons(call.tokens.clone()));
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        match statement {
            Stmt::Local(local) => self.note(&local.attrs, statement),
            Stmt::Macro(call) => self.note(&call.attrs, statement),
            Stmt::Expr(expression, _) => self.note(statement_attributes(expression), statement),
            Stmt::Item(_) => {}
        }
        visit::visit_stmt(self, statement);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        self.note(&field.attrs, field);
        visit::visit_field(self, field);
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        self.note(&field.attrs, field);
        visit::visit_field_value(self, field);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.note(&variant.attrs, variant);
        visit::visit_variant(self, variant);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        self.note(&arm.attrs, arm);
        visit::visit_arm(self, arm);
    }
}

/// Gives `attrs` of any of these variants.
macro_rules! attributes {
    ($node:expr, $kind:ident: $($variant:ident)*) => {
        match $node {
            $($kind::$variant(node) => &node.attrs,)*
            _ => &[],
        }
    };
}

fn item_attributes(item: &Item) -> &[Attribute] {
    attributes!(item, Item:
        Const Enum ExternCrate Fn ForeignMod Impl Macro Static Struct Trait Type Union Use)
}

fn impl_item_attributes(item: &ImplItem) -> &[Attribute] {
    attributes!(item, ImplItem: Const Fn Type Macro)
}

fn trait_item_attributes(item: &TraitItem) -> &[Attribute] {
    attributes!(item, TraitItem: Const Fn Type Macro)
}

/// The attributes of a statement that is an expression. `syn` gives them to its leftmost operand.
fn statement_attributes(expression: &Expr) -> &[Attribute] {
    match expression {
        Expr::Assign(assign) => statement_attributes(&assign.left),
        Expr::Binary(binary) => statement_attributes(&binary.left),
        Expr::Cast(cast) => statement_attributes(&cast.expr),
        _ => attributes!(expression, Expr:
            Array Async Await Block Break Call Closure Const Continue Field ForLoop If Index Loop Macro Match
            MethodCall Paren Path Reference Repeat Return Struct Try Tuple Unary Unsafe While),
    }
}
