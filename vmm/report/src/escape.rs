//! Escapes text for HTML, and in the same way for XML.

use std::fmt::{self, Display, Write};

/// Shows a text so that HTML and XML take it for text, in an element or in a quoted attribute.
///
/// Control characters, which HTML forbids, and those that change the direction of text are shown as U+FFFD.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<T>(pub T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaper(f), "{}", self.0)
    }
}

struct Escaper<'f, 'b>(&'f mut fmt::Formatter<'b>);

impl Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                '\n' | '\t' => self.0.write_char(c)?,
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => self.0.write_char('\u{fffd}')?,
                // No characters of XML.
                '\u{fffe}' | '\u{ffff}' => self.0.write_char('\u{fffd}')?,
                c if c.is_control() => self.0.write_char('\u{fffd}')?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Escaped;

    #[test]
    fn no_text_leaves_its_place() {
        let escaped = |text: &str| Escaped(text).to_string();
        assert_eq!(
            escaped("<b a=\"x\" b='y'>&amp;</b>"),
            "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;amp;&lt;/b&gt;"
        );
        assert_eq!(escaped("größe\n\t\u{1f30a}"), "größe\n\t\u{1f30a}");
        assert_eq!(
            escaped("a\0b\u{1b}[2Jc\r\u{7f}\u{85}\u{202e}"),
            "a\u{fffd}b\u{fffd}[2Jc\u{fffd}\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(escaped("a\u{fffe}\u{ffff}"), "a\u{fffd}\u{fffd}");
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let text = escaped(&c.to_string());
            assert!(!text.contains(['<', '>', '"', '\'']), "{c:?}");
            assert!(!text.starts_with('&') || text.ends_with(';'), "{c:?}");
        }
    }
}
