//! Automatic sizing as users ask for it: by an option, by the API, and by `tidevm ctl`.

use std::process::{Output, Stdio};

use serde_json::json;

use super::api::Api;
use super::endings::until;
use super::{Test, assert_status, program, tidevm};

pub const HOSTED: &[Test] = &[("bounds_that_cannot_be_are_refused", bounds_that_cannot_be_are_refused)];

pub const TESTS: &[Test] =
    &[("a_machine_is_sized_until_somebody_else_does", a_machine_is_sized_until_somebody_else_does)];

const PATH: &str = "/hotplug/memory/auto";

/// No machine is started for any of them.
fn bounds_that_cannot_be_are_refused() {
    let machine = ["run", "--memory", "256M", "--hotplug", "size=1G", "--auto"];
    for (bounds, part) in [
        ("min=1G,max=512M", "--auto min=1G,max=512M,headroom=10%: min=1G is above max=512M"),
        ("min=128M,max=1G", "min=128M is below the boot memory of 256M, which stays: raise min"),
        ("min=256M,max=2G", "max=2G is above 1280M, boot memory and hotplug region together: lower max"),
        ("min=256M,max=1G,headroom=101%", "headroom=101% is not a percentage from 0% to 100%"),
        ("min=256M,max=1025M", "the next sizes are 1G and 1026M"),
        ("min=256M", "max=SIZE is missing"),
        ("max=8G", "min=SIZE is missing"),
        ("256M-8G", "`256M-8G` is not KEY=VALUE"),
    ] {
        assert_status(&tidevm(&[&machine[..], &[bounds]].concat()), 2, part);
    }
    let none = ["run", "--auto", "min=128M,max=1G"];
    assert_status(&tidevm(&none), 2, "has one hotplug region, and this one has 0");
    let two = ["--hotplug", "size=1G", "--hotplug", "size=1G"];
    assert_status(&tidevm(&[&none[..], &two].concat()), 2, "has one hotplug region, and this one has 2");
    let other = ["--hotplug", "size=1G", "--kernel", "no/such/file"];
    assert_status(
        &tidevm(&[&none[..], &other].concat()),
        2,
        "is sized by the statistics of a balloon: add --balloon stats=1s",
    );
}

fn ctl(api: &Api, words: &[&str]) -> Output {
    let mut command = program();
    command.arg("ctl").arg("--api-sock").arg(&api.path).args(words);
    command.stdin(Stdio::null()).output().expect("the program runs")
}

/// Of the guest's 128 MiB, 115 are taken at boot, so that the headroom is too small from the start.
fn a_machine_is_sized_until_somebody_else_does() {
    let machine = ["run", "--memory", "128M", "--hotplug", "size=1G", "--console", "off"];
    let full = ["--cmdline", "percpu_buf=115M", "--auto", "min=128M,max=512M,headroom=20%"];
    let api = Api::start("auto", &[&machine[..], &full].concat(), &[]);
    until("more memory", || api.get(PATH).body["size_mib"].as_u64() > Some(140));
    let auto = api.get(PATH).body;
    assert_eq!(
        (&auto["enabled"], &auto["held"], &auto["max_size_mib"]),
        (&json!(true), &json!(false), &json!(512))
    );
    assert!(auto["grows"].as_u64() > Some(0) && auto["largest_size_mib"].as_u64() <= Some(512), "{auto}");
    let out = assert_status(&ctl(&api, &["auto"]), 0, "");
    assert!(out.contains("between 128M and 512M with 20% of headroom\n"), "{out}");

    // The target of another client is in force, although it is far too small and far too large.
    for mib in [2, 512] {
        assert_status(&ctl(&api, &["resize", &format!("{mib}M")]), 0, "");
        let auto = api.get(PATH).body;
        assert_eq!((&auto["held"], &auto["target_size_mib"]), (&json!(true), &json!(128 + mib)));
    }
    let out = assert_status(&ctl(&api, &["auto"]), 0, "");
    assert!(out.contains("held until `auto release`") && out.contains(", held 2 times; "), "{out}");
    assert!(api.text("/metrics").contains("\ntidevm_auto_holds_total 2\n"));
    // 640 MiB are more than the bounds allow.
    assert_status(&ctl(&api, &["auto", "release"]), 0, "");
    until("the bounds", || api.get("/hotplug/memory").body["plugged_size_mib"].as_u64() <= Some(384));
    assert_eq!(api.get(PATH).body["held"], json!(false));

    assert_status(&ctl(&api, &["auto", "off"]), 0, "");
    assert_eq!(api.get(PATH).body, json!({ "enabled": false }));
    assert_eq!(assert_status(&ctl(&api, &["auto"]), 0, ""), "off\n");
    let off = "Automatic sizing error: it is off; PUT its bounds first.";
    api.fault("PATCH", PATH, r#"{"held": false}"#, off);
    assert_status(&ctl(&api, &["auto", "hold"]), 1, off);
    let below = "Automatic sizing error: min=64M is below the boot memory of 128M, which stays: raise min or lower the boot memory";
    api.fault("PUT", PATH, r#"{"min_size_mib": 64, "max_size_mib": 512}"#, below);
    assert_status(&ctl(&api, &["auto", "min=64M,max=512M"]), 1, below);
    assert_status(&ctl(&api, &["auto", "min=128M,max=256M"]), 0, "");
    until("the new bounds", || api.get("/hotplug/memory").body["plugged_size_mib"].as_u64() <= Some(128));
    let auto = api.get(PATH).body;
    assert_eq!((&auto["enabled"], &auto["headroom_percent"]), (&json!(true), &json!(10)));
    assert_status(&ctl(&api, &["stop"]), 0, "");
}
