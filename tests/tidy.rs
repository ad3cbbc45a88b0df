//! The house rules, as tests, so that a review need not repeat them.
//!
//! Here: which package depends on which, and which names the code of a folder never uses. The other rules are
//! in `tidy/`, a file per subject. `docs/STYLE.md` says what the rules are for. All rules read the sources as
//! text: they need no build, and they cover code that this host cannot run.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/claims.rs"]
mod claims;
#[path = "tidy/confined.rs"]
mod confined;
#[path = "tidy/crates.rs"]
mod crates;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/papers.rs"]
mod papers;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/text.rs"]
mod text;
#[path = "tidy/unsafe_code.rs"]
mod unsafe_code;

use std::fs;

use source::{root, rust, words};

/// Which packages of the repository a package may depend on.
const PACKAGES: &[(&str, &[&str])] = &[
    ("bench", &["tidevm-mm"]),
    ("examples/tiny-kernel", &["tidevm-mm", "virtio-mem"]),
    ("guest/abi", &[]),
    ("guest/firmware", &[]),
    ("guest/image", &["tidevm-abi"]),
    ("guest/linux-agent", &["tidevm-abi"]),
    // For its tests and examples.
    ("guest/mm", &["tidevm-mm-sim", "virtio-mem"]),
    ("guest/mm-sim", &["tidevm-mm"]),
    ("guest/kernel", &["tidevm-abi", "tidevm-firmware", "tidevm-mm", "virtio-mem"]),
    ("virtio-mem", &[]),
    ("vmm/autosize", &["tidevm-abi"]),
    ("vmm/machine", &["tidevm-abi", "tidevm-guest-image", "virtio-mem"]),
    ("vmm/events", &[]),
    ("vmm/report", &["tidevm-events"]),
    ("vmm/session", &["tidevm-abi", "tidevm-events", "tidevm-machine"]),
    (
        "vmm/lab",
        &[
            "tidevm-abi",
            "tidevm-autosize",
            "tidevm-events",
            "tidevm-machine",
            "tidevm-report",
            "tidevm-session",
            "tidevm-sizer",
        ],
    ),
    ("vmm/judge", &["tidevm-abi", "tidevm-api", "tidevm-lab", "tidevm-machine"]),
    ("vmm/sizer", &["tidevm-abi", "tidevm-autosize", "tidevm-machine"]),
    ("vmm/api", &["tidevm-abi", "tidevm-machine", "tidevm-sizer"]),
    (
        "vmm/cli",
        &[
            "tidevm-abi",
            "tidevm-api",
            "tidevm-events",
            "tidevm-judge",
            "tidevm-lab",
            "tidevm-machine",
            "tidevm-report",
            "tidevm-session",
            "tidevm-sizer",
        ],
    ),
    (
        "tests",
        &[
            "tidevm-abi",
            "tidevm-bench",
            "tidevm-guest-image",
            "tidevm-lab",
            "tidevm-machine",
            "tidevm-session",
            "tidevm-sizer",
        ],
    ),
    (
        "tests/fuzz",
        &[
            "tidevm-abi",
            "tidevm-api",
            "tidevm-machine",
            "tidevm-mm",
            "tidevm-mm-sim",
            "tidevm-session",
            "virtio-mem",
        ],
    ),
    ("tests/clients", &[]),
    (
        "tests/soak",
        &[
            "tidevm-abi",
            "tidevm-bench",
            "tidevm-machine",
            "tidevm-mm",
            "tidevm-mm-sim",
            "tidevm-session",
            "virtio-mem",
        ],
    ),
    ("xtask", &["tidevm-guest-image"]),
];

const OURS: &[&str] = &[
    "tidevm",
    "tidevm-abi",
    "tidevm-api",
    "tidevm-autosize",
    "tidevm-bench",
    "tidevm-events",
    "tidevm-firmware",
    "tidevm-fuzz",
    "tidevm-guest",
    "tidevm-guest-image",
    "tidevm-judge",
    "tidevm-lab",
    "tidevm-linux-agent",
    "tidevm-machine",
    "tidevm-mm",
    "tidevm-mm-sim",
    "tidevm-report",
    "tidevm-session",
    "tidevm-sizer",
    "tidevm-soak",
    "tidevm-tests",
    "tidevm-tiny-kernel",
    "virtio-mem",
    "xtask",
];

/// Crates from elsewhere that a package never depends on, and why.
const NEVER_DEPENDS: &[(&str, &[&str], &str)] = &[(
    "vmm/machine",
    &["anstream", "anstyle", "anyhow", "clap", "serde_json", "terminal_size"],
    "the VMM is a library: what people see and type belongs to session, lab and cli",
)];

/// Names that the production code below a path never uses, and why.
const NEVER: &[(&str, &str, &str)] = &[
    ("virtio-mem/src/device", "crate::driver", "the two ends meet in wire and blocks"),
    ("virtio-mem/src/driver", "crate::device", "the two ends meet in wire and blocks"),
    ("vmm/", "virtio_mem::driver", "the host has the device's end"),
    ("guest/kernel/", "virtio_mem::device", "the guest has the driver's end"),
    ("guest/abi/", "std::time", "the guest has no std"),
    ("guest/kernel/", "std::time", "the guest has no std"),
    ("guest/mm/", "std::time", "the guest has no std"),
    ("guest/mm/", "core::arch", "memory management knows no CPU; a platform does"),
    ("guest/mm/", "target_arch", "memory management knows no CPU; a platform does"),
    ("virtio-mem/", "std::", "runs in the guest"),
    ("vmm/session/src/session", "crate::table", "a session knows no way of being shown"),
    ("vmm/session/src/script", "crate::session", "the grammar knows no machine"),
];

/// Panics with all complaints unless there are none.
#[track_caller]
fn assert_none(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n  {}", complaints.join("\n  "));
}

#[test]
fn packages_depend_on_what_the_design_allows() {
    let mut complaints = Vec::new();
    for (folder, _) in PACKAGES {
        match fs::read_to_string(root().join(folder).join("Cargo.toml")) {
            Ok(manifest) => complaints.extend(wrong_dependencies(folder, &manifest)),
            Err(error) => complaints.push(format!("{folder}/Cargo.toml: {error}")),
        }
    }
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("a workspace");
    let unlisted = members(&workspace).filter(|member| PACKAGES.iter().all(|(folder, _)| folder != member));
    complaints.extend(unlisted.map(|member| format!("{member}: has no row in PACKAGES")));
    assert_none("dependencies that the design does not have", &complaints);
}

/// The dependencies in the manifest of the package in `folder` that the tables do not allow. A dependency may
/// have another name here than its package has (`cli = { package = "clap" }`); both count.
fn wrong_dependencies(folder: &str, manifest: &str) -> Vec<String> {
    let allowed = PACKAGES.iter().find(|(package, _)| *package == folder).map_or(&[][..], |row| row.1);
    let mut complaints = Vec::new();
    let mut depends = false;
    for line in manifest.lines().map(str::trim) {
        let table = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
        depends = table.map_or(depends, |table| table.ends_with("dependencies"));
        // `[dependencies.name]` names one as well.
        let name = match table {
            Some(table) => table.split_once("dependencies.").map_or("", |(_, name)| name),
            None if depends => line.split(['.', ' ', '=']).next().unwrap_or_default(),
            None => "",
        };
        for name in [Some(name), renamed_package(line)].into_iter().flatten() {
            if OURS.contains(&name) && !allowed.contains(&name) {
                complaints.push(format!("{folder}/Cargo.toml: {name}"));
            }
            for (package, never, why) in NEVER_DEPENDS {
                if *package == folder && never.contains(&name) {
                    complaints.push(format!("{folder}/Cargo.toml: {name}: {why}"));
                }
            }
        }
    }
    complaints
}

/// `NAME` of `package = "NAME"` in a line of a manifest, alone or in an inline table.
fn renamed_package(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("package")?;
    let is_key = before.is_empty() || before.ends_with([' ', '{', ',']);
    let value = after.trim_start().strip_prefix('=').filter(|_| is_key)?;
    value.trim_start().strip_prefix('"')?.split('"').next()
}

/// The folders of the packages of a workspace.
fn members(workspace: &str) -> impl Iterator<Item = &str> {
    let (_, list) = workspace.split_once("\nmembers = [").expect("a list of members");
    let (list, _) = list.split_once(']').expect("its end");
    list.split('"').skip(1).step_by(2)
}

#[test]
fn a_forbidden_dependency_is_found() {
    let manifest = "[package]\nname = \"clap\"\n[dependencies]\nlog = \"1\"\nvirtio-mem.workspace = true\n";
    assert!(wrong_dependencies("vmm/machine", manifest).is_empty());
    for (line, name) in [
        ("clap.workspace = true", "clap"),
        ("serde_json = { workspace = true }", "serde_json"),
        ("[dependencies.anyhow]", "anyhow"),
        ("[target.'cfg(unix)'.dependencies]\nterminal_size = \"1\"", "terminal_size"),
        ("[dev-dependencies]\ntidevm-mm.workspace = true", "tidevm-mm"),
        ("[build-dependencies]\ntidevm-session.workspace = true", "tidevm-session"),
        ("cli = { package = \"clap\", version = \"4\" }", "clap"),
        ("cli = {version=\"4\",package=\"clap\"}", "clap"),
        ("[dependencies.cli]\npackage = \"clap\"", "clap"),
    ] {
        let found = wrong_dependencies("vmm/machine", &format!("{manifest}{line}\n[lints]\nclap = 1\n"));
        assert_eq!(found.len(), 1, "{line}: {found:?}");
        assert!(found[0].starts_with(&format!("vmm/machine/Cargo.toml: {name}")), "{found:?}");
    }
    assert!(wrong_dependencies("vmm/cli", "[dependencies]\nclap.workspace = true").is_empty());
    assert_eq!(members("[workspace]\nmembers = [\"a\", \"b/c\"]\n").collect::<Vec<_>>(), ["a", "b/c"]);
}

/// Names of the machine's memory model. The model checkers see only accesses that go through `crate::sync`.
const MEMORY_MODEL: &[&str] = &["core::sync", "std::sync", "core::hint", "std::hint"];

#[test]
fn memory_management_has_one_door_to_atomics() {
    let mut complaints = Vec::new();
    for file in rust().iter().filter(|file| file.path.starts_with("guest/mm/src/") && !file.is_test()) {
        let is_door = file.path.starts_with("guest/mm/src/sync");
        for name in MEMORY_MODEL.iter().filter(|_| !is_door) {
            if file.production_code().contains(name) {
                complaints.push(format!("{}: {name}: take it from crate::sync", file.path));
            }
        }
    }
    assert_none("atomics that a model checker does not see", &complaints);
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
