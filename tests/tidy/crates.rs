//! Which files make up a crate, and as which module.
//!
//! Modules are found as rustc finds them, from the `mod` declarations of the crate's root file. Not known
//! here: modules that a macro declares, and a `#[path]` inside an inline module. The repository has neither.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_none;
use crate::source::{Source, rust};

/// The path of a module below the root of its crate, a part per module; the root's is empty.
pub type ModulePath = Vec<String>;

/// One crate: the file of each module.
pub struct Crate<'a> {
    pub files: BTreeMap<ModulePath, &'a Source>,
}

/// The crates that `files` make up: libraries, programs, test programs, benchmarks and examples.
pub fn crates(files: &[Source]) -> Vec<Crate<'_>> {
    let by_path: BTreeMap<&str, &Source> = files.iter().map(|file| (file.path.as_str(), file)).collect();
    let roots = files.iter().filter(|file| is_root(&file.path));
    roots.map(|root| modules_below(root, &by_path)).collect()
}

fn modules_below<'a>(root: &'a Source, by_path: &BTreeMap<&str, &'a Source>) -> Crate<'a> {
    let mut found = BTreeMap::new();
    let mut open = vec![(ModulePath::new(), root)];
    while let Some((module, file)) = open.pop() {
        for (name, path) in declarations(file, |path| by_path.contains_key(path)) {
            let mut child = module.clone();
            child.push(name);
            open.push((child, by_path[path.as_str()]));
        }
        found.insert(module, file);
    }
    Crate { files: found }
}

/// Crate roots by cargo's conventions; this package names its own in its manifest.
fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        [.., "src", "lib.rs" | "main.rs"] | [.., "src", "bin", _] | [.., "build.rs"] => true,
        ["tests", "linux.rs" | "qemu.rs" | "sessions.rs" | "tidy.rs"] => true,
        ["tests", "benches", _] => true,
        [_, .., "tests" | "benches" | "examples", file] => !file.is_empty() && parts[0] != "tests",
        [.., "tests" | "benches" | "examples", _, "main.rs"] => true,
        _ => false,
    }
}

/// The modules that `file` declares, each with its name and the path of its file, as far as such a file
/// exists.
fn declarations(file: &Source, exists: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let own = if is_root(&file.path) || name == "mod.rs" {
        folder.to_owned()
    } else {
        format!("{folder}/{}", name.trim_end_matches(".rs"))
    };
    let mut found = Vec::new();
    let mut explicit = None;
    for line in file.text.lines().map(str::trim) {
        if let Some(path) = line.strip_prefix("#[path = \"") {
            explicit = path.split('"').next().map(|path| beside(folder, path));
            continue;
        }
        let declaration =
            line.rsplit_once("mod ").filter(|(before, _)| before.is_empty() || before.ends_with(' '));
        if let Some(module) = declaration.and_then(|(_, module)| module.strip_suffix(';')) {
            let usual = || vec![format!("{own}/{module}.rs"), format!("{own}/{module}/mod.rs")];
            let paths = explicit.take().map_or_else(usual, |path| vec![path]);
            let file = paths.into_iter().find(|path| exists(path));
            found.extend(file.map(|file| (module.to_owned(), file)));
        }
    }
    found
}

/// The path that `path` has from the top of the repository, when it is written in a file of `folder`.
fn beside(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn every_file_is_reached_from_a_root() {
    let files = rust();
    let crates = crates(&files);
    let reached: BTreeSet<&str> =
        crates.iter().flat_map(|one| one.files.values()).map(|file| file.path.as_str()).collect();
    let dead: Vec<String> = files
        .iter()
        .map(|file| &file.path)
        .filter(|path| !reached.contains(path.as_str()))
        .cloned()
        .collect();
    assert_none("files that no crate contains", &dead);
}

#[test]
fn modules_lie_where_rustc_looks() {
    let file = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let files = [
        file("a/src/lib.rs", "mod one;\n#[path = \"far/two.rs\"]\nmod two;\nmod gone;"),
        file("a/src/one.rs", "pub(crate) mod inner;"),
        file("a/src/one/inner.rs", ""),
        file("a/src/far/two.rs", ""),
        file("a/src/dead.rs", ""),
        // A test with the name of the module that it takes from elsewhere.
        file("a/tests/far.rs", "#[path = \"../src/far/two.rs\"]\nmod far;"),
    ];
    let crates = crates(&files);
    assert_eq!(crates.len(), 2);
    let far = &crates[1].files[&vec!["far".to_owned()]];
    assert_eq!((crates[1].files.len(), far.path.as_str()), (2, "a/src/far/two.rs"));
    let found: Vec<(String, &str)> =
        crates[0].files.iter().map(|(module, file)| (module.join("::"), file.path.as_str())).collect();
    let expected = [
        ("", "a/src/lib.rs"),
        ("one", "a/src/one.rs"),
        ("one::inner", "a/src/one/inner.rs"),
        ("two", "a/src/far/two.rs"),
    ];
    assert_eq!(found, expected.map(|(module, path)| (module.to_owned(), path)));
}
