//! The rule about identifiers of claims: they stand only where the reader is told where their list is.
//!
//! S4.16 is a row of `docs/features.toml`, and D3 is a row of the tables in `virtio-mem/tests/conformance`. A file
//! with such an identifier names the list, or a file of a module around it does.

use std::collections::BTreeSet;

use crate::assert_none;
use crate::crates::{Crate, crates};
use crate::source::{Source, rust, words};

/// Whether a text has an identifier.
type HasOne = fn(&str) -> bool;

/// The kinds of identifiers, and how a file names their list.
const LISTS: [(HasOne, &str); 2] = [(names_a_claim, "features.toml"), (names_a_requirement, "conformance")];

/// Whether `text` has an identifier such as S4.16.
fn names_a_claim(text: &str) -> bool {
    let is_number = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    text.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.')))
        .filter_map(|word| word.strip_prefix('S')?.split_once('.'))
        .any(|(mechanism, row)| mechanism.len() == 1 && is_number(mechanism) && is_number(row))
}

/// Whether `text` has an identifier such as D3.
fn names_a_requirement(text: &str) -> bool {
    let is_number = |rest: &str| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit());
    words(text).any(|word| word.strip_prefix('D').is_some_and(is_number))
}

/// The files of `one` with an identifier whose list neither they nor the modules around them name.
fn unexplained(one: &Crate<'_>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (module, file) in &one.files {
        for (has_one, list) in LISTS {
            let names_list =
                |depth| one.files.get(&module[..depth]).is_some_and(|file| file.text.contains(list));
            if has_one(&file.text) && !(0..=module.len()).any(names_list) {
                complaints.push(format!("{}: does not say that the list is in {list}", file.path));
            }
        }
    }
    complaints
}

#[test]
fn identifiers_of_claims_lead_to_their_list() {
    let files = rust();
    let found: BTreeSet<String> = crates(&files).iter().flat_map(unexplained).collect();
    assert_none("identifiers without a list", &found.into_iter().collect::<Vec<_>>());
}

#[test]
fn an_identifier_without_a_list_is_found() {
    let source = |path: &str, text: &str| Source { path: format!("x/src/{path}"), text: text.to_owned() };
    let unexplained_in = |root: &str, text: &str| {
        let files = [source("lib.rs", &format!("{root}\nmod a;")), source("a.rs", text)];
        crates(&files).iter().flat_map(unexplained).collect::<Vec<_>>()
    };
    // In two halves, so that this file has none.
    for (text, list) in [(["//! S", "4.16."], "features.toml"), (["/// (D", "3)"], "conformance")] {
        let text = text.concat();
        assert_eq!(
            unexplained_in("", &text),
            [format!("x/src/a.rs: does not say that the list is in {list}")]
        );
        assert!(unexplained_in("", &format!("//! The list is in {list}.\n{text}")).is_empty(), "{text}");
        assert!(unexplained_in(&format!("//! The list is in {list}."), &text).is_empty(), "{text}");
    }
    assert!(unexplained_in("", "S3 Size4.5 S.4 DMA32 D S12.x 0xD3").is_empty());
}
