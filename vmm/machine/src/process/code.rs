//! The code of a process that only its start needed.
//!
//! The start of a VM reads options, checks them, and makes threads, by code that is not run again. The host maps the
//! code of a file in pieces of 64 KiB, so that nearly all of the program is resident when the guest runs, in each
//! process that runs a VM. Given back, it lies in the page cache alone; what is run again is mapped again.
//!
//! Invariant: only parts of files that no one may write to are given back, so they read the same as before.
#![expect(unsafe_code, reason = "walks over the loaded files and gives back pages of their code")]

use std::ptr;

const PAGE: usize = 4096;

/// Gives the pages of the program and its libraries that are never written back to the host. A debugger's
/// breakpoints in them are lost.
pub fn give_code_back() {
    // SAFETY: the callback has the type that the call wants, keeps no pointer, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(give_back), ptr::null_mut()) };
}

/// Gives back one loaded file.
///
/// # Safety
/// `info` describes a loaded file.
unsafe extern "C" fn give_back(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the caller passes a description whose headers live as long as the call.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // The first and the last page may be shared with a part that is written.
        let start = (base + header.p_vaddr as usize).next_multiple_of(PAGE);
        let end = (base + header.p_vaddr as usize + header.p_memsz as usize) / PAGE * PAGE;
        if start < end {
            // SAFETY: the pages belong to a private mapping of a file that this process never writes to, so the host
            // reads the same bytes again when they are used. A failure leaves them resident.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::give_code_back;

    /// KiB of this program's code that are resident.
    fn resident(smaps: &str) -> u64 {
        let program = std::env::current_exe().unwrap().display().to_string();
        let own = smaps.split("VmFlags:").find(|vma| vma.contains("r-xp") && vma.contains(&program)).unwrap();
        let size = own.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        size.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_was_given_back_is_not_resident_and_runs_again() {
        const NAME: &str = "process::code::tests::code_that_was_given_back_is_not_resident_and_runs_again";
        const INNER: &str = "TIDEVM_TEST_CODE";
        // In a process of its own, where no other test runs code meanwhile.
        if std::env::var_os(INNER).is_none() {
            let program = std::env::current_exe().unwrap();
            let output =
                std::process::Command::new(program).args(["--exact", NAME]).env(INNER, "").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
            return;
        }
        let read = || {
            let mut text = String::with_capacity(1 << 20);
            File::open("/proc/self/smaps").unwrap().read_to_string(&mut text).unwrap();
            text
        };
        // Reading runs between giving back and looking, by code that the host maps in pieces of 64 KiB.
        drop(read());
        let before = read();
        give_code_back();
        let after = read();
        let (before, after) = (resident(&before), resident(&after));
        assert!(after + 256 < before, "{before} KiB, then {after} KiB");
    }
}
