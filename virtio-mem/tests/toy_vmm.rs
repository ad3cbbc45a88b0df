//! The examples run, and print what they should.

#[expect(dead_code, reason = "the test calls `run`, and `main` does nothing else")]
#[path = "../examples/toy_vmm.rs"]
mod toy_vmm;

#[test]
fn the_toy_vmm_grows_and_shrinks_its_guest() {
    let mut out = Vec::new();
    toy_vmm::run(&mut out).expect("a host with memfd");
    let expected = "\
        the host wants 64 MiB: notification true\n\
        PLUG of 32 blocks: Ack; the guest has used them, the host holds 64 MiB\n\
        PLUG of one more: Nack; Plug of 1 blocks at 0x104000000: more than the requested size would be plugged\n\
        the host wants 16 MiB: notification true\n\
        UNPLUG of 24 blocks: Ack; the host holds 16 MiB\n\
        STATE of blocks 0 to 7: Plugged\n\
        STATE of blocks 8 to 31: Unplugged\n\
        STATE of blocks 0 to 31: Mixed\n\
        UNPLUG_ALL: Ack; the host holds 0 MiB\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
