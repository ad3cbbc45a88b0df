//! A line of text as words with their columns, and the values that single words stand for.
//!
//! Errors say what was expected at which column; columns count characters from 1, as editors do. Word lists
//! (zones, comparisons, policies of the command line, ...) are [`Table`]s that parsing and printing share, so
//! that the two cannot drift apart.

use alloc::format;
use alloc::string::String;
use alloc::vec::{self, Vec};
use core::fmt;
use core::time::Duration;

use crate::duration::{is_unit_of_time, parse_duration};
use crate::{Name, Size};

/// Most characters of a wrong word that an error shows.
const SHOWN: usize = 64;

/// Most characters of a text in quotes or of a pattern.
const MAX_QUOTED: usize = 200;

/// Why a line is not a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for SyntaxError {}

/// Words and the values that they stand for. Of several words for one value, the first is the one that is
/// written.
pub type Table<T> = &'static [(&'static str, T)];

/// The word for `value`. Every value of an enum is in its table; the round-trip tests walk them all.
#[must_use]
pub fn word_for<T: PartialEq>(table: Table<T>, value: &T) -> &'static str {
    table.iter().find(|(_, entry)| entry == value).map_or("?", |(word, _)| word)
}

/// The value that `word` stands for.
#[must_use]
pub fn value_of<T: Copy>(table: Table<T>, word: &str) -> Option<T> {
    table.iter().find(|(entry, _)| *entry == word).map(|(_, value)| *value)
}

/// `a, b, c`.
pub(crate) fn list(words: impl Iterator<Item = &'static str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// A word and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Word<'t> {
    /// Column of its first character, in characters from 1.
    pub column: usize,
    /// The word.
    pub text: &'t str,
}

impl Word<'_> {
    /// The error of a line that has this word where `expected` should be.
    #[must_use]
    pub fn error(&self, expected: &str) -> SyntaxError {
        let (shown, rest) = match self.text.char_indices().nth(SHOWN) {
            Some((end, _)) => (&self.text[..end], "..."),
            None => (self.text, ""),
        };
        let found = shown.escape_debug();
        SyntaxError { column: self.column, message: format!("expected {expected}, found `{found}{rest}`") }
    }
}

/// The words of one line that have not been read yet.
#[derive(Clone, Debug)]
pub struct Words<'t> {
    words: vec::IntoIter<Word<'t>>,
    end: usize,
}

/// What belongs together in one word: text, a comparison, a brace alone, or what stands in quotes or between slashes,
/// with them.
#[derive(PartialEq, Eq)]
enum Class {
    Space,
    Comment,
    Comparison,
    Brace,
    Quote,
    Pattern,
    Text,
}

/// A text that a table shows: neither empty nor long, and without control characters.
fn shown(text: &str) -> Option<String> {
    let fits = !text.trim().is_empty() && text.chars().count() <= MAX_QUOTED;
    (fits && !text.contains(char::is_control)).then(|| text.into())
}

fn class(c: char) -> Class {
    match c {
        _ if c.is_whitespace() => Class::Space,
        '#' => Class::Comment,
        '"' => Class::Quote,
        '=' | '!' | '<' | '>' => Class::Comparison,
        '{' | '}' => Class::Brace,
        _ => Class::Text,
    }
}

/// Bytes of the pattern at the start of `text`, which begins with a slash: up to the next slash that no backslash
/// escapes.
fn pattern_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    let ends = |(_, c): &(usize, char)| {
        let end = *c == '/' && !escaped;
        escaped = *c == '\\' && !escaped;
        end
    };
    text.char_indices().skip(1).find(ends).map(|(slash, _)| slash + 1)
}

impl<'t> Words<'t> {
    /// Splits `line`, without its comment.
    #[must_use]
    pub fn new(line: &'t str) -> Self {
        let mut words = Vec::new();
        let (mut rest, mut column, mut end) = (line, 1, 1);
        while let Some(first) = rest.chars().next() {
            // Within a word, a slash is as good as a letter.
            let kind = if first == '/' { Class::Pattern } else { class(first) };
            let same = |c: char| class(c) == kind;
            let length = match kind {
                Class::Comment => break,
                Class::Brace => 1,
                // Up to the second quote. Without one, the word is no text in quotes.
                Class::Quote => rest[1..].find('"').map_or(rest.len(), |second| second + 2),
                Class::Pattern => pattern_length(rest).unwrap_or(rest.len()),
                _ => rest.find(|c| !same(c)).unwrap_or(rest.len()),
            };
            let (text, tail) = rest.split_at(length);
            let start = column;
            column += text.chars().count();
            if kind != Class::Space {
                words.push(Word { column: start, text });
                end = column;
            }
            rest = tail;
        }
        Self { words: words.into_iter(), end }
    }

    /// The next word, which stays.
    #[must_use]
    pub fn peek(&self) -> Option<Word<'t>> {
        self.words.as_slice().first().copied()
    }

    /// Takes the next word; without one, an error that says what was expected.
    ///
    /// # Errors
    /// At the end of the line.
    pub fn next(&mut self, expected: &str) -> Result<Word<'t>, SyntaxError> {
        self.words.next().ok_or_else(|| SyntaxError {
            column: self.end,
            message: format!("expected {expected}, found the end of the line"),
        })
    }

    /// Takes the next word if it is `text`.
    pub(crate) fn take(&mut self, text: &str) -> bool {
        let found = self.peek().is_some_and(|word| word.text == text);
        if found {
            self.words.next();
        }
        found
    }

    /// Takes the next word, which has to be `text`.
    pub(crate) fn keyword(&mut self, text: &str) -> Result<(), SyntaxError> {
        self.plural(text, text)
    }

    /// Takes the next word, which has to be `many`, or `one` of them. The number before it says which is
    /// right, and either is accepted.
    pub(crate) fn plural(&mut self, one: &str, many: &str) -> Result<(), SyntaxError> {
        let expected = format!("`{many}`");
        let word = self.next(&expected)?;
        if word.text == one || word.text == many { Ok(()) } else { Err(word.error(&expected)) }
    }

    /// The next word as `read` takes it.
    pub(crate) fn value<T>(
        &mut self,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SyntaxError> {
        let word = self.next(expected)?;
        read(word.text).ok_or_else(|| word.error(expected))
    }

    /// One of the words of `table`.
    pub(crate) fn one_of<T: Copy>(&mut self, what: &str, table: Table<T>) -> Result<T, SyntaxError> {
        let expected = format!("{what} ({})", list(table.iter().map(|(word, _)| *word)));
        self.value(&expected, |word| value_of(table, word))
    }

    /// The next word as `read` takes it. A number may have its unit as a word of its own, if `is_unit` says so:
    /// `read` gets both as one.
    fn measure<T>(
        &mut self,
        expected: &str,
        is_unit: fn(&str) -> bool,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SyntaxError> {
        let word = self.next(expected)?;
        let bare = word.text.chars().all(|c| c.is_ascii_digit());
        let unit = self.peek().filter(|unit| bare && is_unit(unit.text));
        let value = match unit {
            None => read(word.text),
            Some(unit) => {
                self.words.next();
                read(&format!("{}{}", word.text, unit.text))
            }
        };
        value.ok_or_else(|| word.error(expected))
    }

    /// A size that `fits`: with its unit as `2G`, `2 G`, or in pages.
    pub(crate) fn size(
        &mut self,
        expected: &str,
        fits: impl FnOnce(&Size) -> bool,
    ) -> Result<Size, SyntaxError> {
        self.measure(expected, Size::is_unit, |text| Size::with_unit(text).filter(fits))
    }

    /// A duration, of 0 or more.
    pub(crate) fn duration(&mut self) -> Result<Duration, SyntaxError> {
        self.duration_that("a duration such as 200ms, 5s or 2m", |_| true)
    }

    /// A duration that `fits`.
    pub(crate) fn duration_that(
        &mut self,
        expected: &str,
        fits: impl FnOnce(&Duration) -> bool,
    ) -> Result<Duration, SyntaxError> {
        self.measure(expected, is_unit_of_time, |text| parse_duration(text).filter(fits))
    }

    /// A whole number, at least 1.
    pub(crate) fn count(&mut self, what: &str) -> Result<u32, SyntaxError> {
        self.value(&format!("{what}, at least 1"), |text| text.parse().ok().filter(|count| *count > 0))
    }

    /// `what`, in quotes.
    pub(crate) fn quoted(&mut self, what: &str) -> Result<String, SyntaxError> {
        let expected = format!("{what} in quotes, at most {MAX_QUOTED} characters");
        self.value(&expected, |word| shown(word.strip_prefix('"')?.strip_suffix('"')?))
    }

    /// A pattern between slashes, as it is written.
    pub(crate) fn pattern(&mut self) -> Result<String, SyntaxError> {
        let expected = format!(
            "a regular expression between slashes, at most {MAX_QUOTED} characters, such as /free: \\d+/"
        );
        let ended = |word: &str| word.starts_with('/') && pattern_length(word) == Some(word.len());
        self.value(&expected, |word| if ended(word) { shown(&word[1..word.len() - 1]) } else { None })
    }

    /// The name of a workload.
    pub(crate) fn name(&mut self) -> Result<Name, SyntaxError> {
        self.value("a name (a letter, then letters, digits, _ or -)", Name::new)
    }
}

#[cfg(test)]
mod tests {
    use super::Words;

    #[test]
    fn an_error_does_not_grow_with_a_word() {
        let long = "ö".repeat(100_000);
        let error = Words::new(&long).count("a number").unwrap_err();
        let shown = "ö".repeat(super::SHOWN);
        assert_eq!(error.message, format!("expected a number, at least 1, found `{shown}...`"));
        let error = Words::new(&shown).count("a number").unwrap_err();
        assert!(error.message.ends_with("ö`"), "{error}");
    }
}
