//! The agent for Linux (`guest/linux-agent`): an archive in front of the user's initrd, and the word of the command line that
//! has the kernel start it.
//!
//! Mirrors Linux's initramfs buffer format (`Documentation/driver-api/early-userspace/buffer-format.rst`): archives follow
//! each other, each compressed or not, and a file of a later one takes the place of an earlier one. The agent's archive comes
//! first and is not compressed, so it needs no decompressor that the kernel may lack, and nothing depends on where a
//! decompressor of the kernel stops.

use tidevm_abi::kernel::{AGENT_PATH, RDINIT};

/// The archive: the agent's folder and its program.
pub const ARCHIVE: &[u8] = include_bytes!(env!("TIDEVM_LINUX_AGENT"));

/// The first bytes of what Linux unpacks: archives (`init/initramfs.c`), and the compressions that it knows
/// (`lib/decompress.c`).
const MAGICS: [&[u8]; 11] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\x1f\x9e",
    b"BZh",
    b"\x5d\x00\x00",
    b"\xfd7zXZ",
    b"\x89LZO",
    b"\x02!L\x18",
    b"\x28\xb5\x2f\xfd",
    // Padding in front of an archive.
    b"\0\0\0\0",
];

/// Archives begin at a multiple of this.
const ALIGN: usize = 4;

/// The agent's archive, and behind it `initrd`, as it is. `None` if that is nothing that Linux unpacks.
pub(super) fn in_front_of(initrd: Option<&[u8]>) -> Option<Vec<u8>> {
    let initrd = initrd.unwrap_or_default();
    let unpacks = initrd.is_empty() || MAGICS.iter().any(|magic| initrd.starts_with(magic));
    unpacks.then(|| {
        let mut joined = ARCHIVE.to_vec();
        joined.resize(joined.len().next_multiple_of(ALIGN), 0);
        joined.extend(initrd);
        joined
    })
}

/// The user's part of the command line, with the word that has the kernel start the agent. Of several such words Linux takes
/// the last one, and the agent finds the user's own. What follows `--` is for the first program.
pub(super) fn command_line(line: &str) -> String {
    let word = format!("{RDINIT}={AGENT_PATH}");
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let at = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let (before, behind) = words.split_at(at);
    // Quotes may hold spaces: the user's text stays as it is where there is nothing to insert into it.
    if behind.is_empty() {
        return if words.is_empty() { word } else { format!("{line} {word}") };
    }
    before.iter().copied().chain([word.as_str()]).chain(behind.iter().copied()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{ARCHIVE, command_line, in_front_of};

    #[test]
    fn the_users_archive_follows_as_it_is() {
        assert!(ARCHIVE.starts_with(b"070701"), "newc, without a compression");
        assert_eq!(in_front_of(None).unwrap().len(), ARCHIVE.len().next_multiple_of(4));
        for user in [&b"070701 and more"[..], b"\x1f\x8b\x08 gzip", b"\x28\xb5\x2f\xfd zstd"] {
            let joined = in_front_of(Some(user)).unwrap();
            let at = joined.len() - user.len();
            assert!(joined.starts_with(ARCHIVE) && joined[at..] == *user && at.is_multiple_of(4));
        }
        for other in [&b"#!/bin/sh"[..], b"070707 old cpio", b"\0\0\x53\xef", b"x"] {
            assert_eq!(in_front_of(Some(other)), None, "{other:?}");
        }
    }

    /// Each entry begins at a multiple of 4 with its magic, and has the sizes of name and content in hexadecimal digits.
    #[test]
    fn the_archive_has_the_agent_as_a_program() {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let number = |field: usize| {
                let start = at + 6 + 8 * field;
                let digits = std::str::from_utf8(&ARCHIVE[start..start + 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&ARCHIVE[at..at + 6], b"070701");
            let (mode, size, name_size) = (number(1), number(6), number(11));
            let name = std::str::from_utf8(&ARCHIVE[at + 110..at + 110 + name_size - 1]).unwrap();
            if name == "TRAILER!!!" {
                break;
            }
            let content = (at + 110 + name_size).next_multiple_of(4);
            entries.push((name, mode, &ARCHIVE[content..content + size]));
            at = (content + size).next_multiple_of(4);
        }
        let [(".tidevm", 0o040_755, []), (".tidevm/agent", 0o100_755, program)] = entries[..] else {
            panic!("{:?}", entries.iter().map(|entry| (entry.0, entry.1)).collect::<Vec<_>>());
        };
        assert!(program.starts_with(b"\x7fELF"));
    }

    #[test]
    fn the_agent_is_the_first_program_whatever_the_user_says() {
        for (line, expected) in [
            ("", "rdinit=/.tidevm/agent"),
            ("console=ttyS0  a=\"b  c\"", "console=ttyS0  a=\"b  c\" rdinit=/.tidevm/agent"),
            ("rdinit=/mine", "rdinit=/mine rdinit=/.tidevm/agent"),
            ("quiet -- single x", "quiet rdinit=/.tidevm/agent -- single x"),
        ] {
            assert_eq!(command_line(line), expected);
        }
    }
}
