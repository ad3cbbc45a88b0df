//! The API's answers as text for people.

use serde_json::{Map, Value};
use tidevm_abi::{Counted, Size};

/// What a table shows for something that is not known.
const UNKNOWN: &str = "-";

/// The column of text behind the numbers.
const STATE: &str = "state";

/// A size in a field that counts MiB.
pub fn mib(value: &Value) -> Size {
    Size(value.as_u64().unwrap_or(0).saturating_mul(1 << 20))
}

fn bytes(value: &Value) -> String {
    value.as_u64().map_or(UNKNOWN.to_owned(), |bytes| Size(bytes).to_string())
}

/// How the region of an answer or of an event stands.
fn standing(region: &Value) -> String {
    if region["converged"] == true {
        return "at its target".to_owned();
    }
    region["reason"]["text"].as_str().unwrap_or("on its way").to_owned()
}

/// The machine and its regions.
pub fn status(instance: &Value, memory: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or(UNKNOWN).to_owned();
    let mut text = format!("{}: {}\n", word(&instance["id"]), word(&instance["state"]));
    let Some(regions) = memory["regions"].as_array() else {
        return text + "no hotplug memory\n";
    };
    let head = ["device", "plugged", "requested", "size", "guest uses", "host holds", STATE];
    let rows = regions.iter().map(|region| {
        [
            region["region"].to_string(),
            mib(&region["plugged_size_mib"]).to_string(),
            mib(&region["requested_size_mib"]).to_string(),
            mib(&region["total_size_mib"]).to_string(),
            bytes(&region["guest_usable"]),
            bytes(&region["host_held"]),
            standing(region),
        ]
        .to_vec()
    });
    text.push_str(&table(&head, rows.collect()));
    text
}

/// The guest's counters.
pub fn stats(stats: &Value) -> String {
    let empty = Map::new();
    let zones = stats["zones"].as_object().unwrap_or(&empty);
    let keys: Vec<&str> = zones
        .values()
        .next()
        .and_then(Value::as_object)
        .map_or(Vec::new(), |zone| zone.keys().map(String::as_str).collect());
    let head: Vec<&str> = ["zone"].into_iter().chain(keys.iter().copied()).collect();
    let row = |(name, zone): (&String, &Value)| {
        [name.clone()].into_iter().chain(keys.iter().map(|key| zone[*key].to_string())).collect()
    };
    let mut text = table(&head, zones.iter().map(row).collect());
    let numbers = stats.as_object().unwrap_or(&empty).iter().filter(|(_, value)| value.is_u64());
    for (key, value) in numbers {
        text.push_str(&format!("{key} {value}\n"));
    }
    text
}

/// An event.
pub fn event(event: &Value) -> String {
    let (plugged, requested) = (mib(&event["plugged_size_mib"]), mib(&event["requested_size_mib"]));
    let device = format!("device {}", event["region"]);
    match event["event"].as_str().unwrap_or_default() {
        "requested" => format!("{device}: {requested} requested, {plugged} plugged"),
        "progress" => format!("{device}: {plugged} of {requested}"),
        "done" => format!("{device}: {plugged}, at its target"),
        "failed" => format!("{device}: stopped at {plugged} of {requested}: {}", standing(event)),
        "ready" => format!("the guest is up after {} ms, CPUs: {}", event["after_ms"], event["cpus"]),
        "reset" => format!("the guest was reset, resets: {}", event["resets"]),
        "pressure" => {
            let (available, waiting) = (bytes(&event["available"]), event["waiting"].as_u64().unwrap_or(0));
            format!(
                "the guest is short of memory: {available} available, {} waiting",
                Counted(waiting, "allocation")
            )
        }
        "paused" => "the guest stands still".to_owned(),
        "resumed" => "the guest runs on".to_owned(),
        "powered_off" => "the guest powered off".to_owned(),
        "death" => format!("the guest died: {}", event["reason"].as_str().unwrap_or(UNKNOWN)),
        "lost" => format!("events that were not told: {}", event["lost"]),
        // An event of a later version.
        _ => event.to_string(),
    }
}

/// Columns of numbers, right-aligned. The names in the first one and the texts below [`STATE`] are left-aligned.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let titles = head;
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let mut text = String::new();
    for row in [head].iter().chain(&rows) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            let name = column == 0 || titles[column] == STATE;
            if name { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{event, stats, status};

    #[test]
    fn a_status_has_a_line_per_device() {
        let instance = json!({ "id": "vm-1", "state": "Running" });
        let region = json!({
            "region": 0, "plugged_size_mib": 130, "requested_size_mib": 0, "total_size_mib": 1024,
            "guest_usable": 136_314_880, "host_held": null, "converged": false,
            "reason": { "text": "2 pages cannot move" },
        });
        assert_eq!(
            status(&instance, &json!({ "regions": [region] })),
            "vm-1: Running\n\
             device  plugged  requested  size  guest uses  host holds  state\n\
             0          130M          0    1G        130M           -  2 pages cannot move\n"
        );
        let there = json!({ "region": 0, "converged": true, "reason": null });
        assert!(status(&instance, &json!({ "regions": [there] })).ends_with("  at its target\n"));
        assert_eq!(status(&instance, &Value::Null), "vm-1: Running\nno hotplug memory\n");
    }

    #[test]
    fn counters_are_a_table_and_lines() {
        let told =
            stats(&json!({ "zones": { "Movable": { "free": 5, "present": 10 } }, "blocks_online": 7 }));
        assert_eq!(told, "zone     free  present\nMovable     5       10\nblocks_online 7\n");
        assert_eq!(stats(&Value::Null), "zone\n");
    }

    #[test]
    fn each_event_has_a_text() {
        let resize = |word: &str| {
            event(&json!({
                "event": word, "region": 1, "plugged_size_mib": 256, "requested_size_mib": 1024,
                "reason": { "text": "no room" },
            }))
        };
        assert_eq!(resize("requested"), "device 1: 1G requested, 256M plugged");
        assert_eq!(resize("progress"), "device 1: 256M of 1G");
        assert_eq!(resize("failed"), "device 1: stopped at 256M of 1G: no room");
        assert_eq!(
            event(&json!({ "event": "death", "reason": "triple fault" })),
            "the guest died: triple fault"
        );
        assert_eq!(
            event(&json!({ "event": "pressure", "available": 3 << 20, "waiting": 1, "waited": 2 })),
            "the guest is short of memory: 3M available, 1 allocation waiting"
        );
        assert_eq!(event(&json!({ "event": "new" })), "{\"event\":\"new\"}");
    }
}
