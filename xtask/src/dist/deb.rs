//! The Debian package: an `ar` archive of a version, the control file, and the files of the system (deb(5)).

use anyhow::Result;
use ar::{Builder, Header};

use super::archive::{Entry, gzip, tar};
use super::{COMPLETIONS, PAPERS, Release};

/// The version of the format.
const FORMAT: &[u8] = b"2.0\n";

pub fn package(release: &Release) -> Result<Vec<u8>> {
    let files = files(release)?;
    let size: usize = files.iter().map(|entry| entry.content.len()).sum();
    let control = vec![Entry::file("control".to_owned(), control(&release.version, size).as_bytes())];
    let mut package = Builder::new(Vec::new());
    for (name, content) in [
        ("debian-binary", FORMAT.to_vec()),
        ("control.tar.gz", gzip(&tar(control, release.time)?)?),
        ("data.tar.gz", gzip(&tar(files, release.time)?)?),
    ] {
        let mut header = Header::new(name.as_bytes().to_vec(), content.len() as u64);
        header.set_mtime(release.time);
        header.set_mode(0o100_644);
        package.append(&header, &content[..])?;
    }
    Ok(package.into_inner()?)
}

/// The control file of a package whose files have `size` bytes together. The program is static, so it depends on nothing.
fn control(version: &str, size: usize) -> String {
    format!(
        "Package: tidevm\n\
         Version: {version}\n\
         Architecture: amd64\n\
         Maintainer: the authors of tidevm\n\
         Installed-Size: {}\n\
         Section: utils\n\
         Priority: optional\n\
         Description: microVM whose memory rises and falls\n \
         A small virtual machine monitor on KVM, with a guest kernel inside and\n \
         virtio-mem between them.\n",
        size.div_ceil(1024)
    )
}

/// The files of the system, as Debian's policy places them.
fn files(release: &Release) -> Result<Vec<Entry>> {
    let mut files = vec![Entry::program("usr/bin/tidevm".to_owned(), &release.program)];
    let completions = COMPLETIONS.iter().zip(&release.completions);
    files.extend(completions.map(|((_, _, path), content)| Entry::file((*path).to_owned(), content)));
    for (name, page) in &release.man_pages {
        files.push(Entry::file(format!("usr/share/man/man1/{name}.gz"), &gzip(page)?));
    }
    let mut licences = Vec::new();
    for (name, content) in PAPERS.iter().zip(&release.papers) {
        if name.starts_with("LICENSE") {
            licences.extend_from_slice(content);
            licences.push(b'\n');
        } else {
            files.push(Entry::file(format!("usr/share/doc/tidevm/{name}"), content));
        }
    }
    files.push(Entry::file("usr/share/doc/tidevm/copyright".to_owned(), &licences));
    Ok(files)
}
