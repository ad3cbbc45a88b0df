//! The example runs, and prints what it should.

#[expect(dead_code, reason = "the test calls `run`, and `main` does nothing else")]
#[path = "../examples/toy_guest/main.rs"]
mod toy_guest;

#[test]
fn the_toy_guest_grows_and_shrinks_and_keeps_its_pages() {
    let mut out = Vec::new();
    toy_guest::run(&mut out).expect("a machine that boots");
    let expected = "\
        booted with 256 MiB, 245 MiB of them are free\n\
        1024 MiB wanted: Reached, 1024 MiB plugged, 1244 MiB free\n\
        the cache has 25600 pages in plugged memory\n\
        256 MiB wanted: Reached, 256 MiB plugged, 394 MiB free\n\
        0 MiB wanted: Reached, 0 MiB plugged, 145 MiB free\n\
        the cache has 0 pages in plugged memory; pages were moved 29184 times; intact: true\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
