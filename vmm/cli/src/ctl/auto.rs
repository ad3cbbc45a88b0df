//! `auto`: a running machine is sized by what its guest uses.

use std::io::Write;

use serde_json::{Value, json};
use tidevm_abi::Counted;
use tidevm_api::http::Method;

use super::outcome::End;
use super::wish::Auto;
use super::{CALL_LIMIT, CtlError, Session, tell};

const PATH: &str = "/hotplug/memory/auto";

impl<W: Write> Session<W> {
    pub(super) fn auto(&mut self, auto: Auto) -> Result<End, CtlError> {
        match auto {
            Auto::Show => self.show_auto(),
            Auto::Within(sizes) => {
                let mib = |size: tidevm_abi::Size| size.0.is_multiple_of(1 << 20).then_some(size.0 >> 20);
                let (Some(min), Some(max)) = (mib(sizes.min), mib(sizes.max)) else {
                    return Ok(End::refused("the API takes whole numbers of MiB".to_owned()));
                };
                let headroom = sizes.headroom;
                let body = json!({ "min_size_mib": min, "max_size_mib": max, "headroom_percent": headroom });
                self.change(Method::Put, PATH, &body)
            }
            Auto::Hold => self.change(Method::Patch, PATH, &json!({ "held": true })),
            Auto::Release => self.change(Method::Patch, PATH, &json!({ "held": false })),
            Auto::Off => {
                let answer = self.api.call(Method::Delete, PATH, None, CALL_LIMIT)?;
                Ok(if answer.is_done() { End::done() } else { End::refused(answer.fault()) })
            }
        }
    }

    fn show_auto(&mut self) -> Result<End, CtlError> {
        let answer = self.get(PATH)?;
        if !answer.is_done() {
            return Ok(End::refused(answer.fault()));
        }
        let auto = answer.json();
        if self.screen.is_json() {
            self.screen.json(&json!({ "event": "auto", "auto": auto }))?;
        } else {
            self.screen.text(&text(&auto))?;
        }
        Ok(End::done())
    }
}

/// How a machine is sized, in two lines.
fn text(auto: &Value) -> String {
    if auto["enabled"] != true {
        return "off".to_owned();
    }
    let size = |key: &str| tell::mib(&auto[key]);
    let count = |key: &str| auto[key].as_u64().unwrap_or(0);
    let times = |key: &str| Counted(count(key), "time");
    let held = if auto["held"] == true { ", held until `auto release`" } else { "" };
    format!(
        "{} of {}, between {} and {} with {}% of headroom{held}\n\
         grown {}, shrunk {}, held {}; {} waited, at most {} ms",
        size("size_mib"),
        size("target_size_mib"),
        size("min_size_mib"),
        size("max_size_mib"),
        count("headroom_percent"),
        times("grows"),
        times("shrinks"),
        times("holds"),
        Counted(count("waited"), "allocation"),
        count("longest_wait_us").div_ceil(1000),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::text;

    #[test]
    fn how_a_machine_is_sized_is_two_lines() {
        assert_eq!(text(&json!({ "enabled": false })), "off");
        let mut auto = json!({
            "enabled": true, "held": false, "size_mib": 300, "target_size_mib": 384, "min_size_mib": 256,
            "max_size_mib": 8192, "headroom_percent": 10, "grows": 2, "shrinks": 1, "holds": 0, "waited": 3,
            "longest_wait_us": 1001,
        });
        let told = "300M of 384M, between 256M and 8G with 10% of headroom\ngrown 2 times, shrunk 1 time, held 0 \
                    times; 3 allocations waited, at most 2 ms";
        assert_eq!(text(&auto), told);
        auto["held"] = json!(true);
        assert!(text(&auto).contains("headroom, held until `auto release`"));
    }
}
