//! Patterns of `expect console`: regular expressions, compiled within bounds.
//!
//! The syntax is that of the crate `regex`, whose searches take time in proportion to the text, and so is the engine. It is
//! used without that crate, which asks the host for its number of CPUs when a pattern is compiled: a thread that is locked in
//! cannot. A console is bytes, so classes such as `\w` are ASCII, and `.` is any byte but a line feed.
//!
//! Invariant: a pattern of a script was compiled when the script was read, so that it cannot fail when its step is run.

use regex_automata::meta::{Config, Regex};
use regex_automata::util::syntax;
use regex_syntax::Error;

/// Most bytes of a compiled pattern, and of what a search keeps. `a{200}` repeated ten times fits.
const MOST: usize = 256 << 10;

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PatternError {
    /// Where, in characters from 0.
    pub(crate) offset: usize,
    /// What is wrong.
    pub(crate) message: String,
}

/// Compiles `pattern`.
///
/// # Errors
/// It is no regular expression, or too large.
pub(crate) fn compile(pattern: &str) -> Result<Regex, PatternError> {
    let error = |byte: usize, what: String| {
        let offset = pattern.char_indices().take_while(|(at, _)| *at < byte).count();
        PatternError { offset, message: format!("no regular expression: {what}") }
    };
    // One thread searches.
    let config = Config::new()
        .pool_capacity(1)
        .utf8_empty(false)
        .nfa_size_limit(Some(MOST))
        .hybrid_cache_capacity(MOST);
    let syntax = syntax::Config::new().unicode(false).utf8(false);
    let built = Regex::builder().configure(config).syntax(syntax).build(pattern);
    built.map_err(|why| match why.syntax_error() {
        Some(Error::Parse(why)) => error(why.span().start.offset, why.kind().to_string()),
        Some(Error::Translate(why)) => error(why.span().start.offset, why.kind().to_string()),
        Some(why) => error(0, why.to_string()),
        None => error(0, format!("it takes more than {} KiB when it is compiled", MOST >> 10)),
    })
}

#[cfg(test)]
mod tests {
    use super::compile;

    #[test]
    fn a_pattern_is_of_bytes() {
        let pattern = compile(r"^\w+: \d{1,3}\/größe$").unwrap();
        assert!(pattern.is_match("free: 12/größe".as_bytes()) && !pattern.is_match(b"free: 1234/x"));
        assert!(compile("a.b").unwrap().is_match(b"a\xffb"));
    }

    #[test]
    fn an_error_has_its_place_in_characters() {
        for (pattern, offset, message) in [
            ("öa(b", 2, "unclosed group"),
            ("a{3", 1, "unclosed counted repetition"),
            ("ö*ö**[b", 5, "unclosed character class"),
            (r"a\y", 1, "unrecognized escape sequence"),
            ("a{1000}{1000}", 0, "more than 256 KiB"),
            (r"\pL", 0, "Unicode"),
        ] {
            let error = compile(pattern).expect_err(pattern);
            assert!(error.message.contains(message), "{pattern}: {}", error.message);
            assert_eq!(error.offset, offset, "{pattern}: {}", error.message);
        }
    }
}
