//! Text of guests and files, made safe for a terminal and a log.
//!
//! A guest writes any bytes to its console, and a kernel file holds any bytes as names. A terminal would take
//! some of them as commands. Invariant: no such text reaches a terminal or a log in another way.

/// The bytes as text that cannot command a terminal. Control characters other than line feeds and tabs, and
/// characters that change the order or the lines of the text around them, are escaped. Carriage returns are
/// left out.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for char in String::from_utf8_lossy(bytes).chars() {
        match char {
            '\r' => {}
            '\n' | '\t' => text.push(char),
            _ if char.is_control() || reorders(char) => text.extend(char.escape_unicode()),
            _ => text.push(char),
        }
    }
    text
}

/// Unicode's marks, embeddings, overrides and isolates of direction, and its separators of lines and
/// paragraphs.
fn reorders(char: char) -> bool {
    matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn text_of_a_guest_commands_no_terminal_and_turns_no_line_around() {
        assert_eq!(printable(b"\x1b]0;mine\x07\t\xc3\xb6\r\n\xff"), "\\u{1b}]0;mine\\u{7}\t\u{f6}\n\u{fffd}");
        let turned = "is \u{202e}deuggulp\u{2066}\u{2028}";
        assert_eq!(printable(turned.as_bytes()), "is \\u{202e}deuggulp\\u{2066}\\u{2028}");
    }
}
