//! The imports between the files of a crate, resolved to the defining file.
//!
//! A path counts wherever it stands: in a `use`, or in an expression or a type. A name is followed through
//! the `use` declarations of the modules on its way, so that `crate::memory::Region` belongs to the file that
//! defines `Region`, although `memory.rs` passes it on. A module that is only imported counts for nothing;
//! what is reached through it does. Not seen: methods (they need types), and what a macro expands to.

use std::collections::{BTreeMap, BTreeSet};

use crate::crates::{Crate, ModulePath};

/// Names by the file that takes them and the file that defines them.
pub type Edges = BTreeMap<(ModulePath, ModulePath), BTreeSet<String>>;

/// A path in the code of a module, and the name under which the module knows its end.
struct Path {
    segments: Vec<String>,
    /// For a path of a `use`.
    alias: Option<String>,
    /// The inline modules around it, outermost first.
    inline: Vec<String>,
}

/// Where a path leads.
enum Target {
    Module(ModulePath),
    /// A name that the module's file defines.
    Item(ModulePath, String),
}

/// The most declarations that a name is followed through: more would be a `use` of itself.
const MAX_DEPTH: usize = 16;

/// All imports between the files of `one`.
pub fn imports(one: &Crate<'_>) -> Edges {
    let paths: BTreeMap<&ModulePath, Vec<Path>> =
        one.files.iter().map(|(module, file)| (module, paths(&file.production_code()))).collect();
    let names = Names { crate_: one, paths: &paths };
    let mut edges = Edges::new();
    for (module, paths) in &paths {
        for path in paths {
            let scope: ModulePath = module.iter().chain(&path.inline).cloned().collect();
            if let Some(Target::Item(definer, name)) = names.resolve(&scope, &path.segments, MAX_DEPTH) {
                let definer = names.file(definer);
                if definer != **module {
                    edges.entry(((*module).clone(), definer)).or_default().insert(name);
                }
            }
        }
    }
    edges
}

struct Names<'a> {
    crate_: &'a Crate<'a>,
    paths: &'a BTreeMap<&'a ModulePath, Vec<Path>>,
}

impl Names<'_> {
    fn is_module(&self, module: &ModulePath) -> bool {
        self.crate_.files.contains_key(module)
    }

    /// The module whose file contains `module`, which may be an inline one.
    fn file(&self, mut module: ModulePath) -> ModulePath {
        while !self.is_module(&module) {
            module.pop();
        }
        module
    }

    /// Where `segments`, written in `scope`, leads; nothing for a path into another crate or to a local
    /// name.
    fn resolve(&self, scope: &ModulePath, segments: &[String], depth: usize) -> Option<Target> {
        let depth = depth.checked_sub(1)?;
        let mut module = scope.clone();
        let mut rest = segments;
        match segments.first()?.as_str() {
            "crate" => {
                module.clear();
                rest = &rest[1..];
            }
            "self" | "super" => {
                while let Some((first, behind)) = rest.split_first() {
                    match first.as_str() {
                        "self" => {}
                        "super" => drop(module.pop()?),
                        _ => break,
                    }
                    rest = behind;
                }
            }
            first => {
                let known = self.is_module(&child(&module, first)) || self.alias(&module, first).is_some();
                if !known || segments.len() == 1 {
                    return None;
                }
            }
        }
        self.descend(module, rest, depth)
    }

    /// Follows `rest` from `module` on.
    fn descend(&self, mut module: ModulePath, mut rest: &[String], depth: usize) -> Option<Target> {
        while let Some((first, behind)) = rest.split_first() {
            let below = child(&module, first);
            if self.is_module(&below) {
                module = below;
            } else if let Some((scope, path)) = self.alias(&module, first) {
                match self.resolve_use(&scope, path, depth) {
                    Some(Target::Module(other)) => module = other,
                    // What follows an item is its own: a method, a variant.
                    Some(item) => return Some(item),
                    // The module hands on a name of another crate.
                    None => return None,
                }
            } else {
                return Some(Target::Item(module, first.clone()));
            }
            rest = behind;
        }
        Some(Target::Module(module))
    }

    /// As `resolve`, where a name alone may be a module of the scope.
    fn resolve_use(&self, scope: &ModulePath, segments: &[String], depth: usize) -> Option<Target> {
        match segments {
            [only] if self.is_module(&child(scope, only)) => Some(Target::Module(child(scope, only))),
            _ => self.resolve(scope, segments, depth),
        }
    }

    /// The path under which the file of `module` imports `name`, and the scope in which it is written.
    fn alias(&self, module: &ModulePath, name: &str) -> Option<(ModulePath, &[String])> {
        let file = self.file(module.clone());
        let paths = self.paths.get(&file)?;
        let path = paths.iter().find(|path| path.alias.as_deref() == Some(name))?;
        // `use name::...` of another crate's name, which would lead back here.
        let leads_away = path.segments.first().is_some_and(|first| first != name);
        leads_away.then(|| (file.into_iter().chain(path.inline.iter().cloned()).collect(), &*path.segments))
    }
}

fn child(module: &ModulePath, name: &str) -> ModulePath {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

/// Every path of more than one segment in `code`, and every path of a `use`.
fn paths(code: &str) -> Vec<Path> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut inline: Vec<(String, usize)> = Vec::new();
    let (mut depth, mut at) = (0_usize, 0);
    while at < tokens.len() {
        let names = || inline.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        match tokens[at] {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|(_, inside)| *inside <= depth);
            }
            "mod" if tokens.get(at + 2) == Some(&"{") => {
                inline.push((tokens[at + 1].to_owned(), depth + 1));
                at += 1;
            }
            // `use<'a>` of a type is none.
            "use" if tokens.get(at + 1) != Some(&"<") => {
                at += 1;
                let tree = use_tree(&tokens, &mut at, &[]);
                found.extend(tree.into_iter().map(|(segments, alias)| Path {
                    segments,
                    alias: Some(alias),
                    inline: names(),
                }));
                continue;
            }
            token if is_name(token) && tokens.get(at + 1) == Some(&"::") => {
                let mut segments = vec![token.to_owned()];
                while tokens.get(at + 1) == Some(&"::") && tokens.get(at + 2).is_some_and(|t| is_name(t)) {
                    segments.push(tokens[at + 2].to_owned());
                    at += 2;
                }
                // Behind a turbofish it goes on with the names of a type.
                found.push(Path { segments, alias: None, inline: names() });
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The paths of the tree of a `use` at `tokens[at]`, each with the name that it gets; moves behind the tree.
fn use_tree(tokens: &[&str], at: &mut usize, before: &[String]) -> Vec<(Vec<String>, String)> {
    let mut segments = before.to_vec();
    let mut found = Vec::new();
    while let Some(&token) = tokens.get(*at) {
        match token {
            "::" => {}
            "{" => {
                *at += 1;
                while tokens.get(*at).is_some_and(|&token| token != "}") {
                    found.extend(use_tree(tokens, at, &segments));
                    if tokens.get(*at) == Some(&",") {
                        *at += 1;
                    }
                }
                *at += 1;
                return found;
            }
            "as" => {
                let alias = tokens.get(*at + 1).copied().unwrap_or_default().to_owned();
                *at += 2;
                found.push((segments, alias));
                return found;
            }
            "," | "}" | ";" => break,
            name => segments.push(name.to_owned()),
        }
        *at += 1;
    }
    // `{self}` names what stands before the brace.
    if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
        segments.pop();
    }
    let alias = segments.last().cloned().unwrap_or_default();
    found.push((segments, alias));
    found
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names and numbers, `::`, and every other character by itself.
fn tokens(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        found.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    found
}
