//! The files of the repository, and Rust code without its comments and literals.
//!
//! Code is searched as text by most rules, so what looks like code inside a comment or a literal has to go first.
//! Rust's own lexical rules for that are few: nested block comments, raw strings, and `'` for characters and
//! lifetimes.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the repository.
pub struct Source {
    /// Path from the top of the repository, with `/` between the parts.
    pub path: String,
    pub text: String,
}

impl Source {
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether only tests and benchmarks use the file, or it is an example.
    pub fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests" | "benches" | "examples"))
            || matches!(self.name(), "tests.rs" | "fake.rs")
    }

    /// The code without comments, without literals, and only up to the first inline test module.
    pub fn production_code(&self) -> String {
        let code = code(&self.text);
        let end = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
        code[..end].to_owned()
    }
}

/// The top folder of the repository.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package lies in the repository").to_owned()
}

/// Every text file of the repository that is not generated, by path.
pub fn all() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(&root(), "", &mut sources);
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    sources
}

/// Every Rust file.
pub fn rust() -> Vec<Source> {
    all().into_iter().filter(|source| source.path.ends_with(".rs")).collect()
}

fn collect(folder: &Path, prefix: &str, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let entry = entry.expect("a readable entry");
        let name = entry.file_name().into_string().expect("file names are UTF-8");
        let path = format!("{prefix}{name}");
        // `target` is built. `.git` is a folder, or in a second worktree a file.
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type().expect("a file type").is_dir() {
            collect(&entry.path(), &format!("{path}/"), sources);
        } else if name != "Cargo.lock"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            sources.push(Source { path, text });
        }
    }
}

/// `text` with a space in place of each comment and literal. Line breaks stay, so lines keep their numbers.
pub fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let literal = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, &out) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        if literal > 0 {
            out.extend(rest[..literal].chars().filter(|&c| c == '\n'));
            out.push(' ');
            rest = &rest[literal..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// Length of the block comment at the start of `text`. Block comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        let step = match rest {
            _ if rest.starts_with("/*") => {
                depth += 1;
                2
            }
            _ if rest.starts_with("*/") => {
                depth -= 1;
                2
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of the raw string at the start of `text`; `None` if there is none, as when the `r` ends a word of
/// `before`.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    let hashes = text.strip_prefix('r')?;
    if before.ends_with(|c: char| c.is_alphanumeric() && c != 'b' || c == '_') {
        return None;
    }
    let body = hashes.trim_start_matches('#');
    let fence = &hashes[..hashes.len() - body.len()];
    let inside = body.strip_prefix('"')?;
    let end = inside.find(&format!("\"{fence}"))?;
    Some(1 + fence.len() + 1 + end + 1 + fence.len())
}

/// Length of the quoted text at the start of `text`.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of the character literal at the start of `text`; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => quoted(text, '\''),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

/// The identifiers and numbers of `code`.
pub fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

#[test]
fn comments_and_literals_are_no_code() {
    let text =
        "a // unsafe\n/* unsafe /* x */ */ b \"unsafe \\\" x\" 'c' '\\'' r#\"unsafe \" \"# br\"x\" 'life d";
    assert_eq!(words(&code(text)).collect::<Vec<_>>(), ["a", "b", "b", "life", "d"]);
    assert_eq!(code("a\n\"b\nc\"\nd").lines().count(), 4);
}
