//! Test cases as JUnit's XML, as Jenkins, GitLab and GitHub's reporters read it.
//!
//! There is no standard. The elements and attributes are those of Jenkins' schema (`jenkins-junit.xsd`), and no others.

use std::fmt::Write;

use crate::Escaped;
use crate::cases::{Result, Results};

impl Results {
    /// The document. A failure of a command is a `failure`, an early end of the session an `error`.
    #[must_use]
    pub fn junit(&self) -> String {
        let cases = self.told();
        let count =
            |wanted: fn(&Result) -> bool| cases.iter().filter(|(_, _, result)| wanted(result)).count();
        let failures = count(|result| matches!(result, Result::Failed(..)));
        let errors = count(|result| matches!(result, Result::Error(..)));
        let skipped = count(|result| matches!(result, Result::Skipped));
        let (tests, time, suite) = (cases.len(), self.seconds(), Escaped(self.suite()));
        let counts =
            format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{time:.3}\"");
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(text, "<testsuites name=\"tidevm\" {counts}>");
        let _ = write!(text, "  <testsuite name=\"{suite}\" {counts} skipped=\"{skipped}\" disabled=\"0\"");
        if let Some(start) = self.start() {
            let _ = write!(text, " timestamp=\"{}\"", Escaped(&start.date));
            if let Some(host) = &start.host {
                let _ = write!(text, " hostname=\"{}\"", Escaped(host));
            }
        }
        text += ">\n";
        for (name, time, result) in &cases {
            let name = Escaped(name);
            let _ = write!(text, "    <testcase name=\"{name}\" classname=\"{suite}\" time=\"{time:.3}\"");
            let mut told = |element: &str, message: &str, all: &str| {
                let (message, all) = (Escaped(message), Escaped(all));
                let _ = write!(
                    text,
                    ">\n      <{element} message=\"{message}\" type=\"{element}\">{all}</{element}>\n    </testcase>\n"
                );
            };
            match result {
                Result::Passed => text += "/>\n",
                Result::Failed(message, all) => told("failure", message, all),
                Result::Error(message, all) => told("error", message, all),
                Result::Skipped => text += ">\n      <skipped message=\"not reached\"/>\n    </testcase>\n",
            }
        }
        text += "  </testsuite>\n</testsuites>\n";
        text
    }
}
