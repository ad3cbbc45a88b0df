//! Tests of guests that do not answer, as the table and the JSON show them.

use super::{Test, assert_status, kernel, lines, text, with_input};

pub const TESTS: &[Test] = &[(
    "a_guest_that_does_not_answer_is_shown_with_its_vcpus",
    a_guest_that_does_not_answer_is_shown_with_its_vcpus,
)];

/// A guest that spins and one that halts, both with interrupts off. No driver binds the device.
fn a_guest_that_does_not_answer_is_shown_with_its_vcpus() {
    const SCRIPT: &str = "resize 128M within 500ms\n";
    for (name, code, state) in
        [("spins", &[0xfa, 0xeb, 0xfe][..], "running"), ("halts", &[0xfa, 0xf4, 0xeb, 0xfd], "halted")]
    {
        let kernel = kernel::write(name, code);
        let kernel = kernel.to_str().expect("UTF-8");
        let arguments =
            ["run", "--cpus", "2", "--hotplug", "size=128M", "--console", "off", "--kernel", kernel];
        let output = with_input(&[&arguments[..], &["--script", "-"]].concat(), SCRIPT);
        let out = assert_status(&output, 1, "");
        let row = format!("vcpu0  {state:<14}  interrupts off  rip 00000000001000");
        for part in [row.as_str(), "irr -  isr -", "rfl 000000000000000", "vcpu1  waits for INIT"] {
            assert!(out.contains(part), "no `{part}`:\n{out}{}", text(&output.stderr));
        }
        let output = with_input(&[&arguments[..], &["--json", "--script", "-"]].concat(), SCRIPT);
        let out = assert_status(&output, 1, "");
        let events = lines::told(&out);
        let step = events.iter().find(|event| event["event"] == "step").expect("a step");
        let vcpu = &step["vcpus"][0];
        assert_eq!(
            (vcpu["state"].as_str(), vcpu["interrupts"].as_bool()),
            (Some(state), Some(false)),
            "{step}"
        );
        assert!(vcpu["registers"]["cr0"].is_string(), "{step}");
    }
}
