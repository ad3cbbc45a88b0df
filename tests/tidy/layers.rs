//! The rule of layers in `guest/mm`: a file knows its own layer and the layers below it.
//!
//! The layers are those of the table in `guest/mm/src/lib.rs`. Both ways to climb are seen: an import, and a
//! call of a method that only files of higher layers define. The second needs no import where the method
//! belongs to `Mm`, which every file has. A method is known by its name alone, so a call is let pass when a
//! lower layer has a method of that name too, or the standard library has one (`NOT_TOLD_APART`).

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_none;
use crate::source::{Source, rust, words};

const MM: &str = "guest/mm/src/";

/// Names of methods that values of the standard library have too.
const NOT_TOLD_APART: &[&str] = &[
    "clear", "contains", "count", "find", "first", "get", "insert", "is_empty", "iter", "last", "len",
    "load", "map", "next", "pop", "push", "remove", "split", "store", "swap", "take",
];

#[test]
fn memory_management_looks_downwards() {
    let files = rust();
    let lib = files.iter().find(|file| file.path == "guest/mm/src/lib.rs").expect("mm has a root");
    let layers = layers(&lib.text);
    assert!(layers.len() > 10, "the table of layers in guest/mm/src/lib.rs is gone");
    assert_none("layers of guest/mm", &climbs(&layers, &files));
}

/// Module to layer, from the rows of the table of `| layer | files |`; the lowest layer is 0.
fn layers(lib: &str) -> BTreeMap<&str, usize> {
    let table = lib.lines().skip_while(|line| !line.contains("| layer | files |")).skip(2);
    let mut layers = BTreeMap::new();
    for (layer, row) in table.take_while(|line| line.starts_with("//! |")).enumerate() {
        for name in row.split('`').skip(1).step_by(2) {
            layers.insert(name, layer);
        }
    }
    layers
}

/// Every import and every call of a method that leads to a higher layer.
fn climbs(layers: &BTreeMap<&str, usize>, files: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut known = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with(MM) && !file.is_test()) {
        let module = file.path[MM.len()..].split(['/', '.']).next().unwrap_or_default();
        if module == "lib" {
            continue;
        }
        match layers.get(module) {
            Some(&layer) => known.push((file, layer, file.production_code())),
            None => complaints.push(format!("{}: in no layer of the table in lib.rs", file.path)),
        }
    }
    // The lowest layer that defines each method, and the file that does.
    let mut methods: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (file, layer, code) in &known {
        for name in defined_methods(code) {
            let lowest = methods.entry(name).or_insert((*layer, &file.path));
            *lowest = (*lowest).min((*layer, &file.path));
        }
    }
    for (file, own, code) in &known {
        for import in code.split("crate::").skip(1) {
            let import = words(import).next().unwrap_or_default();
            if layers.get(import).is_some_and(|layer| layer > own) {
                complaints.push(format!("{}: imports {import} from a higher layer", file.path));
            }
        }
        let is_own = |name: &str| code.contains(&format!("fn {name}("));
        for name in called_methods(code).into_iter().filter(|name| !is_own(name)) {
            let higher = methods.get(name).filter(|(layer, _)| layer > own);
            if let Some((_, definer)) = higher.filter(|_| !NOT_TOLD_APART.contains(&name)) {
                complaints
                    .push(format!("{}: calls {name}, which {definer} defines in a higher layer", file.path));
            }
        }
    }
    complaints
}

/// The functions in `code` that take `self`.
fn defined_methods(code: &str) -> impl Iterator<Item = &str> {
    code.split("fn ").skip(1).filter_map(|function| {
        let name = words(function).next()?;
        let (_, parameters) = function.split_once('(')?;
        let first = parameters.split([',', ')', ':']).next()?;
        words(first).any(|word| word == "self").then_some(name)
    })
}

/// The names in `code` that are called as methods: of a value, of `Self` or of `Mm`.
fn called_methods(code: &str) -> BTreeSet<&str> {
    let after = |separator| code.split(separator).skip(1);
    let of_values = after(".");
    let of_types = after("Self::").chain(after("Mm::"));
    let called = of_values.chain(of_types).filter_map(|text| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        let (name, behind) = text.split_at(end);
        let is_called = behind.starts_with('(') || behind.starts_with("::<");
        (is_called && !name.is_empty()).then_some(name)
    });
    called.collect()
}

#[test]
fn both_ways_to_climb_are_seen() {
    let table = "//! | layer | files |\n//! |---|---|\n//! | low | `zone` |\n//! | high | [`boot`](X) |\n";
    let source = |path: &str, text: &str| Source { path: format!("{MM}{path}"), text: text.to_owned() };
    let boot = "impl<P> Mm<P> { pub fn grow<'a>(&'a mut self, by: u64) {} fn free(self) {} fn make() {} }";
    let climbs_of = |zone: &str, path: &str| {
        climbs(&layers(table), &[source("boot.rs", boot), source("lib.rs", ""), source(path, zone)])
    };
    for zone in ["fn f(&self) { self.grow(1); }", "fn f() { mm\n .grow(1) }", "fn f() { Mm::grow(m, 1) }"] {
        let expected =
            "guest/mm/src/zone.rs: calls grow, which guest/mm/src/boot.rs defines in a higher layer";
        assert_eq!(climbs_of(zone, "zone.rs"), [expected], "{zone}");
        assert_eq!(climbs_of(zone, "zone/deep.rs").len(), 1, "{zone}");
        assert!(climbs_of(zone, "boot/own.rs").is_empty(), "{zone}");
        assert!(climbs_of(zone, "zone/tests.rs").is_empty(), "{zone}");
    }
    for zone in [
        "// self.grow(1)\nfn f() { self.grow; x.make(); grow(1) }",
        "fn free(&self) { self.free() }",
        "fn make(x: u64) { Self::make(1) }",
        "#[cfg(test)]\nmod tests { fn f() { mm.grow(1) } }",
    ] {
        assert!(climbs_of(zone, "zone.rs").is_empty(), "{zone}");
    }
    let import = climbs_of("use crate::boot::Boot;", "zone.rs");
    assert_eq!(import, ["guest/mm/src/zone.rs: imports boot from a higher layer"]);
    assert_eq!(climbs_of("", "stray.rs"), ["guest/mm/src/stray.rs: in no layer of the table in lib.rs"]);
}
