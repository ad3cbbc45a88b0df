//! The rule about unsafe code: a file that has some says so and why, and three crates have none.

use crate::assert_none;
use crate::source::{code, rust, words};

#[test]
fn unsafe_code_lives_where_it_is_announced() {
    const ANNOUNCEMENT: &str = "#![expect(unsafe_code, reason =";
    let mut complaints = Vec::new();
    let files = rust();
    // The announcement of a file covers its `tests.rs`.
    let announces =
        |path: &str| files.iter().any(|file| file.path == path && file.text.contains(ANNOUNCEMENT));
    for file in &files {
        let opens = words(&code(&file.text)).any(|word| word == "unsafe");
        let tested = file.path.strip_suffix("/tests.rs").map(|module| format!("{module}.rs"));
        let announced = announces(&file.path) || tested.is_some_and(|path| announces(&path));
        if opens && !announced {
            complaints.push(format!("{}: unsafe without #![expect(unsafe_code, reason = ...)]", file.path));
        }
        let never = ["virtio-mem/", "guest/abi/", "guest/firmware/"]
            .iter()
            .any(|crate_| file.path.starts_with(crate_));
        if opens && never {
            complaints.push(format!("{}: unsafe in a crate that has none", file.path));
        }
    }
    assert_none("unsafe code", &complaints);
}
