//! The rules about the text of files: headers, length, names, leftovers, and paths of the author's machine.

use crate::assert_none;
use crate::source::{Source, all, rust, words};

/// Most lines of a file, its tests left out.
const MAX_LINES: usize = 400;

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

/// The Rust files of `sources` whose first line does not say what the file is.
fn without_header(sources: &[Source]) -> Vec<String> {
    let says_nothing = |text: &str| {
        let first = text.lines().next().unwrap_or_default();
        first.strip_prefix("//!").is_none_or(|header| header.trim().is_empty())
    };
    let rust = sources.iter().filter(|file| file.path.ends_with(".rs"));
    rust.filter(|file| says_nothing(&file.text)).map(|file| file.path.clone()).collect()
}

#[test]
fn every_file_begins_with_a_header() {
    assert_none("a `//!` header has to say what the file is", &without_header(&rust()));
}

#[test]
fn a_file_without_a_header_is_found() {
    let file = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let files = [
        file("good.rs", "//! What it is.\n\nuse std::fs;\n"),
        file("late.rs", "use std::fs;\n//! What it is.\n"),
        file("item.rs", "/// What the first item is.\nfn main() {}\n"),
        file("blank.rs", "//!\nfn main() {}\n"),
        file("empty.rs", ""),
        file("paper.md", "# No code\n"),
    ];
    assert_eq!(without_header(&files), ["late.rs", "item.rs", "blank.rs", "empty.rs"]);
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
    // Written in halves, so that this file does not contain the words that it looks for.
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
            // Only where a path starts: the middle of `a/root/b` is no absolute path.
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
