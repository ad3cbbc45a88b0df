//! Archives whose bytes depend on nothing but their entries and one time.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// A file in an archive.
pub struct Entry {
    /// Relative to the root of the archive.
    pub path: String,
    /// The permissions.
    pub mode: u32,
    /// The content.
    pub content: Vec<u8>,
}

impl Entry {
    /// A file to read.
    pub fn file(path: String, content: &[u8]) -> Self {
        Self { path, mode: 0o644, content: content.to_vec() }
    }

    /// A file to run.
    pub fn program(path: String, content: &[u8]) -> Self {
        Self { path, mode: 0o755, content: content.to_vec() }
    }
}

/// An archive of `entries` and of the folders around them, by path. All belong to root.
pub fn tar(mut entries: Vec<Entry>, time: u64) -> Result<Vec<u8>> {
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    let mut archive = Builder::new(Vec::new());
    let header = |kind, mode, size| -> Result<Header> {
        let mut header = Header::new_ustar();
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(time);
        Ok(header)
    };
    let folders: BTreeSet<&Path> =
        entries.iter().flat_map(|entry| Path::new(&entry.path).ancestors().skip(1)).collect();
    for folder in folders.into_iter().filter(|folder| !folder.as_os_str().is_empty()) {
        let mut header = header(EntryType::Directory, 0o755, 0)?;
        archive.append_data(&mut header, format!("{}/", folder.display()), &[][..])?;
    }
    for Entry { path, mode, content } in &entries {
        let mut header = header(EntryType::Regular, *mode, content.len() as u64)?;
        archive.append_data(&mut header, path, &content[..])?;
    }
    Ok(archive.into_inner()?)
}

/// `content` by gzip, without a name or a time.
pub fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().write(Vec::new(), Compression::best());
    writer.write_all(content)?;
    Ok(writer.finish()?)
}
