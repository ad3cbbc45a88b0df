//! Whether a host can give its guests the CPU that a saved guest has seen.
//!
//! Mirrors the check of QEMU's `x86_cpu_filter_features` and of Firecracker's CPU templates: features are bits, and each bit
//! that the guest has seen must be one that this host's KVM can give. A guest asks for them once, when it boots. Beside
//! the features, the vendor has to be the same, and addresses must be as long. Models, caches and frequencies of the leaves
//! may differ: guests take them for advice.

use kvm_bindings::kvm_cpuid_entry2;

/// Leaves of features: function, sub-leaf, and which of EAX, EBX, ECX and EDX consist of feature bits.
const FEATURES: [(u32, u32, [bool; 4]); 9] = [
    (0x1, 0, [false, false, true, true]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, true, true, true]),
    (0x7, 2, [false, false, false, true]),
    // The features of XCR0 in the first one; the instructions of XSAVE in the second one.
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0008, 0, [false, true, false, false]),
];

const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// OSXSAVE and, in leaf 7, OSPKE: KVM sets them as the guest sets CR4.
const DYNAMIC: [(u32, usize, u32); 2] = [(0x1, 2, 1 << 27), (0x7, 2, 1 << 4)];

/// What this host, with the leaves `host`, cannot give to a guest that has seen `saved`.
pub fn missing(saved: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Option<String> {
    let (theirs, ours) = (leaf(saved, 0, 0), leaf(host, 0, 0));
    if theirs[1..] != ours[1..] {
        return Some(format!("its CPU is a {}, and this host's is a {}", vendor(theirs), vendor(ours)));
    }
    for (function, index, registers) in FEATURES {
        let (theirs, ours) = (leaf(saved, function, index), leaf(host, function, index));
        for register in (0..4).filter(|&register| registers[register]) {
            let changes = DYNAMIC.iter().find(|dynamic| (dynamic.0, dynamic.1) == (function, register));
            let lacks = theirs[register] & !ours[register] & !changes.map_or(0, |dynamic| dynamic.2);
            if lacks != 0 {
                let name = REGISTERS[register];
                return Some(format!(
                    "its CPU has features that this host's does not give: CPUID leaf {function:#x}, sub-leaf {index}, \
                     bits {lacks:#x} of {name}"
                ));
            }
        }
    }
    let bits = |entries| leaf(entries, 0x8000_0008, 0)[0] & 0xff;
    (bits(saved) > bits(host))
        .then(|| format!("its CPU has addresses of {} bits, and this host's has {}", bits(saved), bits(host)))
}

/// The registers of a leaf. One that there is not is zero.
fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let found = entries.iter().find(|entry| entry.function == function && entry.index == index);
    found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// The name in EBX, EDX and ECX of leaf 0.
fn vendor([_, ebx, ecx, edx]: [u32; 4]) -> String {
    let bytes: Vec<u8> = [ebx, edx, ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    crate::printable::printable(&bytes)
}

#[cfg(test)]
mod tests {
    use super::{kvm_cpuid_entry2, missing};

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// "GenuineIntel", and some features.
    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            entry(1, 0, [0x806f8, 1 << 24, 0b0110, 0b1001]),
            entry(7, 0, [2, 0b0011, 0, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0, 0]),
        ]
    }

    #[test]
    fn a_host_has_what_the_guest_has_seen_or_is_refused_with_what_it_lacks() {
        assert_eq!(missing(&host(), &host()), None);
        let saved = |change: fn(&mut Vec<kvm_cpuid_entry2>)| {
            let mut saved = host();
            change(&mut saved);
            missing(&saved, &host()).unwrap_or_default()
        };
        assert_eq!(saved(|saved| saved[1].ecx = 0b0010), "", "a host may have more");
        assert_eq!(saved(|saved| (saved[1].eax, saved[1].ebx) = (7, 7)), "", "another model");
        assert_eq!(saved(|saved| saved[1].ecx |= 1 << 27), "", "the guest's own doing");
        let text = saved(|saved| saved[1].ecx |= 1 << 12);
        assert!(text.contains("leaf 0x1, sub-leaf 0, bits 0x1000 of ECX"), "{text}");
        let text = saved(|saved| saved.push(entry(7, 1, [1 << 4, 0, 0, 0])));
        assert!(text.contains("leaf 0x7, sub-leaf 1, bits 0x10 of EAX"), "a leaf that there is not: {text}");
        let text = saved(|saved| saved[3].eax = 0x3034);
        assert!(text.contains("addresses of 52 bits, and this host's has 48"), "{text}");
        let text = saved(|saved| saved[0] = entry(0, 0, [1, 0x6874_7541, 0x444d_4163, 0x6974_6e65]));
        assert!(text.contains("AuthenticAMD, and this host's is a GenuineIntel"), "{text}");
    }
}
