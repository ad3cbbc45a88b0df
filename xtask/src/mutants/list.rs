//! The lists of mutants, `tests/mutants/*.toml`.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tidevm_guest_image::workspace_root;

/// The mutants of one package.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The name of its file, without `.toml`.
    #[serde(skip)]
    pub name: String,
    /// The package whose hosted tests judge.
    pub package: String,
    /// The folder of its sources, relative to the repository. It contains `lib.rs`.
    pub sources: String,
    /// Its test programs, in the order in which they run: `lib` for the unit tests, otherwise the name of the test.
    pub suites: Vec<String>,
    /// Features of the package and the profile with which they are built: a model checker needs both.
    #[serde(default)]
    pub features: Vec<String>,
    pub profile: Option<String>,
    /// Arguments of every test program.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Seconds after which a run of one test program counts as hanging. On a slow host it is ten times as long as the run
    /// without a mutant.
    pub limit: u64,
    /// Changes that the switches need and that do not alter behaviour, such as a `const fn` that becomes a `fn`.
    #[serde(default, rename = "edit")]
    pub edits: Vec<Edit>,
    /// The mutants.
    #[serde(default, rename = "mutant")]
    pub mutants: Vec<Mutant>,
}

/// A change of the code that does not alter behaviour.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Below the sources.
    pub file: String,
    pub find: String,
    pub replace: String,
}

/// A mistake.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// What the mistake is, as a phrase. Names one mutant of all lists.
    pub name: String,
    /// Below the sources.
    pub file: String,
    /// The text that is replaced. It occurs exactly once, unless `at` says which one is meant.
    pub find: String,
    /// The text in its place. If it contains `MUTANT`, that is a condition which is true in this mutant, and the text
    /// stands there in every mutant. Otherwise an `if` chooses between the two texts.
    pub replace: String,
    /// Which occurrence is meant, counted from 0.
    pub at: Option<usize>,
    /// Why no test needs to notice it.
    pub lives: Option<String>,
}

impl List {
    /// The file of a mutant, relative to the repository.
    pub fn file(&self, mutant: &Mutant) -> String {
        format!("{}/{}", self.sources, mutant.file)
    }

    /// Whether `path` means this mutant: it is the beginning of the mutant's file, or the name of the list.
    pub fn is_meant(&self, mutant: &Mutant, path: &str) -> bool {
        self.name == path || self.file(mutant).starts_with(path)
    }
}

/// The number that selects the mutant at `index` of its list. 0 selects none.
pub fn number(index: usize) -> usize {
    index + 1
}

/// All lists, by the names of their files.
pub fn read_all() -> Result<Vec<List>> {
    let folder = workspace_root().join("tests/mutants");
    let mut files: Vec<_> = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut lists: Vec<List> = Vec::new();
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let mut list: List = toml::from_str(&text).with_context(|| file.display().to_string())?;
        list.name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for mutant in &list.mutants {
            if !names.insert(mutant.name.clone()) {
                bail!("{}: two mutants are called {:?}", file.display(), mutant.name);
            }
        }
        lists.push(list);
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::List;

    #[test]
    fn a_path_is_a_folder_a_file_or_a_list() {
        let text = r#"
            package = "p"
            sources = "p/src"
            suites = ["lib"]
            limit = 1
            [[mutant]]
            name = "m"
            file = "a.rs"
            find = "x"
            replace = "y"
        "#;
        let list = List { name: "p-lists".to_owned(), ..toml::from_str(text).unwrap() };
        let meant = ["", "p/", "p/src/a.rs", "p-lists"];
        let others = ["q", "p/src/b.rs", "p-list", "p-lists-2"];
        let is_meant = |path: &&str| list.is_meant(&list.mutants[0], path);
        assert!(meant.iter().all(is_meant) && !others.iter().any(is_meant));
    }
}
