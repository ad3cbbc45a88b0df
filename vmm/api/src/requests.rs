//! How often clients asked for what, and what they were answered.
//!
//! Mirrors Firecracker's counters of API requests, by the names that its metrics file has for paths. Differs on purpose: a
//! request has failed when its answer is a fault, whereas Firecracker counts only bodies that cannot be read.
//!
//! Invariant: a client cannot make the table grow. Paths that are none of [`ENDPOINTS`] are counted together.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::http::{Method, Request};

/// A path, and its name in the metrics file.
type Endpoint = (&'static str, &'static str);

/// All paths. Longer ones are the paths below.
const ENDPOINTS: &[Endpoint] = &[
    ("/", "instance_info"),
    ("/actions", "actions"),
    ("/balloon", "balloon"),
    ("/boot-source", "boot_source"),
    ("/cpu-config", "cpu_cfg"),
    ("/drives", "drive"),
    ("/entropy", "entropy"),
    ("/events", "events"),
    ("/hotplug/memory", "hotplug_memory"),
    ("/logger", "logger"),
    ("/machine-config", "machine_cfg"),
    ("/metrics", "metrics"),
    ("/mmds", "mmds"),
    ("/network-interfaces", "network"),
    ("/pmem", "pmem"),
    ("/serial", "serial"),
    ("/snapshot", "snapshot"),
    ("/stats", "stats"),
    ("/version", "vmm_version"),
    ("/vm", "vm"),
    ("/vm/config", "vm_config"),
    ("/vsock", "vsock"),
];

/// All other paths.
const OTHER: Endpoint = ("other", "other");

/// What Firecracker's file has in each line, whether or not it was asked for.
const ALWAYS: [(Method, &[&str]); 4] = [
    (Method::Get, &["instance_info", "machine_cfg", "mmds", "vmm_version", "hotplug_memory"]),
    (
        Method::Put,
        &[
            "actions",
            "boot_source",
            "drive",
            "logger",
            "machine_cfg",
            "cpu_cfg",
            "metrics",
            "network",
            "mmds",
            "vsock",
            "pmem",
            "serial",
            "hotplug_memory",
        ],
    ),
    (Method::Patch, &["drive", "network", "machine_cfg", "mmds", "hotplug_memory", "pmem"]),
    (Method::Delete, &[]),
];

/// Answered requests since the start, by method, path and status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    by: BTreeMap<(Method, Endpoint, u16), u64>,
}

impl Requests {
    /// Counts a request that was answered with `status`.
    pub fn count(&mut self, request: &Request, status: u16) {
        *self.by.entry((request.method, endpoint(&request.path), status)).or_default() += 1;
    }

    /// Method, path, status and number of requests.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u16, u64)> {
        self.by.iter().map(|(&(method, (path, _), status), &count)| (method.name(), path, status, count))
    }

    /// The groups of the metrics file: what was counted since `before`.
    pub fn since(&self, before: &Self) -> Map<String, Value> {
        let group = |(method, always): &(Method, &[&str])| {
            let mut names: BTreeMap<String, u64> = BTreeMap::new();
            for name in *always {
                names.insert(format!("{name}_count"), 0);
                names.insert(format!("{name}_fails"), 0);
            }
            for (key, count) in self.by.iter().filter(|((other, ..), _)| other == method) {
                let (_, (_, name), status) = key;
                let new = count - before.by.get(key).copied().unwrap_or(0);
                *names.entry(format!("{name}_count")).or_default() += new;
                *names.entry(format!("{name}_fails")).or_default() += if *status >= 400 { new } else { 0 };
            }
            let names: Map<String, Value> =
                names.into_iter().map(|(name, count)| (name, count.into())).collect();
            (format!("{}_api_requests", method.name().to_lowercase()), Value::Object(names))
        };
        ALWAYS.iter().map(group).collect()
    }
}

/// The longest of [`ENDPOINTS`] that is `path` or above it.
fn endpoint(path: &str) -> Endpoint {
    if path == "/" {
        return ENDPOINTS[0];
    }
    let is_above =
        |above: &str| path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let above = ENDPOINTS[1..].iter().filter(|(above, _)| is_above(above));
    above.max_by_key(|(above, _)| above.len()).copied().unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Requests, endpoint};
    use crate::http::{Method, Request};

    fn request(method: Method, path: &str) -> Request {
        Request { method, path: path.to_owned(), query: String::new(), body: None, keep_alive: true }
    }

    #[test]
    fn a_path_is_counted_as_the_one_above_it() {
        let named = |path| endpoint(path).0;
        for (path, above) in [
            ("/", "/"),
            ("/vm", "/vm"),
            ("/vm/config", "/vm/config"),
            ("/vmx", "other"),
            ("/hotplug/memory/resize", "/hotplug/memory"),
            ("/hotplug", "other"),
            ("/drives/rootfs", "/drives"),
            ("//", "other"),
            ("/x/vm", "other"),
        ] {
            assert_eq!(named(path), above, "{path}");
        }
    }

    #[test]
    fn a_line_has_what_was_counted_since_the_line_before() {
        let mut requests = Requests::default();
        requests.count(&request(Method::Put, "/actions"), 204);
        requests.count(&request(Method::Put, "/actions"), 400);
        requests.count(&request(Method::Get, "/events"), 200);
        let first = requests.since(&Requests::default());
        let put = &first["put_api_requests"];
        assert_eq!((&put["actions_count"], &put["actions_fails"]), (&json!(2), &json!(1)));
        assert_eq!(first["get_api_requests"]["events_count"], json!(1));
        let before = requests.clone();
        requests.count(&request(Method::Put, "/actions"), 400);
        requests.count(&request(Method::Delete, "/hotplug/memory/resize"), 204);
        let second = requests.since(&before);
        let put = &second["put_api_requests"];
        assert_eq!((&put["actions_count"], &put["actions_fails"]), (&json!(1), &json!(1)));
        assert_eq!(
            second["delete_api_requests"],
            json!({ "hotplug_memory_count": 1, "hotplug_memory_fails": 0 })
        );
        // Firecracker's readers look for these in each line.
        for (group, name) in [
            ("get_api_requests", "vmm_version_count"),
            ("put_api_requests", "serial_fails"),
            ("patch_api_requests", "hotplug_memory_fails"),
            ("patch_api_requests", "drive_count"),
        ] {
            assert_eq!(second[group][name], json!(0), "{group} {name}");
        }
    }

    #[test]
    fn clients_do_not_make_the_table_grow() {
        let mut requests = Requests::default();
        (0..1000).for_each(|number| requests.count(&request(Method::Get, &format!("/{number}")), 400));
        assert_eq!(requests.iter().collect::<Vec<_>>(), [("GET", "other", 400, 1000)]);
    }
}
