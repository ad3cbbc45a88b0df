//! Numbers of things as text.

use core::fmt;

/// A number and what it counts, in the singular: `1 page`, `2 pages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted(pub u64, pub &'static str);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, one) = *self;
        write!(f, "{number} {one}{}", either(number, "", "s"))
    }
}

/// `one` for a number of 1, otherwise `many`.
#[must_use]
pub fn either(number: u64, one: &'static str, many: &'static str) -> &'static str {
    if number == 1 { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::Counted;

    #[test]
    fn one_thing_is_not_many() {
        let texts = [0, 1, 2, u64::MAX].map(|number| Counted(number, "page").to_string());
        assert_eq!(texts, ["0 pages", "1 page", "2 pages", "18446744073709551615 pages"]);
    }
}
