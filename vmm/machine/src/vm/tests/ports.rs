//! Port accesses of several bytes, and repeated ones.

use super::*;

/// mov dx, PORT
fn port(port: u16) -> [u8; 4] {
    let [low, high] = port.to_le_bytes();
    [0x66, 0xba, low, high]
}

/// The serial port's scratch register keeps a byte. The port before it is another register.
#[test]
fn each_byte_of_a_wide_access_reaches_its_own_port() {
    let mut code = Vec::new();
    let mut add = |bytes: &[u8]| code.extend_from_slice(bytes);
    add(&port(0x3f8));
    add(&[0x66, 0xb8, b'a', 0, 0x66, 0xef]); // mov ax, 'a'; out dx, ax
    add(&[0xc7, 0x05, 0x00, 0x00, 0x18, 0x00, b'b', 0, b'c', 0]); // mov dword [0x180000], "b\0c\0"
    add(&[0xbe, 0x00, 0x00, 0x18, 0x00, 0xb9, 2, 0, 0, 0]); // mov esi, 0x180000; mov ecx, 2
    add(&[0xfc, 0xf3, 0x66, 0x6f]); // cld; rep outsw
    add(&port(0x3ff));
    add(&[0xb0, b'Z', 0xee]); // mov al, 'Z'; out dx, al
    add(&port(0x3fe));
    add(&[0x66, 0xed, 0x88, 0xe3]); // in ax, dx; mov bl, ah
    add(&[0xbf, 0x10, 0x00, 0x18, 0x00, 0xb9, 2, 0, 0, 0]); // mov edi, 0x180010; mov ecx, 2
    add(&[0xf3, 0x66, 0x6d]); // rep insw
    add(&port(0x3f8));
    add(&[0x88, 0xd8, 0xee]); // mov al, bl; out dx, al
    add(&[0xa0, 0x13, 0x00, 0x18, 0x00, 0xee]); // mov al, [0x180013]; out dx, al
    add(&[0xb0, 1, 0xe6, 0xf4]); // mov al, 1; out 0xf4, al
    let Some((kind, report)) = died(&code) else { return };
    assert_eq!(kind, DeathKind::GuestPanic);
    assert!(report.ends_with("last on the serial port:\n  | abcZZ"), "{report}");
}
