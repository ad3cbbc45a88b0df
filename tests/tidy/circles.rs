//! The rule against circles: no files of a crate import each other in a loop.
//!
//! Without circles, each file can be read once the files that it imports have been read.
//!
//! A file and the modules inside it may know each other: a child uses what its parent defines, and the parent
//! puts its children together. So an import of a module around the importing one does not count, unless
//! the loop leaves that module and comes back. The root of a crate is around everything; imports of it never
//! count.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_none;
use crate::crates::{Crate, ModulePath, crates};
use crate::imports::{Edges, imports};
use crate::source::{Source, rust};

type Circle = BTreeSet<ModulePath>;

/// Every circle of `one`, with the imports that tie it.
fn circles(one: &Crate<'_>) -> Vec<String> {
    let mut edges = imports(one);
    edges.retain(|(_, to), _| !to.is_empty());
    let mut downwards = edges.clone();
    downwards.retain(|(from, to), _| !from.starts_with(to));
    let mut found = loops(&downwards);
    let leaves = |circle: &Circle| {
        let top = circle.iter().min_by_key(|module| module.len()).expect("a circle has files");
        circle.iter().any(|module| !module.starts_with(top))
    };
    let wider: Vec<Circle> = loops(&edges)
        .into_iter()
        .filter(|circle| leaves(circle) && !found.iter().any(|inner| inner.is_subset(circle)))
        .collect();
    found.extend(wider);
    found.iter().map(|circle| describe(one, circle, &edges)).collect()
}

/// The sets of modules that import each other, directly or through others.
fn loops(edges: &Edges) -> BTreeSet<Circle> {
    let mut next: BTreeMap<&ModulePath, Vec<&ModulePath>> = BTreeMap::new();
    for (from, to) in edges.keys() {
        next.entry(from).or_default().push(to);
    }
    let ahead: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> =
        next.keys().map(|&module| (module, reachable(module, &next))).collect();
    let circle = |module: &&ModulePath| -> Circle {
        let back = |other: &&&ModulePath| ahead.get(**other).is_some_and(|far| far.contains(*module));
        ahead[*module].iter().filter(back).map(|&other| other.clone()).collect()
    };
    ahead.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

fn reachable<'a>(
    from: &'a ModulePath,
    next: &BTreeMap<&'a ModulePath, Vec<&'a ModulePath>>,
) -> BTreeSet<&'a ModulePath> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for &to in next.get(module).into_iter().flatten() {
            if reached.insert(to) {
                open.push(to);
            }
        }
    }
    reached
}

fn describe(one: &Crate<'_>, circle: &Circle, edges: &Edges) -> String {
    let inside = edges.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
    let mut text = format!("a circle of {} files", circle.len());
    for ((from, to), names) in inside {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let [from, to] = [from, to].map(|module| &one.files[module].path);
        text += &format!("\n    {from} -> {to}: {}", names.join(", "));
    }
    text
}

#[test]
fn no_circle_of_imports() {
    let files = rust();
    let found: BTreeSet<String> = crates(&files).iter().flat_map(circles).collect();
    assert_none("files that import each other in a circle", &found.into_iter().collect::<Vec<_>>());
}

/// The circles of a made-up crate whose root declares `roots`.
fn circles_of(roots: &str, files: &[(&str, &str)]) -> Vec<String> {
    let lib = [("src/lib.rs", roots)];
    let source = |&(path, text): &(&str, &str)| Source { path: format!("x/{path}"), text: text.to_owned() };
    let files: Vec<Source> = lib.iter().chain(files).map(source).collect();
    crates(&files).iter().flat_map(circles).collect()
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let roots = "mod a;\nmod b;\nmod c;\npub use c::Shared;";
    let b = ("src/b.rs", "use super::c;\npub fn go() { c::run(); }\npub struct B;");
    let c = ("src/c.rs", "pub struct Shared;\npub fn run() { crate::a::start(); }");
    for (how, a) in [
        ("a use", "use crate::b::B;\npub fn start() {}"),
        ("a tree of uses", "use crate::{b::{self as other, B}};\npub fn start() {}"),
        ("a path", "pub fn start() { super::b::go(); }"),
        ("a module under another name", "use crate::b as other;\npub fn start() { other::go(); }"),
        ("an inline module", "pub fn start() {}\nmod inner { use super::super::b::B; }"),
    ] {
        let found = circles_of(roots, &[("src/a.rs", a), b, c]);
        assert_eq!(found.len(), 1, "{how}: {found:?}");
        assert!(found[0].starts_with("a circle of 3 files"), "{how}: {}", found[0]);
        assert!(found[0].contains("x/src/a.rs -> x/src/b.rs: "), "{how}: {}", found[0]);
        assert!(found[0].contains("x/src/b.rs -> x/src/c.rs: run"), "{how}: {}", found[0]);
    }
    // A name that the root hands on is its definer's.
    let found = circles_of(roots, &[("src/a.rs", "use crate::Shared;\npub fn start() {}"), b, c]);
    assert!(found[0].contains("x/src/a.rs -> x/src/c.rs: Shared"), "{found:?}");
}

#[test]
fn what_is_no_circle_is_not_found() {
    let b = ("src/b.rs", "pub use inner::B;\nuse crate::c::C;\nmod inner;\npub struct Own;");
    let inner = ("src/b/inner.rs", "use super::Own;\nuse crate::Root;\npub struct B;");
    let c = ("src/c.rs", "use crate::Root;\npub struct C;\n#[cfg(test)]\nmod tests { use crate::a::A; }");
    let a = "// use crate::a::A;\nuse crate::b::B;\nuse std::b::Own;\nconst TEXT: &str = \"crate::c\";";
    let found = circles_of("mod a;\nmod b;\nmod c;\nstruct Root(a::A);", &[("src/a.rs", a), b, inner, c]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_loop_that_leaves_a_module_through_its_child_is_found() {
    let b = ("src/b.rs", "use crate::a::A;\nmod inner;\npub struct Own;");
    let inner = ("src/b/inner.rs", "use super::Own;\npub struct B;");
    let a = ("src/a.rs", "use crate::b::inner::B;\npub struct A;");
    let found = circles_of("mod a;\nmod b;", &[a, b, inner]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("x/src/b/inner.rs -> x/src/b.rs: Own"), "{found:?}");
}
