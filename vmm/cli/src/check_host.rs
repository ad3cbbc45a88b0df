//! `tidevm check-host`: the survey of a host, as lines or as JSON.

use std::io::{self, Write};

use serde_json::json;
use tidevm_machine::survey::{Bearing, Finding, survey};

/// Looks at this host, prints what was found, and gives the exit status.
///
/// # Errors
/// Standard output is closed.
pub fn run(json: bool) -> io::Result<u8> {
    let findings = survey();
    let runs = findings.iter().all(|finding| finding.bearing != Bearing::Missing);
    let text = if json { as_json(&findings, runs) } else { as_lines(&findings, runs) };
    io::stdout().write_all(text.as_bytes())?;
    Ok(if runs { 0 } else { 3 })
}

fn word(bearing: Bearing) -> &'static str {
    match bearing {
        Bearing::Good => "ok",
        Bearing::Limited => "limited",
        Bearing::Missing => "missing",
    }
}

fn as_json(findings: &[Finding], runs: bool) -> String {
    let findings = findings.iter().map(|Finding { what, bearing, found, remedy }| {
        json!({ "what": what, "state": word(*bearing), "found": found, "remedy": remedy })
    });
    format!("{}\n", json!({ "runs": runs, "findings": findings.collect::<Vec<_>>() }))
}

fn as_lines(findings: &[Finding], runs: bool) -> String {
    let mut text = String::new();
    for Finding { what, bearing, found, remedy } in findings {
        text += &format!("{:9}{what:17}{found}\n", word(*bearing));
        if let Some(remedy) = remedy {
            text += &format!("{:26}{remedy}\n", "");
        }
    }
    text + if runs { "\nThis host runs VMs.\n" } else { "\nThis host runs no VM: something is missing.\n" }
}

#[cfg(test)]
mod tests {
    use super::{Bearing, Finding, as_json, as_lines};

    #[test]
    fn a_finding_stands_with_its_remedy() {
        let good = Finding { what: "a", bearing: Bearing::Good, found: "there".to_owned(), remedy: None };
        let missing = Finding {
            what: "b",
            bearing: Bearing::Missing,
            found: "gone".to_owned(),
            remedy: Some("Get it".to_owned()),
        };
        let findings = [good, missing];
        let lines = as_lines(&findings, false);
        let expected = "ok       a                there\nmissing  b                gone\n                          Get it\n";
        assert_eq!(lines, format!("{expected}\nThis host runs no VM: something is missing.\n"));
        let json: serde_json::Value = serde_json::from_str(&as_json(&findings, false)).expect("JSON");
        assert_eq!(json["runs"], false);
        assert_eq!(json["findings"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(json["findings"][1]["remedy"], "Get it");
        assert_eq!(json["findings"][1]["state"], "missing");
    }
}
