//! The house rules, as tests: what a review would otherwise have to repeat.

#[path = "tidy/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};

use source::{Source, all, code, root, rust, words};

/// Most lines of a file, its tests left out.
const MAX_LINES: usize = 400;

/// Which packages of the repository a package may depend on.
const PACKAGES: &[(&str, &[&str])] = &[
    ("bench", &["tidevm-mm"]),
    ("guest/abi", &[]),
    ("guest/image", &[]),
    // Itself with its `sim` feature, for its tests.
    ("guest/mm", &["tidevm-mm"]),
    ("guest/kernel", &["tidevm-abi", "tidevm-mm", "virtio-mem"]),
    ("virtio-mem", &[]),
    ("vmm/machine", &["tidevm-abi", "tidevm-guest-image", "virtio-mem"]),
    ("vmm/session", &["tidevm-abi", "tidevm-machine"]),
    ("vmm/lab", &["tidevm-abi", "tidevm-machine", "tidevm-session"]),
    ("vmm/cli", &["tidevm-abi", "tidevm-lab", "tidevm-machine", "tidevm-session"]),
    ("tests", &["tidevm-abi", "tidevm-bench", "tidevm-lab", "tidevm-machine", "tidevm-session"]),
    ("xtask", &["tidevm-guest-image"]),
];

const OURS: &[&str] = &[
    "tidevm",
    "tidevm-abi",
    "tidevm-bench",
    "tidevm-guest",
    "tidevm-guest-image",
    "tidevm-lab",
    "tidevm-machine",
    "tidevm-mm",
    "tidevm-session",
    "tidevm-tests",
    "virtio-mem",
    "xtask",
];

/// What production code of a place never names, and why.
const NEVER: &[(&str, &str, &str)] = &[
    ("virtio-mem/src/device", "crate::driver", "the two ends meet in wire and blocks"),
    ("virtio-mem/src/driver", "crate::device", "the two ends meet in wire and blocks"),
    ("vmm/", "virtio_mem::driver", "the host has the device's end"),
    ("guest/kernel/", "virtio_mem::device", "the guest has the driver's end"),
    ("guest/", "std::time", "the guest has no std"),
    ("guest/mm/", "core::arch", "memory management knows no CPU; a platform does"),
    ("guest/mm/", "target_arch", "memory management knows no CPU; a platform does"),
    ("virtio-mem/", "std::", "runs in the guest"),
    ("vmm/session/src/session", "crate::table", "a session knows no way of being shown"),
    ("vmm/session/src/script", "crate::session", "the grammar knows no machine"),
];

/// Panics with every complaint, if there is one.
#[track_caller]
fn assert_none(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n  {}", complaints.join("\n  "));
}

#[test]
fn packages_depend_on_what_the_design_allows() {
    let mut complaints = Vec::new();
    for (folder, allowed) in PACKAGES {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let depends = manifest.lines().skip_while(|line| !line.contains("dependencies]"));
        for line in depends {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if OURS.contains(&name) && !allowed.contains(&name) {
                complaints.push(format!("{folder}/Cargo.toml: {name}"));
            }
        }
    }
    assert_none("dependencies that the design does not have", &complaints);
}

#[test]
fn code_names_nothing_beyond_its_room() {
    let mut complaints = Vec::new();
    for file in rust().iter().filter(|file| !file.is_test()) {
        let code = file.production_code();
        for (place, never, why) in NEVER {
            if file.path.starts_with(place) && code.contains(never) {
                complaints.push(format!("{}: {never}: {why}", file.path));
            }
        }
        let may_anyhow = file.path == "vmm/cli/src/main.rs" || file.path.starts_with("xtask/");
        if !may_anyhow && words(&code).any(|word| word == "anyhow") {
            complaints.push(format!("{}: anyhow: errors of a library have types", file.path));
        }
    }
    assert_none("imports against the design", &complaints);
}

/// The layers are those of the table in `guest/mm/src/lib.rs`.
#[test]
fn memory_management_imports_downwards() {
    let files = rust();
    let lib = files.iter().find(|file| file.path == "guest/mm/src/lib.rs").expect("mm has a root");
    let layers = layers(&lib.text);
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.path.starts_with("guest/mm/src/") && !file.is_test()) {
        let module = file.path["guest/mm/src/".len()..].split(['/', '.']).next().unwrap_or_default();
        if module == "lib" {
            continue;
        }
        let Some(own) = layers.get(module) else {
            complaints.push(format!("{}: in no layer of the table in lib.rs", file.path));
            continue;
        };
        for import in file.production_code().split("crate::").skip(1) {
            let import = words(import).next().unwrap_or_default();
            if layers.get(import).is_some_and(|layer| layer > own) {
                complaints.push(format!("{}: imports {import} from a higher layer", file.path));
            }
        }
    }
    assert_none("layers of guest/mm", &complaints);
}

/// Module to layer, from the rows of the table of `| layer | files |`.
fn layers(lib: &str) -> BTreeMap<&str, usize> {
    let table = lib.lines().skip_while(|line| !line.contains("| layer | files |")).skip(2);
    let mut layers = BTreeMap::new();
    for (layer, row) in table.take_while(|line| line.starts_with("//! |")).enumerate() {
        for name in row.split('`').skip(1).step_by(2) {
            layers.insert(name, layer);
        }
    }
    assert!(layers.len() > 10, "the table of layers in guest/mm/src/lib.rs is gone");
    layers
}

#[test]
fn unsafe_code_lives_where_it_is_announced() {
    const ANNOUNCEMENT: &str = "#![expect(unsafe_code, reason =";
    let mut complaints = Vec::new();
    let files = rust();
    // What a file announces holds for its tests.
    let announces =
        |path: &str| files.iter().any(|file| file.path == path && file.text.contains(ANNOUNCEMENT));
    for file in &files {
        let opens = words(&code(&file.text)).any(|word| word == "unsafe");
        let tested = file.path.strip_suffix("/tests.rs").map(|module| format!("{module}.rs"));
        let announced = announces(&file.path) || tested.is_some_and(|path| announces(&path));
        if opens && !announced {
            complaints.push(format!("{}: unsafe without #![expect(unsafe_code, reason = ...)]", file.path));
        }
        let never = file.path.starts_with("virtio-mem/") || file.path.starts_with("guest/abi/");
        if opens && never {
            complaints.push(format!("{}: unsafe where there is none", file.path));
        }
    }
    assert_none("unsafe code", &complaints);
}

#[test]
fn every_file_is_reached_from_a_root() {
    let files: BTreeMap<String, Source> = rust().into_iter().map(|file| (file.path.clone(), file)).collect();
    let mut reached = BTreeSet::new();
    let mut open: Vec<String> = files.keys().filter(|path| is_root(path)).cloned().collect();
    while let Some(path) = open.pop() {
        if let Some(file) = files.get(&path).filter(|_| reached.insert(path.clone())) {
            open.extend(modules(file, |path| files.contains_key(path)));
        }
    }
    let dead: Vec<String> = files.into_keys().filter(|path| !reached.contains(path)).collect();
    assert_none("files that no crate contains", &dead);
}

/// Crate roots by cargo's conventions; this package names its own in its manifest.
fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        [.., "src", "lib.rs" | "main.rs"] | [.., "src", "bin", _] | [.., "build.rs"] => true,
        ["tests", "linux.rs" | "qemu.rs" | "sessions.rs" | "tidy.rs"] => true,
        ["tests", "benches", _] => true,
        [_, .., "tests" | "benches" | "examples", file] => !file.is_empty() && parts[0] != "tests",
        [.., "tests" | "benches", _, "main.rs"] => true,
        _ => false,
    }
}

/// Where the modules that `file` declares may lie, as far as there is such a file.
fn modules(file: &Source, exists: impl Fn(&str) -> bool) -> Vec<String> {
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
            explicit = path.split('"').next().map(|path| format!("{folder}/{path}"));
            continue;
        }
        let declaration =
            line.rsplit_once("mod ").filter(|(before, _)| before.is_empty() || before.ends_with(' '));
        if let Some(module) = declaration.and_then(|(_, module)| module.strip_suffix(';')) {
            let usual = [format!("{own}/{module}.rs"), format!("{own}/{module}/mod.rs")];
            found.extend(explicit.take().into_iter().chain(usual).filter(|path| exists(path)));
        }
    }
    found
}

#[test]
fn files_stay_small() {
    let mut complaints = Vec::new();
    for file in rust().iter().filter(|file| !file.is_test()) {
        let end = file.text.find("#[cfg(test)]\nmod tests {").unwrap_or(file.text.len());
        let lines = file.text[..end].lines().count();
        if lines > MAX_LINES {
            complaints.push(format!("{}: {lines} lines, {MAX_LINES} are the most", file.path));
        }
    }
    assert_none("too long to be read at once", &complaints);
}

#[test]
fn files_are_named_for_what_they_are() {
    let banned = ["utils", "util", "common", "helpers", "helper", "manager", "misc", "types"];
    let named = |file: &Source| {
        let stem = file.path.trim_end_matches(".rs");
        stem.split('/').any(|part| banned.contains(&part))
    };
    let complaints: Vec<_> = rust().into_iter().filter(named).map(|file| file.path).collect();
    assert_none("names that say nothing", &complaints);
}

#[test]
fn nothing_unfinished_is_left() {
    // Written in halves, or this file would be one of its own findings.
    let markers = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["HA", "CK"]].map(|halves| halves.concat());
    let calls = [["dbg", "!("], ["todo", "!("], ["unimplemented", "!("]].map(|halves| halves.concat());
    let mut complaints = Vec::new();
    for file in all() {
        for (number, line) in file.text.lines().enumerate() {
            let marker = markers.iter().find(|marker| words(line).any(|word| word == marker.as_str()));
            let call = calls.iter().find(|call| line.contains(call.as_str()));
            if let Some(found) = marker.or(call) {
                complaints.push(format!("{}:{}: {found}", file.path, number + 1));
            }
        }
    }
    assert_none("leftovers", &complaints);
}

#[test]
fn no_path_of_anybodys_machine() {
    let homes = ["/wo", "/ho", "/ro", "/Us"].into_iter().zip(["rk/", "me/", "ot/", "ers/"]);
    let homes: Vec<String> = homes.map(|(start, end)| format!("{start}{end}")).collect();
    let mut complaints = Vec::new();
    for file in all() {
        for (number, line) in file.text.lines().enumerate() {
            // Only where a path starts: `a/root/b` is somebody's own.
            let starts = |home: &String| {
                line.match_indices(home.as_str()).any(|(at, _)| {
                    !line[..at]
                        .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '}' | '/'))
                })
            };
            if let Some(home) = homes.iter().find(|home| starts(home)) {
                complaints.push(format!("{}:{}: {home}", file.path, number + 1));
            }
        }
    }
    assert_none("absolute paths", &complaints);
}

#[test]
fn comments_and_literals_are_no_code() {
    let text =
        "a // unsafe\n/* unsafe /* x */ */ b \"unsafe \\\" x\" 'c' '\\'' r#\"unsafe \" \"# br\"x\" 'life d";
    assert_eq!(words(&code(text)).collect::<Vec<_>>(), ["a", "b", "b", "life", "d"]);
    assert_eq!(code("a\n\"b\nc\"\nd").lines().count(), 4);
}
