//! A copy of the repository with all mutants of a list built in, each behind a switch.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tidevm_guest_image::workspace_root;

use super::list::{List, Mutant, number};

/// The switch. A package without `std` has it too, because its tests run hosted.
const SWITCH: &str = r#"
/// Whether the mutant of this number is selected.
#[doc(hidden)]
pub fn mutant(number: usize) -> bool {
    extern crate std as hosted;
    static SELECTED: hosted::sync::OnceLock<usize> = hosted::sync::OnceLock::new();
    let selected = || hosted::env::var("TIDEVM_MUTANT").ok().and_then(|number| number.parse().ok());
    *SELECTED.get_or_init(|| selected().unwrap_or(0)) == number
}
"#;

/// Makes the copy and gives its folder. Unchanged files keep their times, so that cargo rebuilds only what
/// changed.
pub fn with_mutants(list: &List) -> Result<PathBuf> {
    let root = workspace_root();
    let tree = root.join("target/mutants").join(&list.package);
    let mut changed = changed_files(list)?;
    let files = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    let names = String::from_utf8(files.stdout)?;
    let names: BTreeSet<&str> = names.split_terminator('\0').collect();
    if tree.exists() {
        remove_others(&tree, &tree, &names)?;
    }
    for &name in &names {
        let content = match changed.remove(name) {
            Some(text) => text.into_bytes(),
            // A file may have been deleted and not committed.
            None if !root.join(name).is_file() => continue,
            None => fs::read(root.join(name))?,
        };
        write(&tree.join(name), &content)?;
    }
    Ok(tree)
}

/// Removes the files below `folder` of the copy `tree` that are not among `names`. What was built stays.
fn remove_others(tree: &Path, folder: &Path, names: &BTreeSet<&str>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.strip_prefix(tree)?.to_str().unwrap_or_default();
        if path.is_dir() {
            if name != "target" {
                remove_others(tree, &path, names)?;
            }
        } else if !names.contains(name) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// A replacement of a part of a file.
struct Change {
    start: usize,
    end: usize,
    text: String,
}

/// A part of a file in which mutants stand.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    start: usize,
    end: usize,
}

/// The changed files by their names relative to the repository.
pub fn changed_files(list: &List) -> Result<BTreeMap<String, String>> {
    let root = workspace_root();
    let mut originals = BTreeMap::new();
    let mut changes: BTreeMap<String, Vec<Change>> = BTreeMap::new();
    // The mutants of one place are one chain of conditions.
    let mut places: BTreeMap<Place, Vec<(usize, &Mutant)>> = BTreeMap::new();
    let original = |file: &str, originals: &mut BTreeMap<String, String>| -> Result<String> {
        if let Some(text) = originals.get(file) {
            return Ok(String::clone(text));
        }
        let text = fs::read_to_string(root.join(file)).with_context(|| file.to_owned())?;
        originals.insert(file.to_owned(), text.clone());
        Ok(text)
    };
    for edit in &list.edits {
        let file = format!("{}/{}", list.sources, edit.file);
        let start =
            find(&original(&file, &mut originals)?, &edit.find, None).with_context(|| file.clone())?;
        let (end, text) = (start + edit.find.len(), edit.replace.clone());
        changes.entry(file).or_default().push(Change { start, end, text });
    }
    for (index, mutant) in list.mutants.iter().enumerate() {
        let file = list.file(mutant);
        let text = original(&file, &mut originals)?;
        let start = find(&text, &mutant.find, mutant.at)
            .with_context(|| format!("the mutant {:?} of {file}", mutant.name))?;
        let place = Place { file, start, end: start + mutant.find.len() };
        places.entry(place).or_default().push((number(index), mutant));
    }
    for (Place { file, start, end }, mutants) in places {
        let text = switched(&mutants)?;
        changes.entry(file).or_default().push(Change { start, end, text });
    }
    let lib = format!("{}/lib.rs", list.sources);
    let text = original(&lib, &mut originals)?;
    changes.entry(lib).or_default().push(Change {
        start: text.len(),
        end: text.len(),
        text: SWITCH.to_owned(),
    });
    changes
        .into_iter()
        .map(|(file, changes)| Ok((file.clone(), apply(&file, &originals[&file], changes)?)))
        .collect()
}

/// Where `find` is in `text`.
fn find(text: &str, find: &str, at: Option<usize>) -> Result<usize> {
    let found: Vec<usize> = text.match_indices(find).map(|(start, _)| start).collect();
    match (at, &found[..]) {
        (None, [start]) => Ok(*start),
        (Some(at), found) if at < found.len() => Ok(found[at]),
        _ => bail!("the text to replace occurs {} times: {find:?}", found.len()),
    }
}

/// The text at a place with mutants.
fn switched(mutants: &[(usize, &Mutant)]) -> Result<String> {
    let condition = |number: usize| format!("crate::mutant({number})");
    let find = &mutants[0].1.find;
    if let Some((number, mutant)) = mutants.iter().find(|(_, mutant)| mutant.replace.contains("MUTANT")) {
        if mutants.len() > 1 {
            bail!("{:?} uses MUTANT, and its text is also that of another mutant", mutant.name);
        }
        return Ok(mutant.replace.replace("MUTANT", &condition(*number)));
    }
    let mut text = String::new();
    for (number, mutant) in mutants {
        text += &format!("if {} {{ {} }} else ", condition(*number), mutant.replace);
    }
    text += &format!("{{ {find} }}");
    // A statement stands alone; an expression may be part of a larger one.
    let is_statement = find.trim_end().ends_with([';', '}']);
    Ok(if is_statement { text } else { format!("({text})") })
}

fn apply(file: &str, text: &str, mut changes: Vec<Change>) -> Result<String> {
    changes.sort_by_key(|change| change.start);
    let mut result = String::new();
    let mut done = 0;
    for Change { start, end, text: new } in changes {
        if start < done {
            bail!("{file}: two mutants overlap at {:?}", &text[start..done]);
        }
        result += &text[done..start];
        result += &new;
        done = end;
    }
    result += &text[done..];
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::super::list::Mutant;
    use super::{Change, apply, find, switched};

    fn mutant(find: &str, replace: &str) -> Mutant {
        let (name, file) = (String::new(), String::new());
        Mutant { name, file, find: find.into(), replace: replace.into(), at: None, lives: None }
    }

    #[test]
    fn an_expression_becomes_a_choice() {
        let (one, two) = (mutant("a < b", "a <= b"), mutant("a < b", "true"));
        assert_eq!(
            switched(&[(4, &one), (5, &two)]).unwrap(),
            "(if crate::mutant(4) { a <= b } else if crate::mutant(5) { true } else { a < b })"
        );
        let statement = mutant("f();", "");
        assert_eq!(switched(&[(1, &statement)]).unwrap(), "if crate::mutant(1) {  } else { f(); }");
    }

    #[test]
    fn a_condition_can_be_part_of_the_text() {
        let own = mutant("f(x);", "f(x ^ u32::from(MUTANT));");
        assert_eq!(switched(&[(2, &own)]).unwrap(), "f(x ^ u32::from(crate::mutant(2)));");
        let other = mutant("f(x);", "");
        assert!(switched(&[(2, &own), (3, &other)]).is_err());
    }

    #[test]
    fn a_list_that_has_fallen_behind_the_code_is_an_error() {
        assert_eq!(find("ab ab", "b", Some(1)).unwrap(), 4);
        assert_eq!(find("ab", "b", None).unwrap(), 1);
        for (text, at) in [("ab ab", None), ("xy", None), ("ab ab", Some(2))] {
            assert!(find(text, "ab", at).is_err(), "{text} {at:?}");
        }
    }

    #[test]
    fn changes_do_not_overlap() {
        let change = |start, end| Change { start, end, text: "-".to_owned() };
        assert_eq!(apply("", "abcdef", vec![change(3, 4), change(0, 1)]).unwrap(), "-bc-ef");
        assert!(apply("", "abcdef", vec![change(0, 3), change(2, 4)]).is_err());
    }
}
